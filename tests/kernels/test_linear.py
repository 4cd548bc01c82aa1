"""The kernel linear, beyond what `test_contracts` checks of every kernel: `deepzig/_kernels/linear.py`."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import ml_dtypes
import numpy as np
import pytest
import threadpoolctl

from deepzig._kernels import implementations
from deepzig._kernels.linear_blas import one_blas_thread
from deepzig._kernels.weight import DECODING, EXACT, Weight
from deepzig._kernels.weight_cases import random_weights

from .agreement import every_implementation, every_implementation_but
from .products import decoded
from .refusals import check_refuses, read_only, wrong_arguments, wrong_floats

UNFUSED = ("reference", "blas")  # they sum in the order of NumPy's BLAS, which depends on the shape


@every_implementation_but("linear", *UNFUSED)
@pytest.mark.parametrize("shape", [(50, 256), (13, 1100), (9, 100), (301, 2049)])
def test_a_row_does_not_depend_on_its_neighbours(function: Callable[..., None], shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    for weight in random_weights(rng, shape):
        x = rng.standard_normal((41, shape[1]), np.float32)
        together, alone = np.empty((41, shape[0]), np.float32), np.empty((41, shape[0]), np.float32)
        few = np.empty((5, shape[0]), np.float32)
        function(x, weight, together, n_threads=2)
        function(x[:5], weight, few, n_threads=2)
        for t in range(0, 41, 5):
            function(x[t : t + 1], weight, alone[t : t + 1], n_threads=1)
        message = f"{weight.format}, groups of {weight.group_size}"
        np.testing.assert_array_equal(together[::5], alone[::5], err_msg=message)
        np.testing.assert_array_equal(few, together[:5], err_msg=message)


@every_implementation_but("linear", *UNFUSED)
@pytest.mark.parametrize("scale_format", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256, 1088])
def test_int4_has_the_same_bits_in_few_rows_and_many(
    function: Callable[..., None], group_size: int, scale_format: str
) -> None:
    """Few and many may take other kernels, which sum turns of 128 columns; here the last one is half as long."""
    rng = np.random.default_rng(13)
    scale = rng.random((13, -(-1088 // group_size)), np.float32) * np.float32(0.01)
    stored = {
        "f32": scale,
        "f16": scale.astype(np.float16).view(np.uint16),
        "bf16": scale.astype(ml_dtypes.bfloat16).view(np.uint16),
    }
    codes = rng.integers(0, 256, (13, 544), np.uint8)
    weight = Weight("int4", (13, 1088), codes, stored[scale_format], scale_format, group_size)
    x = rng.standard_normal((7, 1088), np.float32)
    together, alone = np.empty((7, 13), np.float32), np.empty((7, 13), np.float32)
    function(x, weight, together, n_threads=2)
    for first, last in ((0, 1), (1, 3), (3, 7)):
        function(x[first:last], weight, alone[first:last], n_threads=1)
    np.testing.assert_array_equal(together, alone)
    exact = x.astype(np.float64) @ decoded(weight).T
    np.testing.assert_allclose(together, exact, rtol=0, atol=1e-6 * abs(exact).max())


@every_implementation("linear")
@pytest.mark.parametrize(("weight_format", "group_size"), [("int8", 64), ("int8", 1024), ("int4", 32), ("int4", 256)])
def test_a_large_activation_costs_no_accuracy_elsewhere(
    function: Callable[..., None], weight_format: str, group_size: int
) -> None:
    """It lies in the first turn, at most 512 columns, where all weights are zero."""
    rng = np.random.default_rng(14)
    stored, zeros = (1024, 0) if weight_format == "int8" else (512, 0x88)
    codes = rng.integers(0, 256, (40, stored), np.uint8)
    codes[:, : stored // 2] = zeros
    scale = rng.random((40, 1024 // group_size), np.float32)
    weight = Weight(weight_format, (40, 1024), codes, scale, "f32", group_size)
    x = rng.standard_normal((7, 1024), np.float32)
    x[:, 3] = 1e4
    exact = x.astype(np.float64) @ decoded(weight).T
    for n_rows in (1, 4, 7):
        for products in (DECODING, EXACT):
            out = np.empty((n_rows, 40), np.float32)
            function(x[:n_rows], weight, out, arithmetic=products, n_threads=1)
            np.testing.assert_allclose(out, exact[:n_rows], rtol=0, atol=1e-5 * exact.std())


@cache
def long_products() -> tuple[np.ndarray, list[tuple[Weight, np.ndarray]]]:
    """x, weights and exact results; shared by all implementations, so only to be read."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((33, 5003), np.float32)[:, 2:5001]
    return x, [(weight, x.astype(np.float64) @ decoded(weight).T) for weight in random_weights(rng, (70, 4999))]


