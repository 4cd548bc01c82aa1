"""Rows of prompts through linear and experts, whose products may take other ways than those of decoding (`ways.h`)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import ml_dtypes
import numpy as np
import pytest

from deepzig._kernels.experts import scratch_size
from deepzig._kernels.weight import EXACT, FAST, ExpertWeights, Weight
from deepzig._kernels.weight_cases import random_weights

from . import agreement
from .agreement import every_implementation, every_implementation_but
from .products import decoded

# How far a product may be from the exact one, as a share of the largest
precisions = pytest.mark.parametrize(("arithmetic", "tolerance"), [(EXACT, 1e-5), (FAST, 1e-2)], ids=["exact", "fast"])
UNFUSED = ("reference", "blas")  # they sum in the order of NumPy's BLAS, which depends on the shape


def multiply(
    function: Callable[..., None], x: np.ndarray, weight: Weight, arithmetic: int, n_threads: int = 2
) -> np.ndarray:
    """f32 (T, N)"""
    out = np.full((len(x), weight.shape[0]), np.nan, np.float32)
    function(x, weight, out, arithmetic=arithmetic, n_threads=n_threads)
    return out


def check_close(out: np.ndarray, exact: np.ndarray, tolerance: float, message: str = "") -> None:
    np.testing.assert_allclose(out, exact, rtol=0, atol=tolerance * abs(exact).max(), err_msg=message)


@dataclass(frozen=True)
class Product:
    """What is multiplied, and the result in f64; shared by all implementations, so only to be read."""

    x: np.ndarray
    weight: Weight
    exact: np.ndarray
    message: str


def exact_products(weights: Iterable[Weight], inputs: Callable[[], list[np.ndarray]]) -> Iterator[Product]:
    """Each weight with inputs of its own."""
    for weight in weights:
        transposed = decoded(weight).T
        for x in inputs():
            message = f"{weight.format}, groups of {weight.group_size}, {len(x)} rows"
            yield Product(x, weight, x.astype(np.float64) @ transposed, message)


@cache
def products_of_shape(shape: tuple[int, int]) -> list[Product]:
    """Every format; as many rows as registers hold sums for, fewer, and more than meet a block of weights at once."""
    rng = np.random.default_rng(30)
    sizes = (1, 2, 7, 12, 13, 131)

    def inputs() -> list[np.ndarray]:
        return [rng.standard_normal((n, shape[1]), np.float32) for n in sizes]

    return list(exact_products(random_weights(rng, shape), inputs))


@every_implementation("linear")
@precisions
@pytest.mark.parametrize("shape", [(1, 1), (33, 64), (50, 256), (7, 100), (70, 416), (13, 1100)])
def test_products(function: Callable[..., None], shape: tuple[int, int], arithmetic: int, tolerance: float) -> None:
    for product in products_of_shape(shape):
        out = multiply(function, product.x, product.weight, arithmetic)
        check_close(out, product.exact, tolerance, product.message)


@cache
def products_with_groups(group_size: int) -> list[Product]:
    """The scales of neighbours differ much."""
    rng = np.random.default_rng(31)
    x = rng.standard_normal((7, 2304), np.float32)
    weights = []
    for weight_format, stored in (("int8", 2304), ("int4", 1152), ("fp8", 2304)):
        codes = rng.integers(0, 0x70, (37, stored), np.uint8)
        scale = np.exp2(rng.integers(-8, 1, (13, -(-2304 // group_size)))).astype(np.float32)
        weights.append(Weight(weight_format, (37, 2304), codes, scale, "f32", group_size, block_rows=3))
    return list(exact_products(weights, lambda: [x]))


@every_implementation("linear")
@precisions
@pytest.mark.parametrize("group_size", [6, 32, 96, 256, 384, 768, 1024, 5000])
def test_groups_of_any_size(function: Callable[..., None], group_size: int, arithmetic: int, tolerance: float) -> None:
    """Groups that end within a block of weights, with it, or beyond the row."""
    for product in products_with_groups(group_size):
        out = multiply(function, product.x, product.weight, arithmetic)
        check_close(out, product.exact, tolerance, product.message)


@every_implementation_but("linear", *UNFUSED)
@precisions
@pytest.mark.parametrize("shape", [(50, 256), (13, 1100), (301, 2048)])
def test_a_row_does_not_depend_on_its_neighbours(
    function: Callable[..., None], shape: tuple[int, int], arithmetic: int, tolerance: float
) -> None:
    rng = np.random.default_rng(32)
    for weight in random_weights(rng, shape):
        x = rng.standard_normal((41, shape[1]), np.float32)
        x[:3] *= 1000
        together = multiply(function, x, weight, arithmetic)
        message = f"{weight.format}, groups of {weight.group_size}"
        for first, last in ((0, 1), (3, 8), (20, 33), (40, 41)):
            some = multiply(function, x[first:last], weight, arithmetic, n_threads=1)
            np.testing.assert_array_equal(together[first:last], some, err_msg=message)


@every_implementation("linear")
@precisions
def test_threads_and_inputs(function: Callable[..., None], arithmetic: int, tolerance: float) -> None:
    """One thread or two, x and weights only read, nothing written but the output."""
    given = partial(function, arithmetic=arithmetic)
    agreement.check_threads_do_not_matter("linear", given)
    agreement.check_writes_only_its_output("linear", given)


@every_implementation("linear")
@precisions
def test_every_code_of_fp8(function: Callable[..., None], arithmetic: int, tolerance: float) -> None:
    """A code alone in its row: `fast` may round it to quarters, where the largest is 448; NaN stays NaN, in its row."""
    codes, column = np.zeros((256, 192), np.uint8), np.arange(256) * 7 % 192
    codes[np.arange(256), column] = np.arange(256)
    value = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    weight = Weight("fp8", codes.shape, codes, np.ones((2, 2), np.float32), "f32", 128, block_rows=128)
    out = multiply(function, np.ones((9, 192), np.float32), weight, arithmetic)
    atol = 0.0 if arithmetic == EXACT else 0.13
    np.testing.assert_allclose(out, np.broadcast_to(value, (9, 256)), rtol=2**-12, atol=atol)


@every_implementation("linear")
@precisions
@pytest.mark.parametrize("n_columns", [128, 37])
def test_what_is_not_finite_reaches_the_output(
    function: Callable[..., None], n_columns: int, arithmetic: int, tolerance: float
) -> None:
    """From weights it reaches their column, from x its row; infinity may become NaN on the way."""
    x = np.ones((5, n_columns), np.float32)
    x[3, n_columns - 2], x[4, 1] = np.nan, np.inf
    scale = np.ones((3, 1), np.float32)
    for weight_format, ordinary, special in (("fp8", 0x38, 0x7F), ("f16", 0x3C00, 0x7E00), ("bf16", 0x3F80, 0xFF80)):
        codes = np.full((3, n_columns), ordinary, np.uint8 if weight_format == "fp8" else np.uint16)
        codes[1, n_columns - 5] = special
        scaled = (scale, "f32", n_columns) if weight_format == "fp8" else ()
        with np.errstate(invalid="ignore"):
            out = multiply(function, x, Weight(weight_format, (3, n_columns), codes, *scaled), arithmetic)
        np.testing.assert_allclose(out[:3, [0, 2]], n_columns, rtol=1e-3, err_msg=weight_format)
        assert not np.isfinite(out[:3, 1]).any(), weight_format
        assert not np.isfinite(out[3:]).any(), weight_format


def random_experts(rng: np.random.Generator, hidden: int, intermediate: int) -> list[ExpertWeights]:
    """Five random experts, once for each way to store weights."""
    shapes = (intermediate, hidden), (intermediate, hidden), (hidden, intermediate)
    stored = [[list(random_weights(rng, shape)) for _ in range(5)] for shape in shapes]
    return [
        ExpertWeights(*([expert[way] for expert in matrix] for matrix in stored)) for way in range(len(stored[0][0]))
    ]


def mix(
    function: Callable[..., None], x: np.ndarray, weights: ExpertWeights, topk_idx: np.ndarray, arithmetic: int
) -> np.ndarray:
    """f32 (T, D), all chosen experts with the weight of 1/2."""
    scratch = np.full(scratch_size(*topk_idx.shape, x.shape[1], weights.intermediate_size), np.nan, np.float32)
    out, topk_weight = np.empty_like(x), np.full(topk_idx.shape, 0.5, np.float32)
    function(x, topk_idx, topk_weight, weights, scratch, out, arithmetic=arithmetic, n_threads=2)
    return out


def exact_mix(x: np.ndarray, weights: ExpertWeights, topk_idx: np.ndarray) -> np.ndarray:
    """The same in f64."""
    out = np.zeros(x.shape)
    for expert, projs in enumerate(zip(weights.gate_proj, weights.up_proj, weights.down_proj, strict=True)):
        gate, up, down = map(decoded, projs)
        rows = (topk_idx == expert).any(axis=1)
        gated = x[rows] @ gate.T
        out[rows] += 0.5 * (gated / (1 + np.exp(-gated)) * (x[rows] @ up.T)) @ down.T
    return out


@cache
def mixes(hidden: int, intermediate: int) -> tuple[np.ndarray, np.ndarray, list[tuple[ExpertWeights, np.ndarray]]]:
    """x, topk_idx, and for each way to store weights the exact result; as shared as a Product."""
    rng = np.random.default_rng(33)
    x = rng.standard_normal((37, hidden), np.float32)
    topk_idx = np.stack([rng.permutation(5)[:3] for _ in range(37)]).astype(np.int32)
    layers = random_experts(rng, hidden, intermediate)
    return x, topk_idx, [(weights, exact_mix(x.astype(np.float64), weights, topk_idx)) for weights in layers]


@every_implementation("experts")
@precisions
@pytest.mark.parametrize(("hidden", "intermediate"), [(64, 48), (100, 36), (256, 160)])
def test_experts(
    function: Callable[..., None], hidden: int, intermediate: int, arithmetic: int, tolerance: float
) -> None:
    x, topk_idx, results = mixes(hidden, intermediate)
    for weights, exact in results:
        out = mix(function, x, weights, topk_idx, arithmetic)
        check_close(out, exact, tolerance, weights.gate_proj[0].format)


@every_implementation_but("experts", *UNFUSED)
@precisions
def test_a_row_of_experts_does_not_depend_on_its_neighbours(
    function: Callable[..., None], arithmetic: int, tolerance: float
) -> None:
    rng = np.random.default_rng(34)
    x = rng.standard_normal((37, 256), np.float32)
    topk_idx = np.stack([rng.permutation(5)[:3] for _ in range(37)]).astype(np.int32)
    for weights in random_experts(rng, 256, 160):
        together = mix(function, x, weights, topk_idx, arithmetic)
        for first, last in ((0, 1), (9, 14), (36, 37)):
            some = mix(function, x[first:last], weights, topk_idx[first:last], arithmetic)
            np.testing.assert_array_equal(together[first:last], some, err_msg=weights.gate_proj[0].format)
