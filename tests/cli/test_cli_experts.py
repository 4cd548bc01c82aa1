"""`deepzig info --experts`: the table and its JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

import deepzig

Run = Callable[..., Result]
TEXT = "Once upon a time there was a little cat. The cat had a red ball."


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def load_of_text() -> dict[int, np.ndarray]:
    """Layer -> i64 (E,), without BOS."""
    topk_idx = deepzig.load("stories").trace(TEXT).topk_idx
    return {layer: np.bincount(chosen[1:].ravel(), minlength=16) for layer, chosen in topk_idx.items()}


def test_json_has_the_load_of_the_trace(run: Run, text: str) -> None:
    result = run("info", "--experts", "--text", text, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["expert_load"]
    load = load_of_text()
    assert found["tokens"] * 4 == sum(found["layers"][0]["tokens"])
    assert {layer["layer"]: layer["tokens"] for layer in found["layers"]} == {n: load[n].tolist() for n in load}


def test_the_table_has_a_bar_for_each_expert(run: Run, text: str) -> None:
    result = run("info", "--experts", "--text", text)
    load = load_of_text()
    rows = {int(line.split()[0]): line.split() for line in result.stdout.splitlines() if line.strip()[:1].isdigit()}
    assert rows.keys() == load.keys()
    for layer, tokens in load.items():
        bars = rows[layer][-1]
        assert len(bars) == len(tokens)
        assert bars[tokens.argmax()] == "█" and bars.count("·") == (tokens == 0).sum() == int(rows[layer][1])


@pytest.mark.parametrize("options", [("--experts",), ("--text", "FILE")])
def test_experts_and_text_go_together(run: Run, text: str, options: tuple[str, ...]) -> None:
    result = run("info", *(text if option == "FILE" else option for option in options))
    assert result.exit_code == 2
    assert "go together" in result.stderr


def test_a_file_that_is_no_text_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"abc \xff")
    result = run("info", "--experts", "--text", str(tmp_path / "bad"))
    assert result.exit_code == 2
    assert "UTF-8 at byte 4" in result.stderr
