"""What `deepzig info` prints for people: a name and a value a line, then a table of formats. Called by `info`."""

from collections.abc import Iterator
from typing import Any

import click

from deepzig.cli.progress import plural, scaled
from deepzig.cli.tables import Table, labelled

NAME_WIDTH = 18


def print_lines(described: dict[str, Any]) -> None:
    """Print everything that `info` found out."""
    for name, value in _lines(described):
        click.echo(labelled(name, value, NAME_WIDTH))
    if described["conversions"]:
        click.echo()
        _table(described).print()


def _lines(described: dict[str, Any]) -> Iterator[tuple[str, str]]:
    parameters = described["parameters"]
    yield "model", described["model"]
    yield "family", described["family"]
    yield "layers", f"{described['layers']}, {described['moe_layers']} of them with experts"
    if described["experts"]:
        yield "experts", (f"{described['experts_per_token']} of {described['experts']} for each token, "
                          f"and {described['shared_experts']} shared")  # fmt: skip
    total, active = (scaled(parameters[name], "") for name in ("total", "active"))
    yield "parameters", f"{total}, {active} of them read for each token"
    yield "MTP layers", _mtp(described)
    yield "context", f"{described['context']} tokens"
    yield "cache", f"{scaled(described['cache_bytes_per_1k_tokens'], 'B')} for 1000 tokens, {described['cache_dtype']}"
    is_stored = "files" in described
    origin = f"files: {described['files']}" if is_stored else "none in the folder; computed from config.json"
    yield "weights", f"{scaled(described['bytes'], 'B')}, {origin}"
    for group, formats in described["formats"].items():
        yield f"  {group}", ", ".join(f"{name} {scaled(size, 'B')}" for name, size in formats.items())
    yield from _needs(described)
    yield "tokenizer", _present(described["tokenizer"])
    yield "chat template", _chat_template(described)
    yield "kernels", described["kernels"]
    if "non_finite" in described:
        yield "NaN or infinity", f"in {plural(len(described['non_finite']), 'tensor')}"


def _needs(described: dict[str, Any]) -> Iterator[tuple[str, str]]:
    now, context = described["as_it_is"], described["stated_context"]
    memory = {name: scaled(nbytes, "B") for name, nbytes in now["memory"].items()}
    yield "memory", (f"{memory['needed']}: weights {memory['weights']} + work {memory['work']} + cache "
                     f"{memory['cache']} of {context} tokens")  # fmt: skip
    available, allocatable = (scaled(described[name], "B") for name in ("available", "allocatable"))
    if now["can_run"]:
        yield "  available", f"{available}: {'all of it fits' if now['in_memory'] else 'weights stream from disk'}"
    else:
        yield "  available", f"{allocatable}: too little for work and cache, loading is refused"
    read, speed = scaled(now["bytes_per_token"], "B"), f"{_figure(now['tokens_per_s_at_most'])} tok/s"
    bandwidth = f"{scaled(described['bandwidth'], 'B')}/s, estimated now"
    if now["in_memory"]:
        yield "decoding", f"at most {speed}: {read} a token at {bandwidth}"
    else:
        yield "decoding", (f"bound by the disk, which gives up to {read} a token; with all in memory at most {speed}, "
                           f"at {bandwidth}")  # fmt: skip


def _table(described: dict[str, Any]) -> Table:
    """A table of what other formats would need."""
    rows = []
    for form in (described["as_it_is"], *described["conversions"]):
        name = "int4 mix" if form["format"] == "int4" else form["format"]
        speed = _figure(form["tokens_per_s_at_most"]) if form["in_memory"] else "bound by disk"
        sizes = [scaled(size, "B") for size in (form["bytes"], form["memory"]["needed"], form["bytes_per_token"])]
        rows.append([name, *sizes, speed])
    return Table("", ["format", "on disk", "in memory", "read per token", "at most tok/s"], rows)


def _mtp(described: dict[str, Any]) -> str:
    if not described["mtp_layers"]:
        return "none"
    counted = f"{described['mtp_layers']}, {scaled(described['parameters']['mtp'], '')} parameters more"
    return counted if described.get("mtp_stored", True) else f"{counted}, not stored here"


def _chat_template(described: dict[str, Any]) -> str:
    if problem := described.get("chat_template_problem"):
        return f"fails: {problem}"
    if described.get("chat_roles", True):
        return _present(described["chat_template"])
    return "yes, without roles: this model has not been taught to chat"


def _present(there: bool) -> str:
    return "yes" if there else "none in the folder"


def _figure(number: float) -> str:
    """A number with two digits, or whole: 0.78, 5.2, 1900."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"
