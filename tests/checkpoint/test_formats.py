"""Weight formats: tensors to Weight and back, decoding against formulas written out, and every refusal."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bench.reference_rounding import plain_weight, quantize_fp8, quantize_int4, quantize_int8
from bench.weight_tensors import dequantize, tensors_from_weight, weight_from_tensors
from deepzig.checkpoint.schemes import CHANNEL, Declared, Scheme
from deepzig.errors import CheckpointError

Tensors = dict[str, np.ndarray]
SCALES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def integers(bits: int, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """i8 (N, K) over the whole range."""
    half = 1 << (bits - 1)
    return np.random.default_rng(seed).integers(-half, half, shape).astype(np.int8)


def scales(shape: tuple[int, int], dtype: Any = ml_dtypes.bfloat16) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.001, 0.02, shape).astype(dtype)


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """compressed-tensors' pack_to_int32, element by element: i32 (N, ceil(K / (32 / bits)))."""
    per_word = 32 // bits
    words = np.zeros((values.shape[0], -(-values.shape[1] // per_word)), dtype=np.uint32)
    for (row, column), value in np.ndenumerate(values):
        word, place = divmod(column, per_word)
        words[row, word] |= np.uint32(int(value) + (1 << (bits - 1))) << np.uint32(bits * place)
    return words.view(np.int32)


def packed(bits: int, shape: tuple[int, int], n_groups: int, dtype: Any = ml_dtypes.bfloat16) -> Tensors:
    return {
        "weight_packed": pack(integers(bits, shape), bits),
        "weight_scale": scales((shape[0], n_groups), dtype),
        "weight_shape": np.array(shape, dtype=np.int64),
    }


def fp8(shape: tuple[int, int], block: tuple[int, int] = (128, 128), dtype: Any = np.float32) -> Tensors:
    values = np.random.default_rng(2).standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    blocks = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    return {"weight": values, "weight_scale_inv": scales(blocks, dtype)}


def expanded(scale: np.ndarray, shape: tuple[int, int], block: tuple[int, int]) -> np.ndarray:
    """f32 (N, K): the scale of each element."""
    rows, columns = np.arange(shape[0]) // block[0], np.arange(shape[1]) // block[1]
    return scale.astype(np.float32)[rows[:, None], columns[None, :]]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_plain_weight_is_used_where_it_lies(dtype: Any) -> None:
    stored = np.random.default_rng(0).standard_normal((5, 7)).astype(dtype)
    stored.flags.writeable = False
    weight = weight_from_tensors("m", (5, 7), {"weight": stored})
    assert weight.format == next(name for name, known in SCALES.items() if known == dtype)
    assert np.shares_memory(weight.codes, stored)
    np.testing.assert_array_equal(dequantize(weight), stored.astype(np.float32))


def test_special_values_decode_exactly() -> None:
    values = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 3e38, -1.5]], dtype=np.float32)
    for dtype in (ml_dtypes.bfloat16, np.float16):
        with np.errstate(over="ignore"):
            stored = values.astype(dtype)
        np.testing.assert_array_equal(
            dequantize(weight_from_tensors("m", (1, 8), {"weight": stored})), stored.astype(np.float32)
        )


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("shape", "block"), [((128, 128), (128, 128)), ((130, 300), (128, 128)), ((20, 50), (16, 32))])
def test_fp8_blocks(shape: tuple[int, int], block: tuple[int, int], dtype: Any) -> None:
    tensors = fp8(shape, block, dtype)
    weight = weight_from_tensors("m", shape, tensors, Declared("fp8", "fp8", block))
    assert (weight.format, weight.block_rows, weight.group_size) == ("fp8", *block)
    assert np.shares_memory(weight.codes, tensors["weight"])
    assert weight.scale is not None and np.shares_memory(weight.scale, tensors["weight_scale_inv"])
    expected = tensors["weight"].astype(np.float32) * expanded(tensors["weight_scale_inv"], shape, block)
    np.testing.assert_array_equal(dequantize(weight), expected)


def test_all_256_fp8_codes() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128).view(ml_dtypes.float8_e4m3fn)
    weight = weight_from_tensors("m", (2, 128), {"weight": codes, "weight_scale_inv": np.full((1, 1), 2, np.float32)})
    np.testing.assert_array_equal(dequantize(weight), codes.astype(np.float32) * 2)


def test_int8_in_the_fp8_layout() -> None:
    tensors = {"weight": integers(8, (130, 140)), "weight_scale_inv": scales((2, 2), np.float32)}
    weight = weight_from_tensors("m", (130, 140), tensors, Declared("blockwise_int8", "int8"))
    assert (weight.format, weight.offset, weight.block_rows) == ("int8", 0, 128)
    expected = tensors["weight"].astype(np.float32) * expanded(tensors["weight_scale_inv"], (130, 140), (128, 128))
    np.testing.assert_array_equal(dequantize(weight), expected)


