"""SamplingParams and Sampler: each rule against a plain computation of the same distribution."""

import math
from typing import Any

import numpy as np
import pytest

from deepzig.engine import sampling
from deepzig.engine.defaults import GenerationDefaults
from deepzig.engine.sampling import Sampler, SamplingParams
from deepzig.errors import NonFiniteLogitsError, RequestError

VOCAB = 50


def sampler(prompt: tuple[int, ...] = (), vocab_size: int = VOCAB, **params: Any) -> Sampler:
    settled = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **params}
    return Sampler(SamplingParams(**settled), prompt, vocab_size)


def some_logits(seed: int = 0, size: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, np.float32) * 2


def drawn(n: int, logits: np.ndarray, **params: Any) -> np.ndarray:
    """Frequencies of n draws."""
    chooser = sampler(vocab_size=len(logits), seed=1, **params)
    return np.bincount([chooser.sample(logits) for _ in range(n)], minlength=len(logits)) / n


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - logits.max())
    return e / e.sum()


def test_temperature_zero_takes_the_greatest_logit_and_the_first_of_equals() -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[[7, 9]] = 3
    assert sampler(temperature=0.0).sample(logits) == 7


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature: float) -> None:
    logits = some_logits()[:8]
    expected = softmax(logits / temperature)
    frequencies = drawn(20_000, logits, temperature=temperature)
    assert np.abs(frequencies - expected).max() < 5 * math.sqrt(0.25 / 20_000)


def test_top_k_keeps_the_k_most_likely() -> None:
    logits = some_logits()
    frequencies = drawn(3000, logits, top_k=3)
    assert set(np.flatnonzero(frequencies)) == set(np.argsort(-logits)[:3])
    assert np.array_equal(drawn(50, logits, top_k=1 << 63), drawn(50, logits, top_k=VOCAB))


@pytest.mark.parametrize("size", [VOCAB, 2000])
@pytest.mark.parametrize("top_p", [0.1, 0.6, 0.95])
def test_top_p_keeps_the_fewest_tokens_that_reach_p(size: int, top_p: float) -> None:
    logits = some_logits(3, size)
    probs = softmax(logits)
    order = np.argsort(-probs, kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1]
    frequencies = drawn(4000, logits, top_p=top_p)
    assert set(np.flatnonzero(frequencies)) <= set(kept)
    most = kept[0]
    assert frequencies[most] == pytest.approx(probs[most] / probs[kept].sum(), abs=0.05)


def test_top_p_over_a_flat_distribution_keeps_most_of_it() -> None:
    logits = np.zeros(2000, np.float32)
    frequencies = drawn(6000, logits, top_p=0.9)
    assert np.count_nonzero(frequencies) > 1000


def test_min_p_is_relative_to_the_most_likely() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert set(np.flatnonzero(drawn(3000, logits, min_p=0.25))) == {0, 1, 2}


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    assert sampler((0,), 4, temperature=0.0, repetition_penalty=1.2).sample(logits) == 1
    chooser = sampler((), 4, temperature=0.0, repetition_penalty=1.2)
    assert [chooser.sample(logits) for _ in range(3)] == [0, 1, 0]  # 2.0, then 1.9 beats 2.0 / 1.2, then both are seen
    negative = np.array([-1.0, -1.1], np.float32)
    assert sampler((0,), 2, temperature=0.0, repetition_penalty=1.2).sample(negative) == 1


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    logits = np.array([2.0, 1.8, 1.0], np.float32)
    presence = sampler((0,), 3, temperature=0.0, presence_penalty=0.5)
    assert [presence.sample(logits) for _ in range(4)] == [0, 1, 0, 0]
    frequency = sampler((0,), 3, temperature=0.0, frequency_penalty=0.5)
    assert [frequency.sample(logits) for _ in range(5)] == [0, 1, 0, 1, 0]


def test_logit_bias_moves_a_token() -> None:
    logits = some_logits()
    assert sampler(temperature=0.0, logit_bias={11: 100.0}).sample(logits) == 11
    assert sampler(temperature=0.0, logit_bias={int(logits.argmax()): -100.0}).sample(logits) == int(
        np.argsort(-logits)[1]
    )


@pytest.mark.parametrize("params", [{"logit_bias": {VOCAB: 1.0}}, {"stop_token_ids": [VOCAB]}])
def test_tokens_outside_the_vocabulary_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(params))}.*vocabulary"):
        sampler(**params)


class TwoOrMore:
    """Token 3, at least twice; then token 1 may end the answer."""

    is_complete = False

    def __init__(self) -> None:
        self.n_taken = 0

    def allowed(self) -> np.ndarray:
        return np.isin(np.arange(VOCAB), [3, 1] if self.n_taken >= 2 else [3])

    def accept(self, token: int) -> None:
        assert token == 3
        self.n_taken += 1

    def copy(self) -> "TwoOrMore":
        raise NotImplementedError


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_stop_token_may_come_where_the_constraint_may_end(ignore_eos: bool) -> None:
    params = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, stop_token_ids=[9], ignore_eos=ignore_eos)
    chooser = Sampler(params, (), VOCAB, TwoOrMore(), frozenset([1]))
    logits = np.zeros(VOCAB, np.float32)
    logits[9] = 5
    assert [chooser.sample(logits) for _ in range(3)] == [3, 3, 9]
    assert chooser.end_token_ids == ({9} if ignore_eos else {1, 9})


