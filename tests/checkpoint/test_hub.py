"""Models by name: what is fetched, when, what is not, and downloads that end early. The hub is a fake on loopback."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepzig
from deepzig.checkpoint import hub as hub_module
from deepzig.checkpoint.hub import HubModel, find, missing
from deepzig.checkpoint.model_names import find_model
from deepzig.errors import CheckpointError, ConfigError, NetworkError, RequestError, ResourceError
from tests.hub import COMMIT, FakeHub, fake_hub

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
TINY = HubModel("org/tiny")
WEIGHTS = sorted(path.name for path in (GOLDEN / "v3_sharded").glob("*.safetensors"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Has the tiny sharded model, and files that nobody asked for."""
    source = Path(shutil.copytree(GOLDEN / "v3_sharded", tmp_path / "source"))
    (source / "modeling_deepseek.py").write_text("raise SystemExit", encoding="utf-8")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "original").mkdir()
    (source / "original" / "weights.safetensors").write_bytes(b"twice")
    (source / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    with fake_hub(source, tmp_path / "home", monkeypatch) as running:
        yield running


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("org/tiny", TINY),
        ("deepseek-ai/DeepSeek-V2-Lite@refs/pr/1", HubModel("deepseek-ai/DeepSeek-V2-Lite", "refs/pr/1")),
        ("org/tiny@v1", HubModel("org/tiny", "v1")),
        ("./org/tiny", None), ("org", None), ("a/b/c", None), ("org/tiny@", None), ("../tiny", None), ("/o/tiny", None),
        (f"org/{'x' * 300}", None), ("org/a--b", None),
    ],
)  # fmt: skip
def test_names(name: str, model: HubModel | None) -> None:
    assert HubModel.parse(name) == model


def test_a_model_is_fetched_once_and_loads(hub: FakeHub) -> None:
    llm = deepzig.load("org/tiny")
    expected = np.load(GOLDEN / "v3_sharded" / "expected.npz")
    np.testing.assert_allclose(llm.logits(expected["ids"].tolist()), expected["logits"], rtol=0, atol=2e-4)
    wanted = {name for name in hub.files if name.endswith((".safetensors", "config.json", "index.json"))}
    assert set(hub.fetched()) == wanted - {"original/weights.safetensors"}
    hub.requests.clear()
    assert deepzig.load("org/tiny").name == "org/tiny"
    assert hub.requests == []


def test_nothing_else_reaches_for_the_network(hub: FakeHub) -> None:
    for model in ("stories", GOLDEN / "v3_classic"):
        deepzig.load(model)
    with pytest.raises(CheckpointError, match="is no folder and no name"):
        deepzig.load("no_such_model")
    assert hub.requests == []


@pytest.mark.parametrize(("name", "kind"), [("model.gguf", "a GGUF file, which deepzig"), ("config.json", "a file;")])
def test_a_file_in_place_of_a_folder(hub: FakeHub, tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=f"is {kind}.* give a folder that holds config.json and safetensors$"):
        deepzig.load(tmp_path / name)
    assert hub.requests == []


def test_config_alone_is_enough_where_no_weights_are_asked_for(hub: FakeHub) -> None:
    directory = find_model("org/tiny", with_weights=False)
    assert (directory / "config.json").exists() and not list(directory.glob("*.safetensors"))
    assert find(TINY, with_weights=False) == directory and find(TINY, with_weights=True) is None


def test_a_revision_is_another_model(hub: FakeHub) -> None:
    assert find_model("org/tiny@v1").name == COMMIT
    assert find(HubModel("org/tiny", "v1"), with_weights=True) and find(TINY, with_weights=True) is None
    with pytest.raises(NetworkError, match="has no revision 'v9'"):
        find_model("org/tiny@v9")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub takes small parts and does not wait before it tries again."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.mark.usefixtures("impatient")