@every_implementation("linear")
@pytest.mark.parametrize("n_rows", [1, 4, 33])
def test_long_rows_and_windows(function: Callable[..., None], n_rows: int) -> None:
    """Rows longer than any panel, x and out within wider rows; nothing around `out` is touched."""
    x, products = long_products()
    for weight, exact in products:
        wide = np.full((n_rows, 75), 7, np.float32)
        function(x[:n_rows], weight, wide[:, 3:73], n_threads=2)
        exact = exact[:n_rows]
        np.testing.assert_allclose(wide[:, 3:73], exact, rtol=0, atol=1e-6 * 5000**0.5 * abs(exact).max())
        assert (wide[:, :3] == 7).all()
        assert (wide[:, 73:] == 7).all()


@every_implementation("linear")
@pytest.mark.parametrize("group_size", [1, 6, 100, 1023, 5000])
def test_groups_of_any_size(function: Callable[..., None], group_size: int) -> None:
    """Groups that end within a vector, a panel, or beyond the row; blocks of 3 rows."""
    rng = np.random.default_rng(9)
    n_groups = -(-2100 // group_size)
    x = rng.standard_normal((3, 2100), np.float32) * np.float32(0.1)
    for weight_format, stored in (("int8", 2100), ("int4", 1050), ("fp8", 2100)):
        codes = rng.integers(0, 0x70, (7, stored), np.uint8)
        scale = rng.random((3, n_groups), np.float32) * np.float32(0.01)
        weight = Weight(weight_format, (7, 2100), codes, scale, "f32", group_size, block_rows=3)
        out = np.empty((3, 7), np.float32)
        function(x, weight, out, n_threads=2)
        exact = x.astype(np.float64) @ decoded(weight).T
        np.testing.assert_allclose(out, exact, rtol=0, atol=5e-5 * abs(exact).max(), err_msg=weight_format)


@every_implementation("linear")
@pytest.mark.parametrize("group_size", [384, 1024])
def test_wide_groups_with_many_rows(function: Callable[..., None], group_size: int) -> None:
    """Groups that are wider than the blocks in which weights meet many rows (blocks.h), or do not divide them."""
    rng = np.random.default_rng(12)
    x = rng.standard_normal((41, 3072), np.float32)
    for weight_format, stored in (("int8", 3072), ("int4", 1536), ("fp8", 3072)):
        codes = rng.integers(0, 0x70, (13, stored), np.uint8)
        scale = rng.random((13, 3072 // group_size), np.float32) * np.float32(0.01)
        weight = Weight(weight_format, (13, 3072), codes, scale, "f32", group_size)
        out, few = np.empty((41, 13), np.float32), np.empty((2, 13), np.float32)
        function(x, weight, out, n_threads=2)
        function(x[20:22], weight, few, n_threads=1)
        exact = x.astype(np.float64) @ decoded(weight).T
        np.testing.assert_allclose(out, exact, rtol=0, atol=5e-5 * abs(exact).max(), err_msg=weight_format)
        np.testing.assert_allclose(few, exact[20:22], rtol=0, atol=5e-5 * abs(exact).max(), err_msg=weight_format)


@every_implementation("linear")
@pytest.mark.parametrize("n_columns", [192, 37])
def test_every_code_of_fp8(function: Callable[..., None], n_columns: int) -> None:
    """A code alone in its row, the columns in turn, is multiplied without rounding by tiny and by huge x."""
    codes, column = np.zeros((256, n_columns), np.uint8), np.arange(256) * 7 % n_columns
    codes[np.arange(256), column] = np.arange(256)
    value = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    weight = Weight(
        "fp8", codes.shape, codes, np.ones((2, -(-n_columns // 128)), np.float32), "f32", 128, block_rows=128
    )
    sizes = np.exp2(np.array([[0], [-90], [90], [-1], [1], [5], [-7]], np.float32))
    x = sizes * (1 + np.arange(n_columns, dtype=np.float32) / 256)
    for n_rows in (1, 2, 5, 7):
        out = np.empty((n_rows, 256), np.float32)
        function(x[:n_rows], weight, out, n_threads=2)
        np.testing.assert_array_equal(out, x[:n_rows, column] * value)


@every_implementation("linear")
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")  # NumPy's, whose result is right
def test_infinity_of_fp8_stays_infinity_beside_large_numbers(function: Callable[..., None]) -> None:
    x = np.array([[np.inf, 300, -3e38, *[0] * 61], [300, -np.inf, *[1e30] * 62]], np.float32)
    codes = np.full((2, 64), 0x38, np.uint8)  # ones
    codes[1, 2:] = 0
    weight = Weight("fp8", (2, 64), codes, np.ones((1, 1), np.float32), "f32", 64, block_rows=2)
    out = np.empty((2, 2), np.float32)
    function(x, weight, out, n_threads=1)
    np.testing.assert_array_equal(out, [[np.inf, np.inf], [-np.inf, -np.inf]])


@every_implementation("linear")
@pytest.mark.parametrize("n_columns", [64, 37])
def test_nan_and_infinity_reach_the_output(function: Callable[..., None], n_columns: int) -> None:
    x = np.ones((2, n_columns), np.float32)
    scale = np.ones((3, 1), np.float32)
    for weight_format, ordinary, special in (("fp8", 0x38, 0x7F), ("f16", 0x3C00, 0x7E00), ("bf16", 0x3F80, 0xFF80)):
        codes = np.full((3, n_columns), ordinary, np.uint8 if weight_format == "fp8" else np.uint16)
        codes[1, n_columns - 5] = special
        scaled = (scale, "f32", n_columns) if weight_format == "fp8" else ()
        out = np.empty((2, 3), np.float32)
        function(x, Weight(weight_format, (3, n_columns), codes, *scaled), out, n_threads=1)
        assert (out[:, [0, 2]] == n_columns).all(), weight_format
        assert (out[:, 1] == -np.inf if weight_format == "bf16" else np.isnan(out[:, 1])).all(), weight_format


@every_implementation("linear")
def test_several_threads_may_call_at_once(function: Callable[..., None]) -> None:
    rng = np.random.default_rng(10)
    (weight,) = [w for w in random_weights(rng, (300, 1024)) if w.format == "fp8"]
    inputs = rng.standard_normal((4, 9, 1024), np.float32)

    def multiply(x: np.ndarray) -> np.ndarray:
        out = np.empty((9, 300), np.float32)
        function(x, weight, out, n_threads=2)
        return out

    expected = [multiply(x) for x in inputs] * 10
    with ThreadPoolExecutor(4) as executor:
        np.testing.assert_array_equal(list(executor.map(multiply, [*inputs] * 10)), expected)


@every_implementation_but("linear", "reference")
@wrong_arguments(
    *wrong_floats("x", 2),
    *wrong_floats("out", 2),
    ("out", read_only),
)
def test_wrong_arrays_are_refused(
    function: Callable[..., None], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    check_refuses("linear", function, name, change)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_numba_threads_start_again_in_the_child_of_a_fork() -> None:
    multiply = dict(implementations("linear"))["numba"]
    x, weight = np.ones((64, 256), np.float32), Weight("f32", (256, 256), np.ones((256, 256), np.float32))
    out = np.empty((64, 256), np.float32)
    multiply(x, weight, out, n_threads=2)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that waits for threads of its parent waits for ever
        out.fill(0)
        multiply(x, weight, out, n_threads=2)
        os._exit(0 if (out == 256).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


def test_blas_is_held_at_one_thread_and_released() -> None:
    """From any Python thread, and when two of them overlap."""
    before = blas_threads()
    with one_blas_thread(), ThreadPoolExecutor(1) as executor:
        assert set(blas_threads()) == {1}
        executor.submit(enter_and_leave).result()
        assert set(blas_threads()) == {1}
    assert blas_threads() == before
    with ThreadPoolExecutor(1) as executor:
        assert set(executor.submit(enter_and_leave).result()) == {1}
    assert blas_threads() == before


def enter_and_leave() -> list[int]:
    with one_blas_thread():
        return blas_threads()


SCRATCH_OF_THREADS = """
import resource, threading
import numpy as np
from deepzig import _kernels
from deepzig._kernels.weight_cases import random_weights
weight = next(random_weights(np.random.default_rng(0), (64, 1024)))
x, out = np.ones((512, 1024), np.float32), np.empty((512, 64), np.float32)
def ended_threads(n):
    for _ in range(n):
        thread = threading.Thread(target=_kernels.linear, args=(x, weight, out), kwargs={"n_threads": 1})
        thread.start()
        thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(ended_threads(5), ended_threads(60))
"""


def test_scratch_ends_with_its_thread() -> None:
    done = subprocess.run([sys.executable, "-c", SCRATCH_OF_THREADS], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())  # KiB
    assert after - before < 32 << 10
