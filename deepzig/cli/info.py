"""`deepzig info`: what a model is, what it needs, and which parts of it a folder has.

Called by the command line; calls `config`, `checkpoint`, `text`, `engine.memory_need` and, for --experts, `experts`;
otherwise it computes nothing with the weights. If there are no weights yet, config.json is enough, so that one can ask
before a long download. `info_lines` prints.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepzig.cli import configuration
from deepzig.cli import experts as experts_table
from deepzig.cli.command import command
from deepzig.cli.info_lines import print_lines
from deepzig.cli.options import cache_dtype_option, json_option, model_folder, model_option
from deepzig.cli.progress import plural
from deepzig.errors import CheckpointError, ContextLengthError, ResourceError, TokenizerError

if TYPE_CHECKING:
    from deepzig.checkpoint.directory import Checkpoint
    from deepzig.checkpoint.sizes import ModelSize
    from deepzig.config import ModelConfig

CONTEXT = 4096  # tokens, unless the model's context is shorter
CONVERSIONS = ("int8", "int4")  # formats of `deepzig quantize` that are compared
COMPARED_UP_TO = 1.05  # times the bytes it has now; int8 of a model in fp8 is a little larger


@command()
@model_option
@click.option("--context", "n_tokens", type=click.IntRange(min=1), metavar="N",
              help=f"Tokens for which memory and speed are stated.  [default: {CONTEXT}, or the model's if less]")
@cache_dtype_option
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
    n_tokens: int | None,
    cache_dtype: str,
    check_tensors: bool,
    experts: bool,
    text: Path | None,
    config_shown: bool,
    as_json: bool,
) -> None:
    """Show what a model is and what it needs.

    config.json is enough: without weights in the folder, sizes are computed from what it declares. For a name of the
    hub no weights are fetched.

    The speed is an estimate: the memory's speed, measured now, divided by the bytes that a token reads. Decoding of
    large models has reached 0.6 to 0.9 of it, depending on the CPU (docs/performance.md).

    \b
        deepzig info -m deepseek-ai/DeepSeek-V3 --cache-dtype int8
        deepzig info -m ./DeepSeek-V3
        deepzig info -m ./DeepSeek-V2-Lite-Chat --experts --text article.txt
        deepzig info --config
    """
    if config_shown:
        click.echo(configuration.as_json(context) if as_json else "\n".join(configuration.lines(context)))
        return
    if experts != (text is not None):
        raise click.UsageError("--experts and --text FILE go together")
    directory = model_folder(model, with_weights=check_tensors or experts)
    described = {"model": model, **describe(directory, n_tokens, cache_dtype, check_tensors=check_tensors)}
    load = experts_table.expert_load(model, text) if text is not None else None
    if as_json:
        click.echo(json.dumps(described | ({"expert_load": experts_table.as_object(load)} if load else {})))
    else:
        print_lines(described)
        for line in experts_table.lines(load) if load else ():
            click.echo(line)
    if bad := described.get("non_finite"):
        raise CheckpointError(
            f"NaN or infinity in {plural(len(bad), 'tensor')}, the first {bad[0]!r:.120}; "
            "`deepzig verify` tells where; fetch the files again"
        )


def describe(directory: Path, n_tokens: int | None, cache_dtype: str, *, check_tensors: bool) -> dict[str, Any]:
    """What a model's folder has, as --json prints it; without weights, sizes follow from config.json."""
    from deepzig.checkpoint.directory import open_checkpoint
    from deepzig.checkpoint.sizes import declared_size
    from deepzig.config import ModelConfig

    config = ModelConfig.from_directory(directory)
    described = architecture(config)
    if check_tensors or any(directory.glob("*.safetensors")):
        checkpoint = open_checkpoint(directory)
        size, with_mtp = stored(checkpoint, config)
        described |= {
            "files": len(checkpoint.files),
            "bytes": sum(path.stat().st_size for path in checkpoint.files),
            "mtp_stored": with_mtp,
        }
        if check_tensors:
            described["non_finite"] = non_finite_tensors(checkpoint)
    else:
        size, with_mtp = declared_size(config), True
        described["bytes"] = size.nbytes
    described["formats"] = size.formats
    described |= needs(config, size, context_of(config, n_tokens), cache_dtype, with_mtp=with_mtp)
    described |= texts(directory)
    described["kernels"] = kernels_in_use()
    return described