def test_a_connection_that_breaks_off_is_taken_up_again(hub: FakeHub) -> None:
    name = max(WEIGHTS, key=lambda name: len(hub.files[name]))
    hub.fails_after[name] = [len(hub.files[name]) // 2]
    download, reached = missing(TINY, True), []
    directory = hub_module.fetch(download, lambda done, total, file: reached.append(done))
    first, second = [asked for method, path, asked in hub.requests if method == "GET" and path.endswith(name)]
    assert first == "" and 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= len(hub.files[name]) // 2
    assert (directory / name).read_bytes() == hub.files[name]
    assert reached == sorted(reached) and reached[-1] == download.nbytes


@pytest.mark.usefixtures("impatient")
def test_a_run_that_fails_keeps_the_files_that_are_whole(hub: FakeHub) -> None:
    hub.fails_after[WEIGHTS[1]] = [500] * 10
    with pytest.raises(NetworkError, match=r"cannot fetch org/tiny from .*give the same command again"):
        hub_module.fetch(missing(TINY, True))
    assert find(TINY, with_weights=False) is None
    hub.fails_after.clear()
    hub.requests.clear()
    directory = find_model("org/tiny")
    assert set(hub.fetched()) == {*WEIGHTS[1:], "config.json"}
    assert all((directory / name).read_bytes() == hub.files[name] for name in WEIGHTS)
    assert find(TINY, with_weights=True) == directory


@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors"])
def test_weights_in_one_file_of_any_name_are_whole(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for shard in (*WEIGHTS, "model.safetensors.index.json"):
        del hub.files[shard]
    hub.files[name] = (GOLDEN / "v3_classic" / "model.safetensors").read_bytes()
    assert find_model("org/tiny", with_weights=False) and find(TINY, with_weights=True) is None
    directory = find_model("org/tiny")
    monkeypatch.setenv("DEEPZIG_OFFLINE", "1")
    assert find_model("org/tiny") == directory and (directory / name).exists()


def test_shards_whose_index_is_yet_to_come_are_not_whole(hub: FakeHub) -> None:
    directory = find_model("org/tiny")
    for name in ("model.safetensors.index.json", *WEIGHTS[1:]):
        (directory / name).unlink()
        assert find(TINY, with_weights=True) is None
    assert find_model("org/tiny") == directory
    assert all((directory / name).read_bytes() == hub.files[name] for name in WEIGHTS)


def test_nothing_is_fetched_beside_a_file_that_has_all_weights(hub: FakeHub) -> None:
    for shard in (*WEIGHTS, "model.safetensors.index.json"):
        del hub.files[shard]
    hub.files |= {"consolidated.safetensors": b"twice", "model.safetensors": b"weights"}
    assert set(missing(TINY, with_weights=True).files) == {"config.json", "model.safetensors", "tokenizer_config.json"}


def test_what_is_here_already_is_not_fetched_again(hub: FakeHub) -> None:
    (find_model("org/tiny") / WEIGHTS[0]).unlink()
    assert find(TINY, with_weights=True) is None
    assert set(missing(TINY, with_weights=True).files) == {WEIGHTS[0], "config.json"}


def test_large_downloads_need_a_word(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzig.checkpoint.model_names.ASKED_ABOVE", 1000)
    with pytest.raises(RequestError, match=r"org/tiny is [\d.]+ kB to download to .*--yes or DEEPZIG_YES=1"):
        deepzig.load("org/tiny")
    assert hub.fetched() == ["config.json"] and find(TINY, with_weights=False) is None
    monkeypatch.setenv("DEEPZIG_YES", "1")
    assert deepzig.load("org/tiny").config.vocab_size > 0


def test_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPZIG_OFFLINE", "1")
    with pytest.raises(NetworkError, match="not on this machine") as caught:
        deepzig.load("org/tiny")
    assert str(caught.value).startswith("there is no folder 'org/tiny' here, so it was taken for a name on the")
    assert caught.value.exit_code == 5 and hub.requests == []
    monkeypatch.setenv("DEEPZIG_OFFLINE", "0")
    deepzig.load("org/tiny")
    monkeypatch.setenv("DEEPZIG_OFFLINE", "1")
    deepzig.load("org/tiny")


def test_a_disk_without_room_is_told_before_the_first_byte(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.stated_sizes[WEIGHTS[0]] = 1 << 60
    monkeypatch.setenv("DEEPZIG_YES", "1")
    with pytest.raises(ResourceError, match=r"needs [\d,.]{15} GB in .* GB are free; make room, or set HF_HOME"):
        find_model("org/tiny")
    assert hub.fetched() == ["config.json"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2' is not supported"),
        ({"n_group": 3}, "cannot be split into n_group 3"),
        ({"quantization_config": {"quant_method": "awq"}}, "declares quant_method 'awq'"),
    ],
)
def test_a_model_that_deepzig_cannot_run_is_not_fetched(hub: FakeHub, changed: dict[str, Any], message: str) -> None:
    hub.files["config.json"] = json.dumps(json.loads(hub.files["config.json"]) | changed).encode()
    with pytest.raises((ConfigError, CheckpointError), match=message):
        find_model("org/tiny")
    assert hub.fetched() == ["config.json"] and find(TINY, with_weights=False) is None


def test_a_config_that_is_none_is_named_as_the_hub_has_it(hub: FakeHub) -> None:
    hub.files["config.json"] = b"{bad"
    with pytest.raises(ConfigError, match=r"^config\.json of org/tiny is no valid JSON"):
        find_model("org/tiny")


def test_a_config_of_absurd_size_is_not_fetched(hub: FakeHub) -> None:
    hub.stated_sizes["config.json"] = 50_000_000_000
    with pytest.raises(ConfigError, match=r"config\.json of org/tiny has 50000000000 bytes"):
        find_model("org/tiny")
    assert hub.fetched() == []


@pytest.mark.parametrize("name", ["org/other", "nobody/here"])
def test_a_name_that_the_hub_does_not_know(hub: FakeHub, name: str) -> None:
    with pytest.raises(NetworkError, match=f"no folder '{name}' here, .*; http://127.0.0.1.* has no such model"):
        deepzig.load(name)


def test_a_hub_that_is_not_there(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match=r"^there is no folder 'org/tiny' here, .* http://127\.0\.0\.1:9 ") as caught:
        deepzig.load("org/tiny")
    assert str(caught.value).endswith("; check the network (HTTPS_PROXY and HF_ENDPOINT count)")
    assert "\n" not in str(caught.value)


def test_a_repository_that_is_no_model(hub: FakeHub) -> None:
    del hub.files["config.json"]
    with pytest.raises(NetworkError, match=r"no config\.json"):
        find_model("org/tiny")
