"""The developers' bench: figures against a calculation from the same times, and what it does when something fails."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from bench import decode, peers
from bench.__main__ import main
from bench.decode import ModelBench
from bench.engine import EngineBench
from bench.startup import PYTHON, seconds_to_first_byte
from deepzig.checkpoint.directory import open_checkpoint
from deepzig.checkpoint.loader import load_weights
from deepzig.checkpoint.model_names import BUNDLED
from deepzig.config import ModelConfig


def test_tokens_before_the_last_first_one_do_not_speed_up_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers of 5 tokens: one from 1 s to 5 s, the other, submitted at 3 s, from 4 s to 8 s."""
    clock = iter([0.0, 0.0, 3.0] * 3)  # start, then both submissions, of each repetition
    monkeypatch.setattr("bench.engine.perf_counter", lambda: next(clock))
    waits = iter([1.0, 1.0] * 3)

    def submit(*_: Any) -> Any:
        timings = SimpleNamespace(first_token_s=next(waits), decode_s=4.0)
        return SimpleNamespace(result=lambda: SimpleNamespace(timings=timings))

    bench = EngineBench("stories", "stories")
    monkeypatch.setattr(bench, "llm", SimpleNamespace(submit=submit, config=bench.llm.config))
    monkeypatch.setattr(bench, "_step_seconds", lambda *_: 1.0)
    found = bench.together(2, 3, 5)
    assert found.tokens_per_s == pytest.approx(2 * 5 / 8)
    assert found.decode_tokens_per_s == pytest.approx(2 * 4 / 7)
    assert (found.longest_wait, found.longest_first) == (1.0, 1.0)


def test_the_engine_decodes_without_guesses_as_the_model_beside_it() -> None:
    bench = ModelBench("stories", n_threads=2, precision="exact")
    assert bench.stream() > 0
    assert bench.llm.stats().drafted_tokens == 0


def test_weights_that_a_model_uses_twice_are_stored_once() -> None:
    folder = BUNDLED["stories"]
    weights = load_weights(open_checkpoint(folder), ModelConfig.from_directory(folder))
    stored = [*decode.stored_weights(weights.linear), *weights.vector.values()]
    file_bytes = (folder / "model.safetensors").stat().st_size
    assert 0.98 * file_bytes < sum(each.nbytes for each in stored) < file_bytes


def test_a_command_that_prints_nothing_has_no_time_to_its_first_byte() -> None:
    assert seconds_to_first_byte(PYTHON) > 0
    with pytest.raises(RuntimeError, match="printed nothing"):
        seconds_to_first_byte([sys.executable, "-c", "raise SystemExit(1)"])


def test_an_interrupt_leaves_no_half_of_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFWriter=object))
    gguf_file = importlib.import_module("bench.gguf_file")

    def interrupt(_config: object, path: Path) -> None:
        path.write_bytes(b"GGUF")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_file, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gguf_file.ensure_gguf(1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_peers_are_measured_as_often_as_deepzig() -> None:
    prompts, steps = [], []
    peers._rates(lambda ids: prompts.append(len(ids)), steps.append)
    assert prompts == [peers.PROMPT] * (1 + decode.REPEATS) + [peers.CONTEXT]  # one warms up
    assert len(steps) == 1 + decode.REPEATS * decode.DECODE_TOKENS


def test_the_file_of_a_peer_is_there_before_any_time_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    rate = SimpleNamespace(tokens_per_s=1.0)

    def measured(*_: object) -> SimpleNamespace:
        done.append("deepzig")
        return SimpleNamespace(prefill=[rate], decoding=[rate])

    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(peers, "ensure", lambda *_: tmp_path)
    monkeypatch.setattr(peers, "_file_for", lambda *_: done.append("file") or tmp_path)
    monkeypatch.setattr(peers, "decode_process", measured)
    monkeypatch.setattr(peers, "_process", lambda *_: done.append("peer") or (1.0, 1.0))
    assert len(list(peers.run(1, tmp_path, 1))) == len(peers.PEERS)
    assert done == ["file", "deepzig", "deepzig", "peer"] * len(peers.PEERS)


@pytest.mark.parametrize("option", ["--json-out", "--plot"])
def test_a_folder_that_is_missing_is_told_before_all_is_measured(option: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--sections", "gemm", option, str(tmp_path / "none" / "file")])
    assert result.exit_code == 2 and "there is no folder" in result.output
