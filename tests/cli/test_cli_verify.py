"""`deepzig verify`: what it prints, as text and as JSON, and its exit codes."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]
GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.fixture
def converted(run: Run, tmp_path: Path) -> Path:
    assert run("quantize", str(GOLDEN / "v3_classic"), str(tmp_path / "out"), "--format", "int8").exit_code == 0
    return tmp_path / "out"


def test_a_sound_folder(run: Run, converted: Path) -> None:
    result = run("verify", str(converted))
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{converted}: ") and result.stdout.endswith("sound; hashes as in the manifest\n")
    assert "verify, reading twice: 100 %" in result.stderr


def test_the_bundled_model_by_its_name(run: Run) -> None:
    result = run("verify", "stories")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("stories: ") and " in 1 file: sound" in result.stdout


def test_a_folder_that_others_wrote(run: Run) -> None:
    result = run("verify", str(GOLDEN / "v3_sharded"))
    assert result.exit_code == 0
    assert "in 3 files: sound; no manifest, so no hashes to compare" in result.stdout


def test_small_files_are_read_as_loading_does(run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "v3_classic", tmp_path / "model")
    result = run("verify", str(folder))
    assert result.exit_code == 0 and "no tokenizer: prompts must be token ids" in result.stderr
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\n")
        result = run("verify", str(folder))
        (line,) = [line for line in result.stdout.splitlines() if name in line]
        assert result.exit_code == 3 and line.startswith(f"{folder / name} is a Git LFS pointer")
        assert ": 1 problem" in result.stdout
        (folder / name).unlink()


def test_json(run: Run, converted: Path) -> None:
    result = run("verify", str(converted), "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert report["problems"] == [] and report["has_manifest"] is True and report["files"] == 1
    assert report["nbytes"] <= (converted / "model.safetensors").stat().st_size


def test_a_flipped_bit_exits_with_3(
    run: Run, run_process: Callable[..., subprocess.CompletedProcess[str]], converted: Path
) -> None:
    path = converted / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = run_process("verify", str(converted))
    assert done.returncode == 3
    assert "'model.safetensors' is not what was written: its hash differs" in done.stdout
    assert done.stdout.endswith(" in 1 file: 1 problem\n")
    assert done.stderr.splitlines()[-1] == f"Error: {converted} is not sound; fetch it again, or convert it again"
    result = run("verify", str(converted), "--json")
    assert result.exit_code == 3 and len(json.loads(result.stdout)["problems"]) == 1


def test_a_missing_shard_exits_with_3(run: Run, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "v3_sharded", tmp_path / "copy")
    (tmp_path / "copy" / "model-00002-of-000003.safetensors").unlink()
    result = run("verify", str(tmp_path / "copy"))
    assert result.exit_code == 3
    assert "model-00002-of-000003.safetensors" in result.stdout + result.stderr


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_no_model_exits_with_3(run: Run, tmp_path: Path, name: str) -> None:
    result = run("verify", str(tmp_path / name))
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search every folder")
def test_a_folder_that_may_not_be_searched_exits_with_3(run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "v3_classic", tmp_path / "model")
    folder.chmod(0)
    try:
        result = run("verify", str(folder))
        assert result.exit_code == 3 and "Permission denied" in result.stdout
    finally:
        folder.chmod(0o700)
