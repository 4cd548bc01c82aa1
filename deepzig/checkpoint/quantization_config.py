"""What the config.json of a converted checkpoint says of its weights, module by module, and how to read that.

Called by `plan`, and by `sizes` where there are no tensors to ask; calls `recipe` and `schemes`. compressed-tensors
matches modules by names and by regular expressions, DeepSeek's fp8 is declared for the whole model. Knows names, no
tensors.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deepzig.checkpoint.names import HEAD
from deepzig.checkpoint.recipe import INTEGERS, is_embedding, is_head, is_routed, is_router
from deepzig.checkpoint.schemes import CHANNEL, FP8_BLOCK, KEEP, Scheme, declared_integer
from deepzig.config import PLAIN_FORMATS
from deepzig.errors import CheckpointError, shown

MAX_PATTERNS, MAX_PATTERN_CHARS = 2000, 500
MAX_TRIES = 10_000  # of all patterns at one name
_REPEAT = r"(?:[*+?]|\{[\d,]*\})[?+]?"
_REPEATED_DIGITS = rf"(?:\\d|\[0-9\]){_REPEAT}"
_UNIT = re.compile(rf"({_REPEATED_DIGITS})|\\.|\(\?:|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_DTYPE_KEYS = ("torch_dtype", "dtype")
_DTYPES = {name: dtype for dtype, name in PLAIN_FORMATS.items()}


def converted_config(raw: Mapping[str, Any], schemes: Mapping[str, Scheme], main_format: str) -> dict[str, Any]:
    """config.json of the result.

    raw          the source's config.json, parsed
    schemes      module path -> how it is stored now
    main_format  format of Weight that most matrices have
    """
    config = {name: value for name, value in raw.items() if name not in ("quantization_config", "compression_config")}
    config.pop("auto_map", None)  # names Python files, which are not copied
    # transformers decodes integers to the dtype of their scales and multiplies in the dtype named here
    dtype = _DTYPES.get(main_format, "bfloat16")
    config.update({name: dtype for name in _DTYPE_KEYS if name in raw} or {"torch_dtype": dtype})
    if declared := quantization_config(schemes):
        config["quantization_config"] = declared
    return config


def quantization_config(schemes: Mapping[str, Scheme]) -> dict[str, Any] | None:
    """The quantization_config that declares `schemes`, by module path; None if all matrices are plain floats."""
    formats = {scheme.format for scheme in schemes.values()}
    if "fp8" in formats:
        blocks = {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        }  # fmt: skip
        plain = _plain_beside_fp8(schemes)
        return {**blocks, "modules_to_not_convert": plain} if plain else blocks
    if not formats.intersection(INTEGERS):
        return None
    members: dict[Scheme, list[str]] = defaultdict(list)
    for module, scheme in schemes.items():
        members[scheme if scheme.format in INTEGERS else Scheme("")].append(module)
    plain = members.pop(Scheme(""), [])
    # transformers takes the first group with "experts" in a target for that of the routed experts
    ordered = sorted(members, key=lambda scheme: (not any(map(is_routed, members[scheme])), scheme))
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": _config_group(scheme, targets(members[scheme], schemes)) for i, scheme in enumerate(ordered)
        },
        "ignore": targets(plain, schemes),
        "kv_cache_scheme": None,
    }


def _plain_beside_fp8(schemes: Mapping[str, Scheme]) -> list[str]:
    """Modules that are not in fp8; none if they are just those that DeepSeek's releases leave plain without a list. The
    experts of a layer count as one module if all are plain, as in transformers."""

    def fused(module: str) -> str:
        return re.sub(r"\.experts\.\d+\.\w+$", ".experts", module)

    rounded = {fused(module) for module, scheme in schemes.items() if scheme.format == "fp8"}
    plain = [
        module
        for module, scheme in schemes.items()
        if scheme.format != "fp8" and not (is_router(module) or is_embedding(module))
    ]
    if all(is_head(module) or module.endswith(".eh_proj") for module in plain):
        return []
    if HEAD not in schemes:  # tied; given a list, transformers no longer adds it by itself
        plain.insert(0, HEAD)
    return list(dict.fromkeys(module if fused(module) in rounded else fused(module) for module in plain))


def _config_group(scheme: Scheme, matched: list[str]) -> dict[str, Any]:
    by_row = scheme.group_size == CHANNEL
    weights = {
        "num_bits": scheme.bits, "type": "int", "symmetric": True, "dynamic": False,
        "strategy": "channel" if by_row else "group", "group_size": None if by_row else scheme.group_size,
    }  # fmt: skip
    return {"targets": matched, "weights": weights, "input_activations": None, "format": "pack-quantized"}


def targets(modules: Iterable[str], schemes: Mapping[str, Scheme]) -> list[str]:
    """Patterns that match `modules` and nothing else of `schemes`: regular expressions over layers and experts if
    possible, else over the experts of one layer, else names."""
    chosen = set(modules)
    found: dict[str, None] = {}
    for pattern_of in (_any_number, _any_expert):
        others = {pattern_of(module) for module in schemes if module not in chosen}
        fitting = [module for module in schemes if module in chosen and pattern_of(module) not in others]
        found.update((f"re:^{pattern_of(module)}$", None) for module in fitting)
        chosen.difference_update(fitting)
    return [*found, *(module for module in schemes if module in chosen)]


def _any_number(module: str) -> str:
    return re.sub(r"\\\.\d+(?=\\\.|$)", r"\\.\\d+", re.escape(module))


def _any_expert(module: str) -> str:
    return re.sub(r"\\\.experts\\\.\d+", r"\\.experts\\.\\d+", re.escape(module))


def integer_schemes(declared: Mapping[str, Any], modules: Iterable[str]) -> dict[str, Scheme]:
    """The schemes that a quantization_config with integers gives to modules; KEEP for those that it leaves alone.

    declared  one that `schemes.declared_scheme` takes

    Raises CheckpointError if it names modules in a way that cannot be.
    """
    groups = [
        (_matcher(group.get("targets", ["Linear"])), declared_integer(group["weights"]))
        for group in (declared.get("config_groups") or {}).values()
        if group.get("weights") is not None
    ]
    is_ignored = _matcher(declared.get("ignore") or [])
    if declared.get("quant_method") == "w8a8_int8":
        groups, is_ignored = [(_matcher(["Linear"]), Scheme("int8", CHANNEL))], is_head
    return {
        module: KEEP if is_ignored(module) else next((scheme for fits, scheme in groups if fits(module)), KEEP)
        for module in modules
    }


def _matcher(listed: Any) -> Callable[[str], bool]:
    """Returns a test whether a module is one of `listed`, as in compressed-tensors: classes, names, or "re:" and a
    pattern for the beginning of a name."""
    if not isinstance(listed, list) or not all(isinstance(target, str) for target in listed):
        raise CheckpointError(f"config.json quantises {shown(listed)}, which is no list of modules; fetch it again")
    patterns = [target.removeprefix("re:") for target in listed if target.startswith("re:")]
    if len(patterns) > MAX_PATTERNS or sum(map(_tries, patterns)) > MAX_TRIES:
        raise CheckpointError(
            f"config.json quantises {shown(patterns)}, which would take too long to match; list names"
        )
    try:
        pattern = re.compile("|".join(f"(?:{each})" for each in patterns) or r"(?!)")
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(f"config.json quantises {shown(patterns)}, which is no pattern ({error})") from error
    names, has_class = set(listed), "Linear" in listed

    def fits(module: str) -> bool:
        is_of_class = has_class and not is_embedding(module) and not is_router(module)
        return is_of_class or module in names or pattern.match(module) is not None

    return fits


def _tries(pattern: str) -> int:
    """About how many ways `re` may try to match a pattern to a module's name before it gives up, for patterns whose
    ways can be counted.

    Raises CheckpointError for a repeated group, whose ways grow exponentially, and for groups that begin with "(?".
    """
    text = pattern[:MAX_PATTERN_CHARS].rstrip("$").removesuffix(".*")  # an end that is tried once
    plain = _UNIT.sub(lambda unit: "#" if unit[1] else "x", text)
    if len(pattern) > MAX_PATTERN_CHARS or re.search(r"\)[*+?{]|\(\?", plain):
        raise CheckpointError(
            f"config.json quantises {shown(pattern)}; of patterns deepzig takes those of {MAX_PATTERN_CHARS} "
            "characters, without repeated groups and (?...)"
        )
    branches = math.prod(1 + part.count("|") for part in plain.split(")"))
    return branches * 4 ** plain.count("#") * 30 ** len(re.findall(_REPEAT, plain))  # numbers are short, names are not