@pytest.mark.parametrize("dtype", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("n_columns", "group_size"), [(128, 32), (128, 64), (256, 128), (96, 96), (100, 100), (13, 13), (64, 64)]
)
def test_pack_quantized(bits: int, n_columns: int, group_size: int, dtype: Any) -> None:
    shape = (3, n_columns)
    tensors = packed(bits, shape, n_columns // group_size, dtype)
    allowed = frozenset(Scheme(f"int{bits}", size) for size in (group_size, CHANNEL))
    declared = Declared("compressed-tensors", integers=allowed)
    weight = weight_from_tensors("m", shape, tensors, declared)
    assert (weight.format, weight.group_size, weight.offset) == (f"int{bits}", group_size, 128 if bits == 8 else 0)
    assert np.shares_memory(weight.codes, tensors["weight_packed"])
    expected = integers(bits, shape).astype(np.float32) * expanded(tensors["weight_scale"], shape, (1, group_size))
    np.testing.assert_array_equal(dequantize(weight), expected)


@pytest.mark.parametrize(("n_columns", "group_size"), [(128, 32), (100, 100)])
def test_int_quantized(n_columns: int, group_size: int) -> None:
    shape = (3, n_columns)
    tensors = {"weight": integers(8, shape), "weight_scale": scales((3, n_columns // group_size))}
    weight = weight_from_tensors("m", shape, tensors)
    assert (weight.format, weight.offset, weight.group_size) == ("int8", 0, group_size)
    expected = tensors["weight"].astype(np.float32) * expanded(tensors["weight_scale"], shape, (1, group_size))
    np.testing.assert_array_equal(dequantize(weight), expected)


W = np.random.default_rng(3).standard_normal((300, 192)).astype(np.float32)
WEIGHTS = {
    "f32": plain_weight(W, "f32"),
    "f16": plain_weight(W, "f16"),
    "bf16": plain_weight(W, "bf16"),
    "fp8": quantize_fp8(W),
    "int8": quantize_int8(W, 64),
    "int8 channel": quantize_int8(W, 192),
    "int4": quantize_int4(W, 64),
    "int8 blocks": weight_from_tensors(
        "m", (300, 192), {"weight": integers(8, (300, 192)), "weight_scale_inv": scales((3, 2))}
    ),
    "int-quantized": weight_from_tensors(
        "m", (300, 192), {"weight": integers(8, (300, 192)), "weight_scale": scales((300, 1))}
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_tensors_from_weight_is_the_inverse(name: str) -> None:
    weight = WEIGHTS[name]
    tensors = tensors_from_weight(weight)
    again = weight_from_tensors("m", weight.shape, tensors)
    assert np.shares_memory(again.codes, weight.codes)
    for field in ("format", "shape", "scale_format", "group_size", "block_rows", "offset"):
        assert getattr(again, field) == getattr(weight, field)
    np.testing.assert_array_equal(dequantize(again), dequantize(weight))


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(
    "rows", [slice(0, 0), slice(3, 4), slice(100, 131), slice(250, None), slice(-2, None), slice(9, 3)]
)
def test_dequantize_some_rows(name: str, rows: slice) -> None:
    np.testing.assert_array_equal(dequantize(WEIGHTS[name], rows), dequantize(WEIGHTS[name])[rows])


def without(tensors: Tensors, suffix: str) -> Tensors:
    return {name: array for name, array in tensors.items() if name != suffix}


INT4 = packed(4, (3, 128), 2)
INT8 = {"weight": integers(8, (3, 128)), "weight_scale": scales((3, 2))}
FP8 = fp8((130, 128))
FAULTY: dict[str, tuple[tuple[int, int], Tensors, str]] = {
    "nothing": ((3, 4), {}, r"'m\.weight' is missing, expected shape \(3, 4\)"),
    "shape": ((3, 4), {"weight": np.zeros((4, 3), np.float32)}, r"'m\.weight' has shape \(4, 3\), expected \(3, 4\)"),
    "dtype": ((3, 4), {"weight": np.zeros((3, 4))}, r"'m\.weight' has dtype F64, expected F32 or F16 or BF16"),
    "fp8 without scale": ((130, 128), without(FP8, "weight_scale_inv"), r"'m\.weight_scale_inv' is missing"),
    "fp8 scale shape": (
        (130, 128), {**FP8, "weight_scale_inv": scales((1, 1))}, r"shape \(1, 1\), expected \(2, 1\)"),
    "fp8 scale dtype": (
        (130, 128), {**FP8, "weight_scale_inv": scales((2, 1), ml_dtypes.float8_e8m0fnu)}, "dtype F8_E8M0"),
    "int8 without scale": ((3, 128), without(INT8, "weight_scale"), r"'m\.weight_scale' is missing"),
    "int4 without scale": ((3, 128), without(INT4, "weight_scale"), r"'m\.weight_scale' is missing"),
    "int4 without shape": ((3, 128), without(INT4, "weight_shape"), r"'m\.weight_shape' is missing"),
    "int4 without codes": ((3, 128), without(INT4, "weight_packed"), r"'m\.weight_packed' is missing"),
    "int4 words": ((3, 128), {**INT4, "weight_packed": np.zeros((3, 9), np.int32)}, r"\(3, 9\), expected \(3, 16\)"),
    "int4 scale rows": ((3, 128), {**INT4, "weight_scale": scales((2, 2))}, r"\(2, 2\), expected \(3, 2\)"),
    "int4 uneven groups": ((3, 128), {**INT4, "weight_scale": scales((3, 3))}, r"\(3, 3\), expected \(3, 4\)"),
    "int4 flat scale": ((3, 128), {**INT4, "weight_scale": scales((3, 1))[:, 0]}, r"\(3,\), expected \(3, 1\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTY)
def test_missing_or_misshapen_tensor_is_named_with_both_shapes(case: str) -> None:
    shape, tensors, message = FAULTY[case]
    with pytest.raises(CheckpointError, match=message):
        weight_from_tensors("m", shape, tensors)


def test_several_faults_of_a_module_are_reported_together() -> None:
    with pytest.raises(CheckpointError, match=r"weight_scale' is missing.*; 'm\.weight_shape' is missing"):
        weight_from_tensors("m", (3, 128), {"weight_packed": INT4["weight_packed"]})


ONE = np.zeros((1,), dtype=np.float32)
FOREIGN: dict[str, tuple[Tensors, str]] = {
    "awq": ({"qweight": np.zeros((128, 1), np.int32), "qzeros": ONE, "scales": ONE}, "AWQ or GPTQ"),
    "gptq": ({"qweight": np.zeros((16, 3), np.int32), "g_idx": ONE}, "GPTQ"),
    "mlx": ({"weight": np.zeros((3, 16), np.uint32), "scales": ONE, "biases": ONE}, "MLX"),
    "asymmetric": ({**INT4, "weight_zero_point": ONE}, "asymmetric"),
    "actorder": ({**INT4, "weight_g_idx": ONE}, "activation-ordered"),
    "nvfp4": ({**INT4, "weight_global_scale": ONE}, "nvfp4"),
    "mxfp4": ({**INT4, "weight_packed": np.zeros((3, 64), np.uint8)}, "nvfp4 or mxfp4"),
    "float-quantized": ({"weight": fp8((3, 128))["weight"], "weight_scale": scales((3, 1))}, "float-quantized"),
    "fp8 of one scale": (
        {**fp8((3, 128)), "weight_scale_inv": np.ones(1, np.float32)},
        "one scale for the whole tensor",
    ),
    "fp8 of a scalar": ({**fp8((3, 128)), "weight_scale_inv": np.array(1, np.float32)}, "one scale for the whole"),
    "int8 of one scale": ({**INT8, "weight_scale": ONE}, "one scale for the whole tensor"),
    "groups of 16": ({**INT4, "weight_scale": scales((3, 8))}, "groups of 16"),
    "bf16 with scales": ({"weight": np.zeros((3, 128), np.float32), "weight_scale": ONE}, "F32 weight with scales"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_scheme_is_named(case: str) -> None:
    tensors, scheme = FOREIGN[case]
    with pytest.raises(CheckpointError, match=f"'m' is stored with .*{scheme}.*not supported"):
        weight_from_tensors("m", (3, 128), tensors)


INT8_128 = Declared("compressed-tensors", integers=frozenset({Scheme("int8", 128)}))


@pytest.mark.parametrize(
    ("tensors", "declared"),
    [
        (INT4, INT8_128),
        (INT4, Declared("fp8", "fp8")),
        (INT4, Declared("compressed-tensors", integers=frozenset({Scheme("int4", 32)}))),
        (INT4, Declared("compressed-tensors")),
        (INT8, Declared("blockwise_int8", "int8")),
        (fp8((3, 128)), INT8_128),
        (fp8((3, 128)), Declared("blockwise_int8", "int8")),
    ],
)
def test_tensors_that_contradict_the_config(tensors: Tensors, declared: Declared) -> None:
    with pytest.raises(CheckpointError, match="but quantization_config of config"):
        weight_from_tensors("m", (3, 128), tensors, declared)


def test_plain_weights_agree_with_any_config() -> None:
    stored = {"weight": np.zeros((3, 128), np.float32)}
    for declared in (INT8_128, Declared("fp8", "fp8"), None):
        assert weight_from_tensors("m", (3, 128), stored, declared).format == "f32"
