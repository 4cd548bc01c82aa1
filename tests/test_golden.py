"""deepzig against HF transformers on tiny checkpoints of every family and both config dialects.

Through the public API only. The data and how HF computed it: tests/golden/README.md, made by tests/make_golden.py.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepzig
from deepzig import _kernels
from deepzig.model.rotary import RotaryEmbedding

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(config.parent.name for config in GOLDEN.glob("*/config.json"))
MTP_CASES = ["v3_classic", "v3_fp8"]
FAMILIES = {"v3_classic", "v3_new_dialect", "moonlight", "kimi_k2", "v2_lite", "v2_full", "v2_new_dialect"}

ATOL = 2e-4  # logits and hidden states, of order 1; HF's own fp32 error in these files is below 3e-5
WEIGHT_ATOL, WEIGHT_RTOL = 1e-4, 2e-5  # routing weights; V2's are times 16


@dataclass(frozen=True)
class Golden:
    """A loaded checkpoint and what HF computes from it (arrays as in tests/golden/README.md)."""

    llm: Any
    expected: dict[str, np.ndarray]

    @property
    def ids(self) -> list[int]:
        return [int(token) for token in self.expected["ids"]]

    def check_logits(self, logits: np.ndarray) -> None:
        want = self.expected["logits"]
        assert logits.dtype == np.float32 and logits.shape == want.shape
        np.testing.assert_allclose(logits, want, rtol=0, atol=ATOL)


def load(name: str) -> Golden:
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return Golden(deepzig.load(str(GOLDEN / name)), dict(arrays))


@pytest.fixture(scope="module", params=[False, True], ids=["as_short_prompts", "as_long_ones"])
def kernels_of_long_prompts(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Short pieces of prompts take the kernels of decoding: here also those that long ones take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_kernels.LONG_CHUNK, "exact", 1 if request.param else 1000)
        yield request.param


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest, kernels_of_long_prompts: bool) -> Iterator[Golden]:
    loaded = load(request.param)
    assert loaded.llm.model.is_short(len(loaded.ids)) is not kernels_of_long_prompts
    yield loaded


def test_every_family_has_a_case() -> None:
    assert set(CASES) >= FAMILIES


def test_logits(golden: Golden) -> None:
    golden.check_logits(golden.llm.logits(golden.ids))


@pytest.mark.parametrize("chunk_size", [7, 1])
def test_logits_in_chunks(golden: Golden, chunk_size: int) -> None:
    golden.check_logits(golden.llm.logits(golden.ids, chunk_size=chunk_size))


@pytest.mark.parametrize("attention", ["absorbed", "expanded"])
def test_logits_in_either_form_of_attention(golden: Golden, attention: str) -> None:
    golden.check_logits(golden.llm.logits(golden.ids, attention=attention))


def test_greedy_tokens(golden: Golden) -> None:
    params = deepzig.SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    assert list(golden.llm.generate(golden.ids, params).token_ids) == golden.expected["greedy"].tolist()


def test_hidden_states(golden: Golden) -> None:
    trace = golden.llm.trace(golden.ids)
    assert len(trace.hidden_states) == len(golden.expected["hidden"])
    for layer, (hidden, want) in enumerate(zip(trace.hidden_states, golden.expected["hidden"], strict=True)):
        np.testing.assert_allclose(hidden, want, rtol=0, atol=ATOL, err_msg=f"after {layer} layers")


def test_routing(golden: Golden) -> None:
    trace = golden.llm.trace(golden.ids)
    layers = sorted(trace.topk_idx)
    assert layers == sorted(trace.topk_weight)
    n_layers = len(golden.expected["hidden"]) - 1
    assert layers == list(range(n_layers - len(golden.expected["topk_idx"]), n_layers))  # the dense ones come first
    for row, layer in enumerate(layers):
        order = np.argsort(trace.topk_idx[layer], axis=-1)
        topk_idx = np.take_along_axis(trace.topk_idx[layer], order, axis=-1)
        topk_weight = np.take_along_axis(trace.topk_weight[layer], order, axis=-1)
        np.testing.assert_array_equal(topk_idx, golden.expected["topk_idx"][row], err_msg=f"layer {layer}")
        want = golden.expected["topk_weight"][row]
        np.testing.assert_allclose(topk_weight, want, WEIGHT_RTOL, WEIGHT_ATOL, err_msg=f"layer {layer}")


@pytest.mark.parametrize("name", MTP_CASES)
def test_mtp_logits(name: str) -> None:
    golden = load(name)
    logits, want = golden.llm.mtp_logits(golden.ids), golden.expected["mtp_logits"]
    assert logits.dtype == np.float32 and logits.shape == want.shape
    np.testing.assert_allclose(logits, want, rtol=0, atol=ATOL)


def test_yarn_reaches_the_end_of_the_context(tmp_path: Path) -> None:
    """DeepSeek-V3's angles up to position 163839, where a last bit of a frequency is an angle of 0.01."""
    with np.load(GOLDEN / "rope_v3.npz") as arrays:
        expected = dict(arrays)
    scaling = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
               "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip
    config = {"model_type": "deepseek_v3", "max_position_embeddings": 163840, "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rotary = RotaryEmbedding(deepzig.ModelConfig.from_directory(tmp_path))
    cos, sin = rotary.cos_sin(expected["positions"].astype(np.int32))
    np.testing.assert_allclose(cos, expected["cos"], rtol=0, atol=2e-7)
    np.testing.assert_allclose(sin, expected["sin"], rtol=0, atol=2e-7)


def test_stories_logits() -> None:
    """Their weights are int8, which no case above has."""
    with np.load(GOLDEN / "stories.npz") as arrays:
        golden = Golden(deepzig.load("stories"), dict(arrays))
    golden.check_logits(golden.llm.logits(golden.ids))


@pytest.mark.parametrize("as_text", [False, True], ids=["ids", "text"])
def test_stories_greedy_tokens(as_text: bool) -> None:
    with np.load(GOLDEN / "stories.npz") as arrays:
        ids, greedy = arrays["ids"].tolist(), arrays["greedy"].tolist()
    params = deepzig.SamplingParams(max_tokens=len(greedy), temperature=0.0, ignore_eos=True)
    result = deepzig.load("stories").generate("Once upon a time" if as_text else ids, params)
    assert list(result.token_ids) == greedy
