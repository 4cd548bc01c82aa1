"""`deepzig info`: what a model is, and what of it lies in a folder.

Called by the command line; calls `config`, `checkpoint`, `text` and, for --experts, `experts`; without that it computes
nothing with the weights. Answers from config.json alone where there are no weights yet, so that one can ask before a
long download.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepzig.cli import configuration
from deepzig.cli import experts as experts_table
from deepzig.cli.command import command
from deepzig.cli.options import json_option, model_folder, model_option
from deepzig.errors import CheckpointError

if TYPE_CHECKING:
    from deepzig.checkpoint.directory import Checkpoint
    from deepzig.checkpoint.loader import ModelWeights
    from deepzig.config import ModelConfig

SLAB = 1 << 22  # elements that are looked at together

# First match wins. MTP layers are told apart by their number, before these.
GROUPS = (
    (".mlp.experts.", "routed experts"),
    (".mlp.shared_experts.", "shared experts"),
    (".mlp.gate_proj", "dense layers"),
    (".mlp.up_proj", "dense layers"),
    (".mlp.down_proj", "dense layers"),
    (".mlp.gate", "router"),
    ("norm", "norms"),
    (".self_attn.", "attention"),
    ("model.embed_tokens", "embedding"),
    ("lm_head", "head"),
)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, from config.json."""

    total: int  # of the main model
    active: int  # read for each token: without the experts that it is not sent to, and without the embedding
    mtp: int  # of the MTP layers, without copies of embedding and head


@command()
@model_option
@click.option("--check-tensors", is_flag=True, help="Read all weights and look for NaN and infinity.")
@click.option("--experts", is_flag=True, help="Show how busy each expert is on the text of --text.")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="UTF-8; a line <|endoftext|> ends a document.")  # fmt: skip
@click.option("--config", "config_shown", is_flag=True, help="Show all options of all commands, and what sets them.")
@json_option
@click.pass_context
def info(
    context: click.Context,
    model: str,
    check_tensors: bool,
    experts: bool,
    text: Path | None,
    config_shown: bool,
    as_json: bool,
) -> None:
    """Show what a model is and what it needs.

    config.json is enough: without weights in the folder, what depends on them is left out.

    \b
        deepzig info -m ./DeepSeek-V3
        deepzig info -m ./DeepSeek-V2-Lite-Chat --experts --text article.txt
        deepzig info --config
    """
    if config_shown:
        click.echo(configuration.as_json(context) if as_json else "\n".join(configuration.lines(context)))
        return
    if experts != (text is not None):
        raise click.UsageError("--experts and --text FILE go together")
    from deepzig.checkpoint.directory import open_checkpoint
    from deepzig.config import ModelConfig

    directory = model_folder(model, with_weights=check_tensors or experts)
    config = ModelConfig.from_directory(directory)
    described = {"model": model, **architecture(config), "kernels": kernels_in_use()}
    if check_tensors or any(directory.glob("*.safetensors")):
        checkpoint = open_checkpoint(directory)
        described |= stored(checkpoint, config)
        if check_tensors:
            described["non_finite"] = list(non_finite_tensors(checkpoint))
    described |= texts(directory)
    load = experts_table.expert_load(model, text) if text is not None else None
    if as_json:
        click.echo(json.dumps(described | ({"expert_load": experts_table.as_object(load)} if load else {})))
    else:
        print_lines(described)
        for line in experts_table.lines(load) if load else ():
            click.echo(line)
    if bad := described.get("non_finite"):
        raise CheckpointError(f"{len(bad)} tensors hold NaN or infinity, the first {bad[0]!r:.120}; fetch them again")


def architecture(config: "ModelConfig") -> dict[str, Any]:
    """What follows from config.json."""
    return {
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "moe_layers": sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)),
        "mtp_layers": config.num_nextn_predict_layers,
        "experts": config.n_routed_experts,
        "experts_per_token": config.num_experts_per_tok,
        "shared_experts": config.n_shared_experts,
        "context": config.max_position_embeddings,
        "parameters": asdict(count_parameters(config)),
        "cache_bytes_per_1k_tokens": 1000 * cache_bytes_per_token(config),
    }


def count_parameters(config: "ModelConfig") -> ParameterCount:
    """Sizes of all the tensors that the config asks for, added up."""
    from deepzig.checkpoint.names import expected_tensors

    expected = expected_tensors(config, config.num_nextn_predict_layers)
    sizes: Counter[str] = Counter()
    for name, (rows, columns) in expected.linear.items():
        if name == "model.embed_tokens" or name not in expected.alias:
            sizes[tensor_group(name, config)] += rows * columns
    for name, (size,) in expected.vector.items():
        sizes[tensor_group(name, config)] += size
    mtp = sizes.pop("MTP", 0)
    active = sizes.total() - sizes["embedding"]
    if config.n_routed_experts:
        idle = config.n_routed_experts - config.num_experts_per_tok
        active -= sizes["routed experts"] * idle // config.n_routed_experts
    return ParameterCount(sizes.total(), active, mtp)


