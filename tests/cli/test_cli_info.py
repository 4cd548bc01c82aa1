"""`deepzig info`: the arithmetic of config.json, and what it finds in folders with and without weights."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result

from deepzig.checkpoint.sizes import ParameterCount
from deepzig.cli import main

Run = Callable[..., Result]
GOLDEN = Path(__file__).resolve().parent.parent / "golden"
PUBLISHED = Path(__file__).resolve().parent.parent / "published"
V3 = PUBLISHED / "DeepSeek-V3"
V2_LITE = PUBLISHED / "DeepSeek-V2-Lite"  # has a tenth of V3's tensors to add up
GB = 10**9


def shown(result: Result) -> dict[str, Any]:
    """The object that --json printed."""
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def set_machine(patch: pytest.MonkeyPatch, available: int, allocatable: int | None = None) -> None:
    """So much memory, which is read at 100 GB/s."""
    patch.setattr("deepzig.memory.available_memory", lambda: available)
    patch.setattr("deepzig.memory.allocatable_memory", lambda: allocatable or available)
    patch.setattr("deepzig.evaluate.read_speed.read_bandwidth", lambda n_threads: 100e9)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch, 64 * GB)


@pytest.fixture(scope="module")
def v3() -> Iterator[dict[str, Any]]:
    """What --json says of DeepSeek-V3's config.json."""
    with pytest.MonkeyPatch.context() as patch:
        set_machine(patch, 64 * GB)
        yield shown(CliRunner().invoke(main, ["info", "-m", str(V3), "--json"]))


def lines_of(result: Result) -> dict[str, str]:
    """What the text says, by its first column."""
    assert result.exit_code == 0, result.stderr
    return {line[:18].strip(): line[18:].strip() for line in result.stdout.splitlines()}


def test_config_alone_is_enough(v3: dict[str, Any]) -> None:
    assert v3["family"] == "DeepSeek-V3 family (deepseek_v3)"
    assert v3["parameters"] == {"total": 671_026_419_200, "active": 36_625_618_432, "mtp": 11_610_068_224}
    assert (v3["layers"], v3["moe_layers"], v3["experts"]) == (61, 58, 256)
    assert not {"files", "mtp_stored"} & v3.keys()
    assert v3["bytes"] == 688_574_839_360
    assert list(v3["formats"]["routed experts"]) == ["fp8"] and list(v3["formats"]["head"]) == ["bf16"]
    assert (v3["tokenizer"], v3["chat_template"]) == (False, False)


def test_sums_of_memory_and_speed(v3: dict[str, Any]) -> None:
    now = v3["as_it_is"]
    memory = now["memory"]
    assert memory["needed"] == memory["weights"] + memory["cache"] + memory["work"]
    assert (memory["weights"], memory["cache"]) == (v3["bytes"], 4096 * 62 * 576 * 4)
    assert v3["cache_bytes_per_1k_tokens"] == 1000 * 62 * 576 * 4
    weights = now["bytes_per_token"] - 4096 * 61 * 576 * 4
    assert 1.02 < weights / v3["parameters"]["active"] < 1.03  # fp8, and a bf16 head
    assert now["tokens_per_s_at_most"] == pytest.approx(100e9 / now["bytes_per_token"])
    assert (now["in_memory"], now["can_run"], v3["available"]) == (False, True, 64 * GB)


def test_other_formats_are_compared(v3: dict[str, Any]) -> None:
    int8, int4 = v3["conversions"]
    assert (int8["format"], int4["format"]) == ("int8", "int4")
    assert int4["bytes"] < 0.6 * v3["bytes"] < int8["bytes"]
    assert int4["memory"]["needed"] - int4["bytes"] == int8["memory"]["needed"] - int8["bytes"]


@pytest.mark.parametrize(
    ("options", "cache"),
    [
        (("--context", "1000"), 1024 * 27 * 576 * 4),
        (("--context", "163840"), 163840 * 27 * 576 * 4),
        (("--cache-dtype", "int8"), 4096 * 27 * 580),
    ],
)
def test_context_and_dtype_of_the_cache_are_the_users(run: Run, options: tuple[str, ...], cache: int) -> None:
    found = shown(run("info", "-m", str(V2_LITE), "--json", *options))
    assert found["as_it_is"]["memory"]["cache"] == cache


def test_a_context_that_the_model_lacks_is_an_error(run: Run) -> None:
    result = run("info", "-m", str(V2_LITE), "--context", "163841")
    assert result.exit_code == 2 and "163840" in result.stderr


def test_bundled_model(run: Run) -> None:
    result = run("info", "--json")
    found = shown(result)
    assert "'stories'" in result.stderr
    assert ParameterCount(**found["parameters"]) == ParameterCount(10_600_192, 4_833_024, 2_049_488)
    assert found["files"] == 1
    assert found["mtp_stored"] and found["tokenizer"] and found["chat_template"]
    assert found["bytes"] >= sum(size for group in found["formats"].values() for size in group.values())
    assert found["as_it_is"]["format"] == "int8" and found["as_it_is"]["in_memory"]
    assert [form["format"] for form in found["conversions"]] == ["int4"]
    assert found["stated_context"] == found["context"] == 1024


