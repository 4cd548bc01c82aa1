"""open_checkpoint: which files of a folder make the checkpoint, and what an index may say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deepzig.checkpoint.directory import INDEX_FILE, open_checkpoint
from deepzig.checkpoint.model_names import find_model
from deepzig.errors import CheckpointError


def save(path: Path, **tensors: int) -> None:
    save_file({name: np.full((2, 2), value, dtype=np.float32) for name, value in tensors.items()}, path)


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save(tmp_path / "one.safetensors", a=1, b=2)
    save(tmp_path / "two.safetensors", c=3)
    write_index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    return tmp_path


def test_single_file(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", a=1, b=2)
    checkpoint = open_checkpoint(str(tmp_path))
    assert sorted(checkpoint.infos) == ["a", "b"]
    assert checkpoint.nbytes == 32
    assert checkpoint.files == [tmp_path / "model.safetensors"]
    assert checkpoint.info("b").shape == (2, 2) and checkpoint.info("b").dtype == "F32"
    np.testing.assert_array_equal(checkpoint.array("b"), np.full((2, 2), 2, dtype=np.float32))


def test_shards(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert sorted(checkpoint.infos) == ["a", "b", "c"]
    assert checkpoint.files == [sharded / "one.safetensors", sharded / "two.safetensors"]
    assert [checkpoint.array(name)[0, 0] for name in "abc"] == [1, 2, 3]
    assert not checkpoint.array("c").flags.writeable


def test_lone_file_of_another_name(tmp_path: Path) -> None:
    save(tmp_path / "weights.safetensors", a=1)
    save(tmp_path / ".hidden.safetensors", b=1)
    assert list(open_checkpoint(tmp_path).infos) == ["a"]


def test_model_safetensors_wins_over_an_index(sharded: Path) -> None:
    save(sharded / "model.safetensors", d=4)
    assert list(open_checkpoint(sharded).infos) == ["d"]


def test_tensor_that_the_index_leaves_out_is_still_there(sharded: Path) -> None:
    write_index(sharded, {"a": "one.safetensors", "c": "two.safetensors"})
    assert sorted(open_checkpoint(sharded).infos) == ["a", "b", "c"]


def test_several_files_without_index(sharded: Path) -> None:
    (sharded / INDEX_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"2 \.safetensors files but no model\.safetensors\.index\.json"):
        open_checkpoint(sharded)


def test_no_folder_and_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        open_checkpoint(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no folder"):
        open_checkpoint(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model-Q4_K_M.gguf"])
def test_other_formats_are_named_and_never_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    advice = "fetch the original" if name.endswith(".gguf") else "convert"
    for read in (open_checkpoint, find_model):  # the latter's folder has no config.json either
        with pytest.raises(CheckpointError, match=f"{name}.*{advice}"):
            read(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        "../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "C:\\one.safetensors", "C:one.safetensors",
        "..\\one.safetensors", "one.safetensors\0", "o\0ne.safetensors", "one.bin", "..", "", ".safetensors",
        "x" * 300 + ".safetensors", "one\x1b[31m.safetensors", "one\n.safetensors", 3, None, ["one.safetensors"],
    ],
)  # fmt: skip
def test_weight_map_holds_base_names_only(shard: Any, sharded: Path) -> None:
    write_index(sharded, {"a": "one.safetensors", "c": shard})
    with pytest.raises(CheckpointError, match="weight_map") as caught:
        open_checkpoint(sharded)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "JSON object"),
        (b"[]", "JSON object"),
        (b"{", "valid JSON"),
        (b'{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "'a' occurs twice"),
        (b'{"weight_map": {}}', "no weight_map"),
        (b'{"weight_map": []}', "no weight_map"),
        (b"{}", "no weight_map"),
        (b'{"weight_map":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested"),
        (b'{"\xff": 1}', "valid JSON"),
    ],
)
def test_malformed_index(index: bytes, message: str, sharded: Path) -> None:
    (sharded / INDEX_FILE).write_bytes(index)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(sharded)


def test_link_out_of_the_folder(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.safetensors"
    save(outside, c=5)
    (sharded / "two.safetensors").unlink()
    (sharded / "two.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="link that leads out"):
        open_checkpoint(sharded)


def test_links_within_the_folder_and_into_the_hub_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save(blobs / "beef", a=1)
    (snapshot / "one.safetensors").symlink_to("../../blobs/beef")
    save(snapshot / "two-really.safetensors", c=3)
    (snapshot / "two.safetensors").symlink_to("two-really.safetensors")
    write_index(snapshot, {"a": "one.safetensors", "c": "two.safetensors"})
    (tmp_path / "link").symlink_to(snapshot)
    assert list(open_checkpoint(snapshot).infos) == list(open_checkpoint(tmp_path / "link").infos) == ["a", "c"]


def test_link_to_itself(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    (sharded / "two.safetensors").symlink_to("two.safetensors")
    with pytest.raises(CheckpointError, match=r"two\.safetensors"):
        open_checkpoint(sharded)


def test_an_index_of_too_many_shards(sharded: Path) -> None:
    write_index(sharded, {str(i): f"{i}.safetensors" for i in range(10_001)})
    with pytest.raises(CheckpointError, match="10001 shards"):
        open_checkpoint(sharded)


def test_missing_shard(sharded: Path) -> None:
    (sharded / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 shards, the first 'two\.safetensors'"):
        open_checkpoint(sharded)


def test_truncated_shard_is_named(sharded: Path) -> None:
    content = (sharded / "two.safetensors").read_bytes()
    (sharded / "two.safetensors").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"'c' of .*two\.safetensors"):
        open_checkpoint(sharded)


def test_tensor_in_another_shard_or_in_none(sharded: Path) -> None:
    write_index(sharded, {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"'b' into 'two\.safetensors', but it lies in another"):
        open_checkpoint(sharded)
    write_index(sharded, {"a": "one.safetensors", "c": "two.safetensors", "d": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"'d' into 'two\.safetensors', but no shard has it"):
        open_checkpoint(sharded)


def test_tensor_in_two_shards(sharded: Path) -> None:
    save(sharded / "two.safetensors", b=7, c=3)
    with pytest.raises(CheckpointError, match=r"'b' lies in both one\.safetensors and two\.safetensors"):
        open_checkpoint(sharded)


def test_unknown_tensor(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    for ask in (checkpoint.array, checkpoint.info):
        with pytest.raises(CheckpointError, match="no tensor 'x'"):
            ask("x")
