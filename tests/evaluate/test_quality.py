"""What the formats may cost at most, on a text that the model was not trained on; and the table that shows it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import deepzig
from bench.quality import FABLES, FORMATS, SOURCE, Quality, run, table
from deepzig.checkpoint.convert import Options, convert
from deepzig.checkpoint.model_names import BUNDLED
from deepzig.checkpoint.recipe import Recipe
from deepzig.checkpoint.schemes import CHANNEL
from deepzig.evaluate.perplexity import evaluate

TEXT = FABLES.read_text(encoding="utf-8")
FEW = "Once upon a time there was a hare. He ran very fast."


@pytest.fixture(scope="module")
def stories() -> Iterator[deepzig.LLM]:
    with deepzig.load("stories") as llm:
        yield llm


@pytest.fixture(scope="module")
def plain_perplexity(stories: deepzig.LLM) -> float:
    return evaluate(stories, TEXT).perplexity


@pytest.mark.parametrize(
    ("recipe", "perplexity", "kl"),
    [(Recipe("int8", CHANNEL), 1e-3, 3e-3), (Recipe("int4"), 5e-3, 2.5e-2)],  # int8 in its groups is the model itself
)
def test_quantising_costs_little(
    recipe: Recipe, perplexity: float, kl: float, tmp_path: Path, stories: deepzig.LLM, plain_perplexity: float
) -> None:
    convert(BUNDLED["stories"], tmp_path / "out", Options(recipe), n_threads=2)
    with deepzig.load(tmp_path / "out") as rounded:
        result = evaluate(rounded, TEXT, reference=stories)
    assert result.tokens == 3499
    assert result.perplexity < plain_perplexity * (1 + perplexity)
    assert result.divergence is not None and result.divergence.mean_kl < kl


def test_rounding_again_changes_nothing(tmp_path: Path) -> None:
    convert(BUNDLED["stories"], tmp_path / "out", Options(Recipe("int8")))
    again, before = (folder / "model.safetensors" for folder in (tmp_path / "out", BUNDLED["stories"]))
    assert again.read_bytes() == before.read_bytes()


def test_the_table_has_a_row_for_each_format(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    convert(BUNDLED["stories"], plain, Options(Recipe("bf16")))
    results: list[Quality] = list(run(plain, {"few": FEW}, tmp_path, n_threads=2, with_speed=False))
    by_name = {result.name: result for result in results}
    assert list(by_name) == [SOURCE, *FORMATS]
    assert by_name["int4, g128"].bits_per_weight < by_name["int4, g32"].bits_per_weight
    assert by_name["int4 mix"].file_bytes < by_name["int8, g128"].file_bytes < by_name[SOURCE].file_bytes
    rows = table("few", results).rows
    assert [row[0] for row in rows] == list(by_name)
    assert rows[0][4] == "+0.000 %" and rows[0][7] == "100.00 %" and rows[0][8] == ""