def test_text_names_the_same_facts(run: Run) -> None:
    lines = lines_of(run("info"))
    assert lines["family"] == "DeepSeek-V3 family (deepseek_v3)"
    assert lines["parameters"] == "10.6 M, 4.83 M of them read for each token"
    assert lines["memory"] == "70.1 MB: weights 13.9 MB + work 54.2 MB + cache 1.97 MB of 1024 tokens"
    assert lines["available"] == "64 GB: all of it fits"
    assert lines["decoding"] == "at most 15238 tok/s: 6.56 MB a token at 100 GB/s, estimated now"
    assert lines["tokenizer"] == "yes"
    assert lines["chat template"] == "yes, without roles: this model has not been taught to chat"
    assert "cython" in lines["kernels"] or "numba" in lines["kernels"]


def test_weights_that_stream_are_said_to(run: Run) -> None:
    result = run("info", "-m", str(V3))
    lines = lines_of(result)
    assert lines["weights"] == "689 GB, none in the folder; computed from config.json"
    assert lines["available"] == "64 GB: weights stream from disk"
    assert lines["decoding"] == (
        "bound by the disk, which gives up to 38.2 GB a token; with all in memory at most 2.6 tok/s, at 100 GB/s, "
        "estimated now"
    )
    assert result.stdout.splitlines()[-4:] == [
        "format    on disk  in memory  read per token  at most tok/s",
        "fp8        689 GB     692 GB         38.2 GB  bound by disk",
        "int8       694 GB     697 GB         37.9 GB  bound by disk",
        "int4 mix   372 GB     375 GB           28 GB  bound by disk",
    ]


def test_what_loading_would_refuse_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch, 16 * GB, GB // 2)
    lines = lines_of(run("info", "-m", str(V2_LITE)))
    assert lines["available"] == "500 MB: too little for work and cache, loading is refused"


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("model", ["stories", str(V2_LITE)], ids=["in memory", "from disk"])
def test_lines_fit_terminals(run: Run, monkeypatch: pytest.MonkeyPatch, columns: int, model: str) -> None:
    set_machine(monkeypatch, 4 * GB)
    unwrapped = run("info", "-m", model).stdout
    monkeypatch.setattr("deepzig.cli.tables.stdout_width", lambda: columns)
    lines = run("info", "-m", model).stdout.splitlines()
    assert max(len(line) for line in lines if model not in line) <= columns
    above_the_table = ["\n".join(lines).split("\n\n")[0].split(), unwrapped.split("\n\n")[0].split()]
    assert above_the_table[0] == above_the_table[1]


def test_a_template_that_fails_is_told(run: Run, tmp_path: Path) -> None:
    shutil.copy(V2_LITE / "config.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ 1 / 0 }}", encoding="utf-8")
    assert lines_of(run("info", "-m", str(tmp_path)))["chat template"].startswith("fails: ")


def test_formats_of_an_fp8_checkpoint(run: Run) -> None:
    formats = shown(run("info", "-m", str(GOLDEN / "v3_fp8"), "--json"))["formats"]
    assert "fp8" in formats["routed experts"]
    assert "fp8" not in formats["embedding"]


def test_finite_tensors_pass(run: Run) -> None:
    found = shown(run("info", "-m", str(GOLDEN / "v3_fp8"), "--check-tensors", "--json"))
    assert found["non_finite"] == []


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_a_nan_is_found_and_named(run: Run, tmp_path: Path, name: str) -> None:
    source = GOLDEN / "v3_classic"
    shutil.copy(source / "config.json", tmp_path)
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
    tensors[name].reshape(-1)[-1] = np.nan
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    result = run("info", "-m", str(tmp_path), "--check-tensors", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["non_finite"] == [name]
    assert result.stderr.startswith("Error: ") and repr(name) in result.stderr and "`deepzig verify`" in result.stderr


def test_checking_without_weights_is_an_error(run: Run, bare_config: Path) -> None:
    result = run("info", "-m", str(bare_config), "--check-tensors")
    assert result.exit_code == 3
    assert result.stderr.count("\n") == 1


def test_weights_that_do_not_fit_the_config_exit_with_3(run: Run, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "v3_classic", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"kv_lora_rank": 8}), encoding="utf-8")
    result = run("info", "-m", str(tmp_path))
    assert result.exit_code == 3
    assert "kv_a_proj_with_mqa" in result.stderr


def test_unsupported_model_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v32"}', encoding="utf-8")
    result = run("info", "-m", str(tmp_path))
    assert result.exit_code == 3
    assert "deepseek_v32" in result.stderr