def cache_bytes_per_token(config: "ModelConfig") -> int:
    """Bytes of a token's rows in the latent cache: R + P values for each layer, MTP layers included."""
    from deepzig.model.cache import LatentCache

    n_layers = config.num_hidden_layers + config.num_nextn_predict_layers
    return LatentCache(n_layers, n_pages=0, latent_dim=config.latent_dim).bytes_per_token


def tensor_group(name: str, config: "ModelConfig") -> str:
    """The part of the model that a module or tensor belongs to, as `deepzig info` calls it."""
    parts = name.split(".")
    if parts[1:2] == ["layers"] and int(parts[2]) >= config.num_hidden_layers:
        return "MTP"
    return next(group for part, group in GROUPS if part in name)


def stored(checkpoint: "Checkpoint", config: "ModelConfig") -> dict[str, Any]:
    """What lies in the folder. Raises CheckpointError if it is not what config.json asks for."""
    from deepzig.checkpoint.loader import load_weights

    weights = load_weights(checkpoint.directory, config)
    return {
        "files": len(checkpoint.files),
        "bytes": sum(path.stat().st_size for path in checkpoint.files),
        "formats": stored_formats(weights, config),
        "mtp_stored": weights.has_mtp,
    }


def stored_formats(weights: "ModelWeights", config: "ModelConfig") -> dict[str, dict[str, int]]:
    """Group -> weight format -> bytes of its matrices. What several modules share counts for the first."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    seen = set()
    for name, weight in weights.linear.items():
        if id(weight) not in seen:
            seen.add(id(weight))
            scaled = f" g{weight.group_size}" if weight.format in ("int8", "int4") else ""
            groups[tensor_group(name, config)][weight.format + scaled] += weight.nbytes
    return {group: dict(formats) for group, formats in groups.items()}


def non_finite_tensors(checkpoint: "Checkpoint") -> Iterator[str]:
    """Names of the floating-point tensors that hold NaN or infinity."""
    import numpy as np

    for name in checkpoint.names:
        if checkpoint.info(name).dtype.startswith(("F", "BF")):
            flat = checkpoint.array(name).reshape(-1)
            if not all(np.isfinite(flat[start : start + SLAB]).all() for start in range(0, flat.size, SLAB)):
                yield name


def texts(directory: Path) -> dict[str, Any]:
    """Whether the folder can turn text into tokens, and messages into text."""
    from deepzig.text.chat import ChatTemplate
    from deepzig.text.tokenizer import load_tokenizer

    return {
        "tokenizer": load_tokenizer(directory) is not None,
        "chat_template": ChatTemplate.from_directory(directory) is not None,
    }


def kernels_in_use() -> str:
    """The implementations that were picked, in a line; why there are no compiled ones if so."""
    from deepzig import _kernels

    counts = Counter(row.runs for row in _kernels.table())
    shown = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    report = _kernels.build_report()
    if report.problem:
        return f"{shown}; no compiled kernels: {report.problem}"
    if report.not_built:
        return f"{shown}; {len(report.not_built)} modules were left out of the build, `deepzig kernels` tells why"
    return shown


def print_lines(described: dict[str, Any]) -> None:
    """For people: a name and a value a line."""
    for name, value in _lines(described):
        click.echo(f"{name:<18} {value}")


def _lines(described: dict[str, Any]) -> Iterable[tuple[str, str]]:
    parameters = described["parameters"]
    yield "model", described["model"]
    yield "model type", described["model_type"]
    yield "layers", f"{described['layers']}, {described['moe_layers']} of them with experts"
    if described["experts"]:
        yield "experts", (f"{described['experts_per_token']} of {described['experts']} for each token, "
                          f"and {described['shared_experts']} shared")  # fmt: skip
    yield "parameters", f"{_scaled(parameters['total'])}, {_scaled(parameters['active'])} of them read for each token"
    yield "MTP layers", _mtp(described)
    yield "context", f"{described['context']} tokens"
    yield "cache", f"{_scaled(described['cache_bytes_per_1k_tokens'])}B for 1000 tokens"
    if "files" in described:
        yield "weights", f"{_scaled(described['bytes'])}B, files: {described['files']}"
        for group, formats in described["formats"].items():
            yield f"  {group}", ", ".join(f"{name} {_scaled(size)}B" for name, size in formats.items())
    else:
        yield "weights", "none in the folder"
    yield "tokenizer", _present(described["tokenizer"])
    yield "chat template", _present(described["chat_template"])
    yield "kernels", described["kernels"]
    if "non_finite" in described:
        yield "NaN or infinity", f"in {len(described['non_finite'])} tensors"


def _mtp(described: dict[str, Any]) -> str:
    if not described["mtp_layers"]:
        return "none"
    counted = f"{described['mtp_layers']}, {_scaled(described['parameters']['mtp'])} parameters more"
    return counted if described.get("mtp_stored", True) else f"{counted}, not stored here"


def _present(there: bool) -> str:
    return "yes" if there else "none in the folder"


def _scaled(number: float) -> str:
    """A number with three digits and a decimal prefix: 12.6 M."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} T"
