"""`deepzig quantize`: what it prints, what it refuses and with which exit code, in the process and as one."""

import fcntl
import hashlib
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file, save_file

import deepzig
from bench.convert import measure
from deepzig.checkpoint.safe_files import LOCK_FILE
from deepzig.cli.progress import scaled
from deepzig.errors import CheckpointError

Run = Callable[..., Result]
RunProcess = Callable[..., subprocess.CompletedProcess[str]]
GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of a tiny bf16 model."""
    return Path(shutil.copytree(GOLDEN / "v3_classic", tmp_path / "source"))


def test_a_broken_tokenizer_is_not_copied(run: Run, source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text('{"model": {}}')
    result = run("quantize", str(source), str(tmp_path / "out"), "--format", "int8")
    assert result.exit_code == 3 and "tokenizer.json" in result.stderr and not (tmp_path / "out").exists()


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def one_line_error(result: Result | subprocess.CompletedProcess[str]) -> str:
    """The error, the only one and a single line; nothing on stdout."""
    assert result.stdout == ""
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in result.stderr
    return error


@pytest.mark.parametrize("wanted", ["int8", "int4", "fp8", "fp16", "bf16"])
def test_every_format_is_written_and_loads(run: Run, source: Path, tmp_path: Path, wanted: str) -> None:
    result = run("quantize", str(source), str(tmp_path / "out"), "--format", wanted)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{tmp_path / 'out'}: ") and result.stdout.count("\n") == 1
    assert np.isfinite(deepzig.load(tmp_path / "out").logits([1, 2, 3])).all()
    assert run("verify", str(tmp_path / "out")).exit_code == 0


def test_the_result_as_json(run: Run, source: Path, tmp_path: Path) -> None:
    result = run("quantize", str(source), str(tmp_path / "out"), "--format", "int8", "--json")
    shown = json.loads(result.stdout)
    assert (shown["destination"], shown["format"], shown["resumed_files"]) == (str(tmp_path / "out"), "int8", 0)
    text = run("quantize", str(source), str(tmp_path / "again"), "--format", "int8").stdout
    assert text == f"{tmp_path / 'again'}: {scaled(shown['nbytes'], 'B')} in {shown['files']} files\n"


def test_progress_is_plain_lines_without_a_terminal(run: Run, source: Path, tmp_path: Path) -> None:
    result = run("quantize", str(source), str(tmp_path / "out"), "--format", "int8")
    (line,) = result.stderr.splitlines()
    assert line.startswith("to int8: 100 %, ") and "\x1b" not in line and "\r" not in line
    assert "/s, " in line and " tensors, model.safetensors" in line


def test_bundled_model_by_name_in_the_mix_that_calibration_makes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Hi", encoding="utf-8")
    plain = run("quantize", "stories", str(tmp_path / "plain"), "--format", "int4")
    fitted = run("quantize", "stories", str(tmp_path / "fitted"), "--format", "int4", "--calibrate",
                 str(tmp_path / "text"))  # fmt: skip
    assert plain.exit_code == fitted.exit_code == 0
    assert hashes(tmp_path / "plain")["model.safetensors"] != hashes(tmp_path / "fitted")["model.safetensors"]
    assert "calibrate: 100 %, " in fitted.stderr
    assert "No token was sent to model.layers." in fitted.stderr
    assert "No token" not in plain.stderr


def test_group_size_patterns_and_shards_are_passed_on(run: Run, tmp_path: Path) -> None:
    result = run("quantize", "stories", str(tmp_path / "out"), "--format", "int8", "--group-size", "32",
                 "--include", "*.experts.*=int4", "--exclude", "lm_head", "--shard-size", "4 MiB")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert tensors["lm_head.weight_scale"].shape[1] == 2  # groups of 128, as in the source
    for module, codes_a_word in (("model.layers.1.mlp.experts.0.gate_proj", 8), ("model.layers.0.self_attn.o_proj", 4)):
        words, groups = (tensors[f"{module}.{part}"].shape[1] for part in ("weight_packed", "weight_scale"))
        assert words * codes_a_word == groups * 32


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--format", "int7"], "int7"),
        ([], "--format"),
        (["--format", "int8", "--group-size", "48"], "48"),
        (["--format", "int8", "--include", "lm_head"], "PATTERN=FORMAT"),
        (["--format", "int8", "--shard-size", "many"], "many"),
        (["--format", "int8", "--shard-size", "9" * 400], "no size"),
        (["--format", "int8", "--calibrate", __file__], "--calibrate"),
        (["--format", "int8", "--exclude", "*.no_such"], "no_such"),
        (["--format", "bf16", "--group-size", "64"], "no group size"),
        (["--format", "fp8", "--include", "lm_head=int8"], "cannot be mixed"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, source: Path, tmp_path: Path, arguments: list[str], part: str) -> None:
    result = run("quantize", str(source), str(tmp_path / "out"), *arguments)
    assert result.exit_code == 2
    assert part in one_line_error(result)
    assert not (tmp_path / "out").exists()


def test_source_as_destination_is_refused(run: Run, source: Path) -> None:
    before = hashes(source)
    for arguments in ([], ["--resume"]):
        result = run("quantize", str(source), str(source), "--format", "int8", *arguments)
        assert result.exit_code == 3 and "same folder" in one_line_error(result)
    assert hashes(source) == before


def test_an_existing_destination_is_refused(run: Run, source: Path, tmp_path: Path) -> None:
    arguments = ("quantize", str(source), str(tmp_path / "out"), "--format", "int8")
    assert run(*arguments).exit_code == 0
    before = hashes(tmp_path / "out")
    result = run(*arguments)
    assert result.exit_code == 3
    assert "out is a finished conversion to 'int8'; give another folder" in one_line_error(result)
    assert hashes(tmp_path / "out") == before
    assert run(*arguments, "--resume").exit_code == 0  # which finds nothing to do
    assert hashes(tmp_path / "out") == before


def test_other_options_do_not_resume(run: Run, source: Path, tmp_path: Path) -> None:
    arguments = ("quantize", str(source), str(tmp_path / "out"), "--resume", "--format")
    assert run(*arguments, "int8").exit_code == 0
    result = run(*arguments, "int4")
    assert result.exit_code == 3 and "options.format was 'int8', is 'int4'" in one_line_error(result)


def test_a_missing_source_exits_with_3(run: Run, tmp_path: Path) -> None:
    result = run("quantize", str(tmp_path / "nowhere"), str(tmp_path / "out"), "--format", "int8")
    assert result.exit_code == CheckpointError.exit_code
    assert "nowhere" in one_line_error(result)
    assert not (tmp_path / "out").exists()


def test_a_scheme_that_cannot_be_read_is_named(run: Run, source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = run("quantize", str(source), str(tmp_path / "out"), "--format", "int8")
    assert result.exit_code == 3 and "awq" in one_line_error(result)


def test_non_finite_values_are_named_and_may_be_allowed(run: Run, source: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    tensors = load_file(source / "model.safetensors")
    weight = tensors[name].copy()
    weight[3, 5] = np.nan if weight.dtype != ml_dtypes.bfloat16 else ml_dtypes.bfloat16(np.nan)
    save_file({**tensors, name: weight}, source / "model.safetensors")
    arguments = ("quantize", str(source), str(tmp_path / "out"), "--format", "int8")
    result = run(*arguments)
    assert result.exit_code == 3
    assert f"'{name}' holds NaN or infinity at [3, 5]" in one_line_error(result)
    assert not (tmp_path / "out").exists()
    assert run(*arguments, "--allow-nonfinite").exit_code == 0
    assert np.isfinite(deepzig.load(tmp_path / "out").logits([1, 2, 3])).all()


def test_too_little_room_exits_with_4_before_the_first_byte(
    run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10, 9, 1000))
    result = run("quantize", str(source), str(tmp_path / "out"), "--format", "int8")
    assert result.exit_code == 4
    assert re.search(r"needs \d\d\.\d MB, 1\.0 kB are free", one_line_error(result))
    assert not (tmp_path / "out").exists()


def test_quantize_model_is_the_same_command(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (script,) = entry_points(group="console_scripts", name="quantize-model")
    monkeypatch.setattr(sys, "argv", ["quantize-model", str(source), str(tmp_path / "out"), "--format", "int8"])
    with pytest.raises(SystemExit) as ended:
        script.load()()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'}: ")


def test_the_bench_measures_a_conversion_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    found = measure(source, tmp_path / "bench", "int8", n_threads=1)
    assert found.seconds > 0 and found.copy_seconds > 0 and found.peak_anonymous_mb > 1
    assert 0 < found.written_bytes < found.source_bytes == (source / "model.safetensors").stat().st_size
    assert not (tmp_path / "bench").exists()


# ---- as a process ----------------------------------------------------------------------------------------------------


def test_as_a_process(run_process: RunProcess, source: Path, tmp_path: Path) -> None:
    done = run_process("quantize", str(source), str(tmp_path / "out"), "--format", "int8", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [done.stdout.strip()] and "to int8: 100 %" in done.stderr


def test_two_at_once_are_refused(run_process: RunProcess, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / LOCK_FILE).open("w") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_process("quantize", str(source), str(tmp_path / "out"), "--format", "int8")
    assert done.returncode == 3
    assert "another conversion (process 4711)" in one_line_error(done)


def test_a_full_disk_exits_with_4(run: Run, run_process: RunProcess, source: Path, tmp_path: Path) -> None:
    first = run("quantize", str(source), str(tmp_path / "first"), "--format", "int8")  # Numba may write its cache
    assert first.exit_code == 0

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    arguments = ("quantize", str(source), str(tmp_path / "out"), "--format", "int8", "--threads", "1")
    done = run_process(*arguments, preexec_fn=limit)
    assert done.returncode == 4
    error = one_line_error(done)
    assert " kB, " in error and " GB are free" in error and "--resume" in error
    assert run_process(*arguments, "--resume").returncode == 0


KILLED_AT_THE_THIRD_FILE = """
import os, signal, sys
from deepzig.checkpoint import convert
from deepzig.cli import main
from deepzig.cli.progress import scaled

def record_of(path, n_tensors, original=convert.record_of, seen=[]):
    seen.append(path)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(path, n_tensors)

convert.record_of = record_of
main(sys.argv[1:])
"""


def test_killed_and_resumed_gives_the_same_bytes(run: Run, run_process: RunProcess, tmp_path: Path) -> None:
    whole, out, options = tmp_path / "whole", tmp_path / "out", ("--format", "int8", "--shard-size", "1MB")
    assert run("quantize", "stories", str(whole), *options).exit_code == 0
    command = [sys.executable, "-c", KILLED_AT_THE_THIRD_FILE, "quantize", "stories", str(out), *options]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not (out / "config.json").exists()
    done = run_process("quantize", "stories", str(out), *options, "--resume")
    assert done.returncode == 0 and "2 of them finished before" in done.stdout
    assert hashes(out) == hashes(whole)
