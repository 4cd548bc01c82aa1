"""Recipe: the format that each matrix of a model gets when it is quantised.

Made by the command line, asked by `plan` and `sizes`; calls `names` and `schemes`. Knows module paths and sizes, no
values and no files.

What stays as it is in every recipe: norms, biases, the router, and the embedding unless all is cast to a plain float.
The head has a scale for each group of columns even where all else has one for each row: on V2-Lite one scale a row for
embedding and head costs five times as much as for all other matrices together.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from deepzig.checkpoint.names import HEAD
from deepzig.checkpoint.schemes import CHANNEL, GROUP_SIZES, KEEP, Scheme
from deepzig.config import ModelConfig
from deepzig.errors import RequestError

FORMATS = ("int8", "int4", "fp8", "fp16", "bf16")
INTEGERS = ("int8", "int4")
INT4_GROUP = 64


@dataclass(frozen=True)
class Recipe:
    """What the user asked for. Raises RequestError if that is impossible.

    format      one of FORMATS. "int4" is a mix: routed experts int4, all else int8
    group_size  None: 64 for int4, the largest of 128, 64, 32 that divides K for int8, and integers that are there keep
                theirs; else 32, 64, 128 or CHANNEL
    include     pairs of a pattern and a format; where several match, the last counts
    exclude     patterns of modules to leave as they are; wins over `include`

    Patterns are shell patterns on module paths: "*.self_attn.*", "model.layers.0.mlp.down_proj".
    """

    format: str
    group_size: int | None = None
    include: tuple[tuple[str, str], ...] = field(default=())
    exclude: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        formats = {self.format, *(wanted for _, wanted in self.include)}
        if unknown := formats.difference(FORMATS):
            raise RequestError(f"format {min(unknown)!r} is unknown; use {', '.join(FORMATS)}")
        if "fp8" in formats and formats.intersection(INTEGERS):
            raise RequestError("fp8 and integers cannot be mixed: config.json declares one or the other")
        if self.group_size is not None:
            self._check_group_size(formats)

    def _check_group_size(self, formats: set[str]) -> None:
        if self.group_size not in (CHANNEL, *GROUP_SIZES):
            raise RequestError(f"group size {self.group_size} is none of {GROUP_SIZES} and channel")
        if not formats.intersection(INTEGERS):
            raise RequestError(f"{self.format} has no group size; leave it out")
        if self.group_size == CHANNEL and "int4" in formats:
            raise RequestError("int4 with one scale a row loses too much; use a group size of 32, 64 or 128")

    def assign(self, config: ModelConfig, modules: Mapping[str, tuple[int, int]]) -> dict[str, Scheme]:
        """The scheme of each module, given their (N, K). Raises RequestError if a pattern matches none."""
        self._check_patterns(config, modules)
        has_patterns = bool(self.include or self.exclude)
        routed: dict[int, Scheme] = {}  # by width: V3 has 45,000 of them, alike unless a pattern names one
        schemes = {}
        for module, (_, n_columns) in modules.items():
            if has_patterns or not is_routed(module):
                schemes[module] = self._scheme(config, module, n_columns)
                continue
            if n_columns not in routed:
                routed[n_columns] = self._scheme(config, module, n_columns)
            schemes[module] = routed[n_columns]
        return schemes

    def _scheme(self, config: ModelConfig, module: str, n_columns: int) -> Scheme:
        wanted = self._wanted(config, module)
        if wanted == "":
            return KEEP
        if wanted not in INTEGERS:
            return Scheme("f16" if wanted == "fp16" else wanted)
        columns = _expert_columns(config) if is_routed(module) else n_columns
        size = self._group_size(wanted, columns, is_head(module))
        return KEEP if size == CHANNEL and is_head(module) else Scheme(wanted, size)

    def _wanted(self, config: ModelConfig, module: str) -> str:
        """The format of a module, a name of FORMATS; "" to leave the module as it is."""
        if any(fnmatchcase(module, pattern) for pattern in self.exclude):
            return ""
        for pattern, wanted in reversed(self.include):
            if fnmatchcase(module, pattern) and _may_have(config, module, wanted):
                return wanted
        if self.format == "int4" and not is_routed(module):
            wanted = "int8"
        elif self.format == "fp8" and (is_head(module) or module.endswith(".eh_proj")):  # as in DeepSeek's releases
            wanted = ""
        else:
            wanted = self.format
        return wanted if wanted and _may_have(config, module, wanted) else ""

    def _group_size(self, wanted: str, n_columns: int, grouped: bool) -> int:
        """The largest group size that divides n_columns and is at most the one asked for, else CHANNEL."""
        limit = self.group_size
        if wanted == "int4":
            limit = limit or INT4_GROUP
        elif limit == CHANNEL and not grouped:
            return CHANNEL
        elif self.format == "int4":  # the mix: --group-size is about its int4 part
            limit = None
        return max((size for size in GROUP_SIZES if size <= (limit or max(GROUP_SIZES)) and n_columns % size == 0),
                   default=CHANNEL)  # fmt: skip

    def _check_patterns(self, config: ModelConfig, modules: Iterable[str]) -> None:
        for pattern, wanted in (*self.include, *((pattern, "") for pattern in self.exclude)):
            found = [module for module in modules if fnmatchcase(module, pattern)]
            if not found:
                raise RequestError(f"pattern {pattern!r} matches no module; one is {next(iter(modules))}")
            if wanted and not any(_may_have(config, module, wanted) for module in found):
                raise RequestError(f"pattern {pattern!r} matches only what cannot be {wanted}, such as {found[0]}")


def is_routed(module: str) -> bool:
    """Whether the module is a matrix of a routed expert."""
    return ".mlp.experts." in module


def is_head(module: str) -> bool:
    """Whether the module computes logits."""
    return module == HEAD or module.endswith(".shared_head.head")


def is_router(module: str) -> bool:
    """Whether the module scores the experts."""
    return module.endswith(".mlp.gate")


def is_embedding(module: str) -> bool:
    """Whether the module's rows are looked up."""
    return module.endswith(".embed_tokens")


def _may_have(config: ModelConfig, module: str, wanted: str) -> bool:
    """Whether a module may have a format: routers are never rounded; embeddings, and heads that are one, only to plain
    floats."""
    is_looked_up = is_embedding(module) or (config.tie_word_embeddings and is_head(module))
    return not is_router(module) and (wanted in ("fp16", "bf16") or not is_looked_up)


def _expert_columns(config: ModelConfig) -> int:
    """A multiple of the group size of routed experts: transformers decodes all of them by one config group."""
    return math.gcd(config.hidden_size, config.moe_intermediate_size)
