"""The AMX ways of products and of attention, with tile instructions in plain C: arithmetic and packing.

On a CPU with AMX the compiled kernels are tested like all others (test_linear.py, test_mla_prefill.py, ...); this file
says that they are right before such a CPU is at hand, wherever there is AVX512-BF16.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from deepzig import _kernels
from deepzig._kernels._isa import ISA_NAMES, ISAS
from deepzig._kernels._pick import missing_flags
from deepzig._kernels.dequantize import all_rows
from deepzig._kernels.dequantize import reference as dequantize_reference
from deepzig._kernels.mla_prefill import reference as attention_reference
from deepzig._kernels.weight import Weight
from deepzig._kernels.weight_cases import random_weights

HEADERS = Path(_kernels.__file__).parent
EMULATION = Path(__file__).parent / "emulation"
FLAGS = ISAS[ISA_NAMES.index("avx512_bf16")].compiler_flags


def emulated(name: str, directory: Path) -> ctypes.CDLL:
    """The library of emulation/name.c."""
    if missing := missing_flags("avx512_bf16"):
        pytest.skip(f"the emulated tiles still need AVX512-BF16 around them; missing {', '.join(missing)}")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = EMULATION / f"{name}.c", directory / f"{name}.so"
    command = [compiler, "-O1", "-shared", "-fPIC", *FLAGS, f"-I{HEADERS}", str(source), "-o", str(library), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return emulated("product", tmp_path_factory.mktemp("amx"))


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> ctypes._CFuncPtr:
    return emulated("attention", tmp_path_factory.mktemp("amx")).attention


def way_named(products: ctypes.CDLL, name: str) -> int:
    return ctypes.c_int.in_dll(products, name).value


def multiply(products: ctypes.CDLL, weight: Weight, x: np.ndarray, wanted: int) -> tuple[np.ndarray, int]:
    """x W^T, NaN where the way is FLOATS, and the way."""
    out = np.full((len(x), weight.shape[0]), np.nan, np.float32)
    way = products.product(
        ctypes.c_void_p(weight.descriptor.ctypes.data), ctypes.c_void_p(x.ctypes.data), ctypes.c_int64(len(x)),
        ctypes.c_int(wanted), ctypes.c_void_p(out.ctypes.data),
    )  # fmt: skip
    return out, way


@pytest.mark.parametrize("shape", [(1, 32), (45, 64), (33, 200), (70, 384), (160, 640)])
@pytest.mark.parametrize("columns", [1, 17, 40])
def test_emulated_tiles_match_the_reference(products: ctypes.CDLL, shape: tuple[int, int], columns: int) -> None:
    rng = np.random.default_rng(7)
    ways = set()
    for weight in random_weights(rng, shape):
        x = rng.standard_normal((columns, shape[1]), np.float32)
        decoded = np.empty(shape, np.float32)
        dequantize_reference(weight, all_rows(weight), decoded, n_threads=1)
        expected = x.astype(np.float64) @ decoded.T.astype(np.float64)
        magnitude = np.abs(x) @ np.abs(decoded.T)
        for wanted, tolerance in ((0, 1e-6), (1, 1e-2), (3, 1e-6)):
            out, way = multiply(products, weight, x, wanted)
            if way:
                assert np.all(np.abs(out - expected) <= tolerance * magnitude + 1e-30)
                ways.add((weight.format, way))
    bf16_sums, digit_tiles = way_named(products, "bf16_sums"), way_named(products, "digit_tiles_way")
    assert {("bf16", bf16_sums), ("fp8", bf16_sums)} <= ways
    if shape[1] % 64 == 0:
        assert ("fp8", way_named(products, "fp8_rows_way")) in ways
    if shape[1] % 128 == 0 and columns > 1:  # one row has the same bits in registers, and is faster there
        assert {("int8", digit_tiles), ("int4", digit_tiles)} <= ways


@pytest.mark.parametrize("wanted", [0, 1, 3])
def test_company_changes_no_bit(products: ctypes.CDLL, wanted: int) -> None:
    """Rows alone, in registers where there are few, and among others, in tiles."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal((40, 640), np.float32)
    ways = set()
    for weight in random_weights(rng, (70, 640)):
        together, way = multiply(products, weight, x, wanted)
        for first, last in ((0, 1), (7, 9), (20, 24), (3, 9)):
            part, way_of_few = multiply(products, weight, np.ascontiguousarray(x[first:last]), wanted)
            ways.add((way_of_few, way))
            assert np.array_equal(part, together[first:last], equal_nan=True)
    assert (way_named(products, "digit_rows_way"), way_named(products, "digit_tiles_way")) in ways


@pytest.mark.parametrize("sizes", [(1, 1, 0), (37, 37, 0), (50, 40, 5), (16, 300, 284), (33, 700, 600), (90, 600, 0)])
@pytest.mark.parametrize("widths", [(2, 128, 64, 128), (3, 5, 6, 7)])
def test_emulated_tiles_attend(
    attention: ctypes._CFuncPtr, sizes: tuple[int, int, int], widths: tuple[int, int, int, int]
) -> None:
    rng = np.random.default_rng(8)
    (n_rows, n_keys, first_query), (n_heads, nope, rope_dim, value_dim) = sizes, widths
    query = rng.standard_normal((n_rows, n_heads, nope + rope_dim), np.float32)
    kv = rng.standard_normal((n_keys, n_heads, nope + value_dim), np.float32)
    k_pe = rng.standard_normal((n_keys, rope_dim), np.float32)
    results = []
    for implementation in ("tiles", "reference", "magnitudes"):
        running_max, running_sum = (
            np.full((n_rows, n_heads), -np.inf, np.float32),
            np.zeros((n_rows, n_heads), np.float32),
        )
        out = np.zeros((n_rows, n_heads, value_dim), np.float32)
        if implementation == "tiles":
            counts = np.array([n_rows, n_keys, *widths, first_query + 1], np.int64)
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in (counts, query, kv, k_pe)]
            outputs = [ctypes.c_void_p(array.ctypes.data) for array in (running_max, running_sum, out)]
            attention(*pointers, ctypes.c_float(0.1), *outputs)
        else:
            values = (
                np.concatenate([kv[:, :, :nope], abs(kv[:, :, nope:])], 2) if implementation == "magnitudes" else kv
            )
            attention_reference(query, values, k_pe, first_query, 0, 0.1, running_max, running_sum, out, n_threads=1)
        results.append(out / running_sum[:, :, None])
    tiles, expected, magnitude = results
    assert (abs(tiles - expected) <= 1e-2 * magnitude).all()