def test_the_same_seed_gives_the_same_tokens() -> None:
    rows = [some_logits(i) for i in range(50)]
    first, again, other = sampler(seed=5), sampler(seed=5), sampler(seed=6)
    tokens = [first.sample(row) for row in rows]
    assert tokens == [again.sample(row) for row in rows]
    assert tokens != [other.sample(row) for row in rows]


def test_choosing_leaves_the_logits_alone() -> None:
    logits = some_logits()
    before = logits.copy()
    sampler((1,), repetition_penalty=1.3, presence_penalty=1.0, logit_bias={2: 1.0}, top_p=0.5).sample(logits)
    assert np.array_equal(logits, before)


def test_logprobs_are_those_of_the_model() -> None:
    logits = some_logits()
    expected = np.log(softmax(logits))
    report = sampler(temperature=0.3, logprobs=3).logprob(logits, 4)
    assert report.token_id == 4
    assert report.logprob == pytest.approx(expected[4], abs=1e-5)
    assert [token for token, _ in report.top] == list(np.argsort(-logits)[:3])
    assert [value for _, value in report.top] == pytest.approx(list(np.sort(expected)[::-1][:3]), abs=1e-5)
    assert sampler(logprobs=0).logprob(logits, 4).top == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_fail_the_request(bad: float) -> None:
    logits = some_logits()
    logits[3] = bad
    with pytest.raises(NonFiniteLogitsError):
        sampler(temperature=0.0).sample(logits)


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": 0}, {"max_tokens": 1.5}, {"max_tokens": True}, {"temperature": -0.1}, {"temperature": math.nan},
        {"temperature": "hot"}, {"top_k": -1}, {"top_p": -0.1}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 2},
        {"repetition_penalty": 0}, {"repetition_penalty": -1}, {"presence_penalty": math.inf}, {"seed": -1},
        {"seed": 0.5}, {"stop": ("",)}, {"stop": (3,)}, {"logprobs": -1}, {"logit_bias": {-1: 1.0}},
        {"logit_bias": {"a": 1.0}}, {"logit_bias": {1: math.nan}}, {"temperature": 10**400}, {"temperature": 1e39},
        {"max_tokens": None}, {"min_p": None}, {"repetition_penalty": None}, {"num_beams": None}, {"stop": 5},
        {"logit_bias": None}, {"logit_bias": {5: 1e39}}, {"presence_penalty": -1e39}, {"repetition_penalty": 1e-38},
        {"length_penalty": 1000.0}, {"early_stopping": 1}, {"early_stopping": "always"},
        {"stop_token_ids": 5}, {"stop_token_ids": (-1,)}, {"stop_token_ids": "x"}, {"stop_token_ids": np.array(5)},
        {"n": np.bool_(True)}, {"top_p": np.bool_(True)}, {"n": np.float64(2)}, {"temperature": np.float16("nan")},
    ],
)  # fmt: skip
def test_parameters_that_mean_nothing_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**params)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("params", [{"temperature": 1e-38}, {"top_p": 0.0}, {"top_p": 1e-30}])
def test_where_hardly_more_is_left_the_likeliest_token_is_taken(params: dict[str, float]) -> None:
    settled = GenerationDefaults(frozenset()).resolve(SamplingParams(seed=1, **params))
    logits = some_logits()
    assert Sampler(settled, (), len(logits)).sample(logits) == np.argmax(logits)


@pytest.mark.parametrize("temperature", [1e-4, 1e6])
def test_the_most_that_may_be_asked_for_is_drawn_from(temperature: float) -> None:
    logits = some_logits()
    logits[1] = -np.inf
    bias = {2: sampling.MAX_BIAS, 3: -sampling.MAX_BIAS}
    params = {"frequency_penalty": sampling.MAX_BIAS, "top_p": 0.9, "logit_bias": bias, "seed": 1}
    chooser = sampler(temperature=temperature, **params)
    assert chooser.sample(logits) == 2
    assert 1 not in {chooser.sample(logits) for _ in range(20)}


def test_branches_of_a_seed_draw_what_no_other_seed_does() -> None:
    """numpy takes a sequence of numbers and their 32-bit words for the same seed."""
    logits = np.zeros(50, np.float32)
    second, other = sampler(seed=5).fork(1), sampler(seed=5 + (1 << 32))
    assert [second.sample(logits) for _ in range(8)] != [other.sample(logits) for _ in range(8)]


def test_a_single_stop_string_may_stand_alone() -> None:
    assert SamplingParams(stop="end").stop == ("end",)


def test_what_the_caller_changes_later_does_not_count() -> None:
    stop, bias = ["end"], {5: 1.0}
    params = SamplingParams(stop=stop, logit_bias=bias)
    stop.append("")
    bias[10**9] = math.nan
    assert (params.stop, params.logit_bias) == (("end",), {5: 1.0})


def test_numbers_may_be_those_of_numpy() -> None:
    params = SamplingParams(
        max_tokens=np.int32(3), temperature=np.float16(0.5), seed=np.uint64(7), logit_bias={np.int64(5): np.float32(2)}
    )
    assert params == SamplingParams(max_tokens=3, temperature=0.5, seed=7, logit_bias={5: 2.0})
    assert "np." not in repr(params)
