"""`deepzig eval`: what it prints, as text and as JSON, and its exit codes."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import deepzig
from deepzig.evaluate.perplexity import evaluate

Run = Callable[..., Result]
TEXT = "Once upon a time there was a little girl.\n<|endoftext|>\nA boy had a red ball. He liked to play with it.\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_table(run: Run, text: Path) -> None:
    result = run("eval", "-m", "stories", "--text", str(text))
    assert result.exit_code == 0, result.stderr
    found = evaluate(deepzig.load("stories"), TEXT)
    lines = [line.split(None, 1) for line in result.stdout.splitlines()]
    assert ["perplexity", f"{found.perplexity:.4f}"] in lines
    assert ["tokens", f"{found.tokens} in 2 documents"] in lines
    assert "KL" not in result.stdout
    assert "eval: 100 %" in result.stderr


def test_json_with_a_reference(run_process: Callable[..., subprocess.CompletedProcess[str]], text: Path) -> None:
    sizes = ("--window", "16", "--stride", "4")
    done = run_process("eval", "--text", str(text), "--reference", "stories", *sizes, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["model"] == shown["reference"] == "stories" and shown["text"] == str(text)
    assert shown["window"] == 16 and shown["stride"] == 4 and shown["documents"] == 2
    assert shown["divergence"] == {"mean_kl": pytest.approx(0, abs=1e-9), "p99_kl": pytest.approx(0, abs=1e-9),
                                   "same_top": 1.0}  # fmt: skip
    assert "bundled model" in done.stderr


def test_table_with_a_reference(run: Run, text: Path, tmp_path: Path) -> None:
    run("quantize", "stories", str(tmp_path / "int4"), "--format", "int4")
    result = run("eval", "-m", str(tmp_path / "int4"), "--reference", "stories", "--text", str(text))
    assert result.exit_code == 0, result.stderr
    values = dict(line.rsplit("  ", 1) for line in result.stdout.splitlines() if "  " in line)
    kl = next(value for name, value in values.items() if name.startswith("mean KL"))
    assert float(kl.removesuffix(" nats")) > 0
    assert "same top token" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--window", "1"], "window"),
        (["--window", "5000"], "context"),
        (["--window", "10", "--stride", "11"], "stride"),
        (["--text", "/no/such/file"], "/no/such/file"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, text: Path, arguments: list[str], part: str) -> None:
    result = run("eval", "-m", "stories", "--text", str(text), *arguments)
    assert result.exit_code == 2
    assert part in result.stderr and result.stdout == ""


@pytest.mark.parametrize(("content", "part"), [(b"", "text"), (b"a \xff", "UTF-8 at byte 2")])
def test_texts_that_are_none_exit_with_2(run: Run, text: Path, content: bytes, part: str) -> None:
    text.write_bytes(content)
    result = run("eval", "-m", "stories", "--text", str(text))
    assert result.exit_code == 2 and part in result.stderr


def test_another_vocabulary_is_refused(run: Run, text: Path) -> None:
    other = Path(__file__).resolve().parent.parent / "golden" / "v3_classic"
    result = run("eval", "-m", "stories", "--reference", str(other), "--text", str(text))
    assert result.exit_code == 2 and "vocabularies of" in result.stderr


def test_a_missing_model_exits_with_3(run: Run, text: Path) -> None:
    result = run("eval", "-m", "/no/such/model", "--text", str(text))
    assert result.exit_code == 3 and "/no/such/model" in result.stderr
