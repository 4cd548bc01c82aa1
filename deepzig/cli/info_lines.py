"""What `deepzig info` prints for people: a name and a value a line, then a table of formats. Called by `info`.

Lines are wrapped on terminals only, so that other programs can read them.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import click

NAME_WIDTH = 18
UNWRAPPED = 10_000  # columns, more than any line has


def print_lines(described: dict[str, Any]) -> None:
    """All that `info` found out."""
    width = shutil.get_terminal_size().columns if on_terminal() else UNWRAPPED
    for name, value in _lines(described):
        for line in wrapped(name, value, width):
            click.echo(line)
    for line in _table(described):
        click.echo(line)


def on_terminal() -> bool:
    """Whether a person reads."""
    return sys.stdout.isatty()


def wrapped(name: str, value: str, width: int) -> list[str]:
    """A name and a value, the value wrapped beside the name."""
    first = f"{name:<{NAME_WIDTH}} "
    return textwrap.wrap(
        value, max(width, NAME_WIDTH + 12), initial_indent=first, subsequent_indent=" " * len(first),
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def _lines(described: dict[str, Any]) -> Iterator[tuple[str, str]]:
    parameters = described["parameters"]
    yield "model", described["model"]
    yield "family", described["family"]
    yield "layers", f"{described['layers']}, {described['moe_layers']} of them with experts"
    if described["experts"]:
        yield "experts", (f"{described['experts_per_token']} of {described['experts']} for each token, "
                          f"and {described['shared_experts']} shared")  # fmt: skip
    yield "parameters", f"{_scaled(parameters['total'])}, {_scaled(parameters['active'])} of them read for each token"
    yield "MTP layers", _mtp(described)
    yield "context", f"{described['context']} tokens"
    yield "cache", f"{_scaled(described['cache_bytes_per_1k_tokens'])}B for 1000 tokens, {described['cache_dtype']}"
    is_stored = "files" in described
    origin = f"files: {described['files']}" if is_stored else "none in the folder; computed from config.json"
    yield "weights", f"{_scaled(described['bytes'])}B, {origin}"
    for group, formats in described["formats"].items():
        yield f"  {group}", ", ".join(f"{name} {_scaled(size)}B" for name, size in formats.items())
    yield from _needs(described)
    yield "tokenizer", _present(described["tokenizer"])
    yield "chat template", _present(described["chat_template"])
    yield "kernels", described["kernels"]
    if "non_finite" in described:
        yield "NaN or infinity", f"in {len(described['non_finite'])} tensors"


def _needs(described: dict[str, Any]) -> Iterator[tuple[str, str]]:
    now, context = described["as_it_is"], described["stated_context"]
    memory = {name: f"{_scaled(nbytes)}B" for name, nbytes in now["memory"].items()}
    yield "memory", (f"{memory['needed']}: weights {memory['weights']} + work {memory['work']} + cache "
                     f"{memory['cache']} of {context} tokens")  # fmt: skip
    available, allocatable = (f"{_scaled(described[name])}B" for name in ("available", "allocatable"))
    if now["can_run"]:
        yield "  available", f"{available}: {'all of it fits' if now['in_memory'] else 'weights stream from disk'}"
    else:
        yield "  available", f"{allocatable}: too little for work and cache, loading is refused"
    read, speed = f"{_scaled(now['bytes_per_token'])}B", f"{_figure(now['tokens_per_s_at_most'])} tok/s"
    bandwidth = f"{_scaled(described['bandwidth'])}B/s, measured now"
    if now["in_memory"]:
        yield "decoding", f"at most {speed}: {read} a token at {bandwidth}"
    else:
        yield "decoding", (f"bound by the disk, which gives up to {read} a token; with all in memory at most {speed}, "
                           f"at {bandwidth}")  # fmt: skip


def _table(described: dict[str, Any]) -> Iterator[str]:
    """What other formats would need; 39 columns, so that no terminal wraps it."""
    if not described["conversions"]:
        return
    yield ""
    yield f"{'format':<8}{'disk':>8}{'memory':>8}{'a token':>8}{'tok/s':>7}"
    for form in (described["as_it_is"], *described["conversions"]):
        name = "int4 mix" if form["format"] == "int4" else form["format"]
        speed = _figure(form["tokens_per_s_at_most"]) if form["in_memory"] else "disk"
        sizes = [f"{_scaled(size)}B" for size in (form["bytes"], form["memory"]["needed"], form["bytes_per_token"])]
        yield f"{name:<8}{sizes[0]:>8}{sizes[1]:>8}{sizes[2]:>8}{speed:>7}"


def _mtp(described: dict[str, Any]) -> str:
    if not described["mtp_layers"]:
        return "none"
    counted = f"{described['mtp_layers']}, {_scaled(described['parameters']['mtp'])} parameters more"
    return counted if described.get("mtp_stored", True) else f"{counted}, not stored here"


def _present(there: bool) -> str:
    return "yes" if there else "none in the folder"


def _figure(number: float) -> str:
    """Two digits, or whole: 0.78, 5.2, 1900."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _scaled(number: float) -> str:
    """A number with three digits and a decimal prefix: 12.6 M."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} T"
