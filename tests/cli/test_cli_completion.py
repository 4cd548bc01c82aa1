"""Completion: what the shell offers, in a real bash where there is one."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deepzig.cli import COMMANDS, main

Run = Callable[..., Result]
BASH = shutil.which("bash")
SCRIPT = """
eval "$(deepzig completion bash)"
complete -p deepzig >&2
offers() {
    COMP_WORDS=(deepzig "$@")
    COMP_CWORD=$#
    COMPREPLY=()
    _deepzig_completion deepzig "${COMP_WORDS[COMP_CWORD]}"
    echo "${COMPREPLY[@]}"
}
"""
OFFERED = [
    (["gen"], ["generate"]),
    (["generate", "--temp"], ["--temperature"]),
    (["generate", "-m", ""], ["stories", "org/tiny--chat", "v2-lite"]),
    (["generate", "-m", "o"], ["org/tiny--chat"]),
    (["eval", "--reference", "st"], ["stories"]),
    (["quantize", "v"], ["v2-lite"]),
    (["serve", "--precision", ""], ["exact", "fast"]),
    (["completion", ""], ["bash", "zsh", "fish"]),
]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, another folder, and a model in the hub's cache."""
    for config in ("v2-lite/config.json", "hub/models--org--tiny--chat/snapshots/1234/config.json"):
        path = tmp_path / config
        path.parent.mkdir(parents=True)
        path.write_text("{}", encoding="utf-8")
    (tmp_path / "hub" / "models--org--gone" / "refs").mkdir(parents=True)
    (tmp_path / "texts").mkdir()
    (tmp_path / "deepzig").write_text(f'#!/bin/sh\nexec {sys.executable} -m deepzig "$@"\n', encoding="utf-8")
    (tmp_path / "deepzig").chmod(0o755)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(words: str, at: int, **env: str) -> str:
    """What deepzig answers its script for bash; nothing else may be said."""
    asked = {"_DEEPZIG_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    result = CliRunner().invoke(main, prog_name="deepzig", env=asked | env)
    assert result.stderr == ""
    return result.stdout


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_bash_offers(models: Path) -> None:
    script = SCRIPT + "\n".join(shlex.join(["offers", *words]) for words, _ in OFFERED)
    done = subprocess.run([str(BASH), "--norc", "-c", script], capture_output=True, text=True, timeout=100)
    assert [line.split() for line in done.stdout.splitlines()] == [offered for _, offered in OFFERED]
    assert done.stderr == "complete -o nosort -F _deepzig_completion deepzig\n"


def test_a_path_is_left_to_the_shell(models: Path) -> None:
    assert completed("deepzig info -m ./te", 3) == "dir,./te\n"


def test_a_broken_config_file_does_not_disturb(models: Path) -> None:
    (models / "broken.toml").write_text("no TOML", encoding="utf-8")
    assert completed("deepzig info -m st", 3, DEEPZIG_CONFIG=str(models / "broken.toml")) == "plain,stories\n"


@pytest.mark.parametrize(
    ("shell", "registers"),
    [
        ("bash", "complete -o nosort -F _deepzig_completion deepzig"),
        ("zsh", "#compdef deepzig"),
        ("fish", "complete --no-files --command deepzig"),
    ],
)
def test_each_shell_has_its_script(run: Run, shell: str, registers: str) -> None:
    result = run("completion", shell)
    assert (result.exit_code, result.stderr) == (0, "")
    assert registers in result.stdout and f"_DEEPZIG_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.parametrize("words", [" ", *(f" {name} -" for name in COMMANDS)])
def test_everything_can_be_completed(words: str) -> None:
    offered = completed(f"deepzig{words}", len(words.split()) or 1).split()
    assert {f"plain,{word}" for word in (("--help", "-q") if words.strip() else COMMANDS)} <= set(offered)
