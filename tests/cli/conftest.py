"""Fixtures of the command line's tests: commands run within the process unless a test is about the process itself."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deepzig.cli import main

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """run("info", "--json", input="..."): the command's result, with stdout and stderr apart."""

    def run_command(*arguments: str, input: str | bytes | None = None, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(main, arguments, input=input, env=env)

    return run_command


@pytest.fixture
def run_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a process of its own."""

    def run_command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 100, **options}
        return subprocess.run([sys.executable, "-m", "deepzig", *arguments], **options)

    return run_command


@pytest.fixture
def bare_config(tmp_path: Path) -> Path:
    """A folder with nothing but the config.json of DeepSeek-V3, whose fields are HF's defaults."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v3"}), encoding="utf-8")
    return tmp_path
