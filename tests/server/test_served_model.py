"""What clients are told of the model: its parameters, and the fingerprint."""

import math
import os
import shutil
from pathlib import Path

import msgspec

from deepzig.checkpoint.directory import open_checkpoint
from deepzig.engine.loading import load
from deepzig.server.served_model import ServedModel

TIED = Path(__file__).parents[1] / "golden/v3_sharded"


def test_a_tied_embedding_is_counted_once() -> None:
    with load(TIED) as llm:
        described = ServedModel.of(llm).describe()
    assert llm.config.tie_word_embeddings and described.id == "v3_sharded"
    assert described.meta.n_params == sum(math.prod(info.shape) for info in open_checkpoint(TIED).infos.values())


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = shutil.copytree(TIED, tmp_path / os.fsdecode(b"by\xfftes"))
    with load(folder) as llm:
        assert msgspec.json.encode(ServedModel.of(llm).describe().id) == b'"by?tes"'


def test_the_fingerprint_is_of_the_model_and_its_way_of_computing() -> None:
    prints = []
    for options in ({}, {}, {"precision": "fast"}, {"deterministic": True}, {"cache_dtype": "int8"}):
        with load("stories", **options) as llm:
            prints.append(ServedModel.of(llm).fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 4
