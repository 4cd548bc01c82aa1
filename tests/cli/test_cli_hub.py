"""Models of the hub on the command line: what is said, what is asked, and exit codes. The hub is a fake on loopback."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from tests.hub import FakeHub, fake_hub

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
Run = Callable[..., Result]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(GOLDEN / "v3_sharded", tmp_path / "home", monkeypatch) as running:
        yield running


def test_info_needs_no_weights(run: Run, hub: FakeHub) -> None:
    result = run("info", "-m", "org/tiny", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["model"] == "org/tiny" and "files" not in json.loads(result.stdout)
    assert not any(name.endswith(".safetensors") for name in hub.fetched())
    assert "org/tiny: " in result.stderr and " to download to " in result.stderr and "fetch: 100 %" in result.stderr


def test_a_model_by_name_can_be_converted_and_is_fetched_once(run: Run, hub: FakeHub, tmp_path: Path) -> None:
    for destination in ("one", "two"):
        result = run("quantize", "org/tiny", str(tmp_path / destination), "--format", "int8")
        assert result.exit_code == 0, result.stderr
    assert "to download" not in result.stderr
    first, *fetched = hub.fetched()
    assert first == "config.json" and len(fetched) == len(set(fetched))


@pytest.mark.parametrize(
    "command",
    [
        ("quantize", "org/tiny", "nowhere", "--format", "int8"),
        ("eval", "--text", __file__, "-m", "org/tiny"),
        ("generate", "-m", "org/tiny", "Hi"),
    ],
)
def test_large_downloads_are_refused_where_nobody_can_be_asked(
    run: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr("deepzig.checkpoint.model_names.ASKED_ABOVE", 1000)
    result = run(*command)
    assert result.exit_code == 2 and "--yes" in result.stderr
    assert hub.fetched() == ["config.json"]


def test_yes_is_a_word(run: Run, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzig.checkpoint.model_names.ASKED_ABOVE", 1000)
    assert run("quantize", "org/tiny", str(tmp_path / "out"), "--format", "int8", "--yes").exit_code == 0


@pytest.mark.parametrize(("answer", "exit_code", "fetches"), [(True, 0, True), (False, 1, False)])
def test_a_terminal_is_asked(
    run: Run, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, answer: bool, exit_code: int, fetches: bool, tmp_path: Path
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("deepzig.checkpoint.model_names.ASKED_ABOVE", 1000)
    monkeypatch.setattr("deepzig.cli.options.on_terminal", lambda: True)
    monkeypatch.setattr("click.confirm", lambda text, err: asked.append(text) or answer)
    result = run("quantize", "org/tiny", str(tmp_path / "out"), "--format", "int8")
    assert (result.exit_code, hub.fetched() != ["config.json"]) == (exit_code, fetches)
    (question,) = asked
    assert question.startswith("org/tiny: ") and " to download to " in question and question.endswith("\nGo on?")


def test_offline_exits_with_5(run: Run, hub: FakeHub) -> None:
    result = run("info", "-m", "org/tiny", "--offline")
    assert result.exit_code == 5 and "not on this machine" in result.stderr
    assert hub.requests == []
