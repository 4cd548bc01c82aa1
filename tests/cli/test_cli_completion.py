"""Completion: what the shell offers, in a real bash where there is one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from deepzig.cli import COMMANDS

Run = Callable[..., Result]
BASH = shutil.which("bash")
SCRIPT = """
eval "$(deepzig completion bash)"
complete -p deepzig >&2
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_deepzig_completion deepzig "${COMP_WORDS[COMP_CWORD]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


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


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["gen"], ["generate"]),
        (["generate", "--temp"], ["--temperature"]),
        (["generate", "-m", ""], ["stories", "org/tiny--chat", "v2-lite"]),
        (["generate", "-m", "o"], ["org/tiny--chat"]),
        (["eval", "--reference", "st"], ["stories"]),
        (["quantize", "v"], ["v2-lite"]),
        (["serve", "--precision", ""], ["exact", "fast"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
    ],
)
def test_bash_offers(models: Path, words: list[str], offered: list[str]) -> None:
    command = [str(BASH), "--norc", "-c", SCRIPT, "bash", "deepzig", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == offered
    assert done.stderr == "complete -o nosort -F _deepzig_completion deepzig\n"


def test_a_path_is_left_to_the_shell(run: Run, models: Path) -> None:
    env = {"_DEEPZIG_COMPLETE": "bash_complete", "COMP_WORDS": "deepzig info -m ./te", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-m", "deepzig"], env=os.environ | env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("dir,./te\n", "")


def test_a_broken_config_file_does_not_disturb(models: Path) -> None:
    (models / "broken.toml").write_text("no TOML", encoding="utf-8")
    env = {"_DEEPZIG_COMPLETE": "bash_complete", "COMP_WORDS": "deepzig info -m st", "COMP_CWORD": "3"}
    env["DEEPZIG_CONFIG"] = str(models / "broken.toml")
    done = subprocess.run([sys.executable, "-m", "deepzig"], env=os.environ | env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("plain,stories\n", "")


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
    typed = {"COMP_WORDS": f"deepzig{words}", "COMP_CWORD": str(len(words.split()) or 1)}
    env = {"_DEEPZIG_COMPLETE": "bash_complete"} | typed
    done = subprocess.run([sys.executable, "-m", "deepzig"], env=os.environ | env, capture_output=True, text=True)
    assert done.stderr == ""
    assert {f"plain,{word}" for word in (("--help", "-q") if words.strip() else COMMANDS)} <= set(done.stdout.split())