def architecture(config: "ModelConfig") -> dict[str, Any]:
    """What follows from config.json."""
    from deepzig.checkpoint.sizes import count_parameters

    return {
        "family": config.family,
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "moe_layers": len(config.moe_layers),
        "mtp_layers": config.num_nextn_predict_layers,
        "experts": config.n_routed_experts,
        "experts_per_token": config.num_experts_per_tok,
        "shared_experts": config.n_shared_experts,
        "context": config.max_position_embeddings,
        "parameters": asdict(count_parameters(config)),
    }


def context_of(config: "ModelConfig", asked: int | None) -> int:
    """The tokens asked for, else CONTEXT, or the model's context if less. Raises ContextLengthError."""
    longest = config.max_position_embeddings
    if asked is not None and asked > longest:
        raise ContextLengthError(f"--context {asked} is above the {longest} tokens of the model; take less")
    return asked or min(CONTEXT, longest)


def stored(checkpoint: "Checkpoint", config: "ModelConfig") -> tuple["ModelSize", bool]:
    """Size of the weights in the folder, and whether it has MTP layers. Raises CheckpointError if they are not what
    config.json asks for."""
    from deepzig.checkpoint.loader import load_weights
    from deepzig.checkpoint.sizes import stored_size

    weights = load_weights(checkpoint, config)
    return stored_size(config, weights), weights.has_mtp


def needs(
    config: "ModelConfig", size: "ModelSize", context: int, cache_dtype: str, *, with_mtp: bool
) -> dict[str, Any]:
    """Memory and speed, for the model as it is and in other formats."""
    from deepzig.checkpoint.recipe import Recipe
    from deepzig.checkpoint.sizes import converted_size
    from deepzig.engine.memory_need import bytes_read_per_token, cache_bytes_per_token, memory_need
    from deepzig.evaluate.read_speed import read_bandwidth
    from deepzig.memory import allocatable_memory, available_memory
    from deepzig.threads import available_threads

    available, allocatable = available_memory(), allocatable_memory()
    bandwidth = read_bandwidth(available_threads())

    def form(name: str, size: "ModelSize") -> dict[str, Any]:
        need = memory_need(config, size, context, cache_dtype, with_mtp=with_mtp)
        read = bytes_read_per_token(config, size, context, cache_dtype)
        return {
            "format": name,
            "bytes": size.nbytes,
            "memory": {"weights": need.weights, "cache": need.cache, "work": need.work, "needed": need.nbytes},
            "bytes_per_token": read,
            "tokens_per_s_at_most": bandwidth / read,  # with all of it in memory
            "in_memory": need.nbytes <= available,
            "can_run": need.own <= allocatable,
        }

    own_format, most = size.main_format, COMPARED_UP_TO * size.nbytes
    converted = {
        name: converted_size(config, Recipe(name), with_mtp=with_mtp) for name in CONVERSIONS if name != own_format
    }
    return {
        "cache_dtype": cache_dtype,
        "cache_bytes_per_1k_tokens": 1000 * cache_bytes_per_token(config, cache_dtype, with_mtp=with_mtp),
        "stated_context": context,
        "available": available,
        "allocatable": allocatable,
        "bandwidth": bandwidth,
        "as_it_is": form(own_format, size),
        "conversions": [form(name, new) for name, new in converted.items() if new.nbytes < most],
    }


def non_finite_tensors(checkpoint: "Checkpoint") -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    from deepzig.checkpoint.quantize import find_non_finite

    return [name for name in checkpoint.infos if find_non_finite(checkpoint.array(name)) is not None]


def texts(directory: Path) -> dict[str, Any]:
    """Whether the folder can turn text into tokens, and messages into text; whether its template knows roles."""
    from deepzig.text.chat import ChatTemplate
    from deepzig.text.tokenizer import load_tokenizer

    template = ChatTemplate.from_directory(directory)
    found: dict[str, Any] = {
        "tokenizer": load_tokenizer(directory) is not None,
        "chat_template": template is not None,
    }
    if template is not None:
        try:
            found["chat_roles"] = template.tells_roles()
        except (TokenizerError, ResourceError) as error:
            found["chat_template_problem"] = str(error)
    return found


def kernels_in_use() -> str:
    """The implementations in use, in one line; if there are no compiled ones, the reason."""
    from deepzig import _kernels

    shown = _kernels.in_a_line()
    report = _kernels.build_report()
    if report.problem:
        return f"{shown}; no compiled kernels: {report.problem}"
    if report.not_built:
        return f"{shown}; {len(report.not_built)} modules were left out of the build, `deepzig kernels` tells why"
    return shown
