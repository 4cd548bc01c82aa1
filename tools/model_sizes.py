"""The table of docs/big-models.md: what published models need, by format. `python tools/model_sizes.py` prints it.

tests/test_docs.py compares the page with it. Calls the arithmetic of `deepzig info` on the config.json of each
model in tests/published; measures nothing.
"""

from collections.abc import Iterator
from pathlib import Path

from deepzig.checkpoint.recipe import Recipe
from deepzig.checkpoint.sizes import ModelSize, converted_size, declared_size
from deepzig.config import ModelConfig
from deepzig.engine.memory_need import bytes_read_per_token, memory_need

PUBLISHED = Path(__file__).resolve().parent.parent / "tests" / "published"
MODELS = {
    "DeepSeek-V3": "DeepSeek-V3, R1, V3.1",
    "Kimi-K2-Instruct": "Kimi-K2",
    "DeepSeek-V2": "DeepSeek-V2, V2.5, Coder-V2",
    "Moonlight-16B-A3B": "Moonlight-16B-A3B",
    "DeepSeek-V2-Lite": "DeepSeek-V2-Lite, Coder-V2-Lite",
}
CONTEXT = 4096
BANDWIDTHS = (50, 100, 200, 400)  # GB/s
MACHINES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)  # GiB of memory that are sold
SPARE = 4  # GiB for the system and other programs


def table() -> str:
    """Markdown."""
    rates = " | ".join(f"{rate} GB/s" for rate in BANDWIDTHS)
    head = f"| model | format | disk, GB | memory, GB | machine, GiB | GB a token | {rates} |"
    return "\n".join([head, "|---|---|" + "---:|" * (4 + len(BANDWIDTHS)), *_rows()]) + "\n"


def _rows() -> Iterator[str]:
    for folder, name in MODELS.items():
        config = ModelConfig.from_directory(PUBLISHED / folder)
        as_published = "bf16" if config.quantization_config is None else "fp8"
        yield _row(name, f"{as_published}, as published", config, declared_size(config))
        yield _row("", "int8", config, converted_size(config, Recipe("int8")))
        yield _row("", "int4 mix", config, converted_size(config, Recipe("int4")))


def _row(name: str, form: str, config: ModelConfig, size: ModelSize) -> str:
    need = memory_need(config, size, CONTEXT).nbytes
    read = bytes_read_per_token(config, size, CONTEXT)
    machine = next(gib for gib in MACHINES if need <= (gib - SPARE) << 30)
    cells = [name, form, _digits(size.nbytes / 1e9), _digits(need / 1e9), str(machine), _digits(read / 1e9)]
    return f"| {' | '.join([*cells, *(_digits(rate * 1e9 / read, 2) for rate in BANDWIDTHS)])} |"


def _digits(number: float, n_digits: int = 3) -> str:
    return f"{number:,.0f}" if number >= 10 ** (n_digits - 1) else f"{number:#.{n_digits}g}"


if __name__ == "__main__":
    print(table(), end="")
