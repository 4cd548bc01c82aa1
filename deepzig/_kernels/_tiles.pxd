"""Products of tiles.h, blocks.h and ways.h for Cython code: see there for what they compute and in which order."""

from libc.stdint cimport int64_t, uint8_t
cimport numpy as cnp

from deepzig._kernels._array cimport need_array, need_size


cdef extern from "tiles.h" nogil:
    int64_t LANES
    int64_t TILE_X_ROWS

    ctypedef struct Matrix:
        int64_t codes, scale, n, k, row_bytes, format, scale_format, group_size, block_rows, offset

    const uint8_t* codes_of(const Matrix* w, int64_t row)
    void prefetch_range(const void* first, int64_t bytes)
    int64_t parts_of(int64_t n, int64_t size)
    int64_t round_up(int64_t n, int64_t size)
    int64_t padded(int64_t k)
    int64_t copy_stride(int64_t k)
    int FOR_TASK
    int FOR_CALL
    float* thread_floats(int use, int64_t count)
    bint fits_steps(const Matrix* w)
    bint has_nan(const Matrix* w, int64_t first, int64_t last)
    Matrix float_matrix(const float* values, int64_t n, int64_t k, int64_t row_stride)
    void dequantize_row(const Matrix* w, int64_t n, float* out)
    void mix_rows(const Matrix* w, int64_t first, int64_t last, const float** c, int outs, int64_t width, float* out,
                  int64_t out_stride)


cdef extern from "blocks.h" nogil:
    int64_t PASS_X_ROWS

    int64_t dot_space(const Matrix* w)
    void dot_block(const Matrix* w, int64_t first, int64_t last, const float** x, int64_t x_rows, float* out,
                   int64_t out_stride, float* space)


cdef extern from "ways.h" nogil:
    int WAY_FLOATS
    int64_t PACK_X_ROWS

    ctypedef struct Way:
        int kind, parts

    Way way_for(const Matrix* w, int arithmetic, int64_t x_rows)
    bint same_packing(Way a, const Matrix* first, Way b, const Matrix* second)
    int64_t packed_bytes(Way way, const Matrix* w, int64_t x_rows)
    int64_t pack_space(Way way, const Matrix* w)
    void pack_rows(Way way, const Matrix* w, const float** x, int64_t x_rows, uint8_t* packed, float* space)
    int64_t multiply_space(Way way, const Matrix* w, int64_t rows)
    int64_t row_multiple(Way way)
    bint takes_floats(Way way)
    int64_t weight_rows_per_task(Way way, const Matrix* w, int64_t bytes)
    bint packs(Way way)
    bint wants_copies(Way way, const Matrix* w, int64_t x_rows)
    void multiply(Way way, const Matrix* w, int64_t first, int64_t last, const float** x, const uint8_t* packed,
                  int64_t x_rows, float* out, int64_t out_stride, const void* next, float* space)


cdef inline const Matrix* matrix_of(weight) except NULL:
    """The descriptor of a `weight.Weight`, which holds it; ValueError for anything else."""
    cdef cnp.ndarray descriptor = weight.descriptor
    need_array(descriptor, "weight.descriptor", cnp.NPY_INT64, 1, 1)
    need_size(descriptor, "weight.descriptor", 0, sizeof(Matrix) // sizeof(int64_t))
    return <const Matrix*>cnp.PyArray_DATA(descriptor)


cdef inline int64_t rows_of_head(const Matrix* kv_b_proj, int64_t n_heads, int64_t needed) except -1:
    """Rows of kv_b_proj (H (N + V), R) for a head, at least `needed`; ValueError if they cannot be."""
    cdef int64_t rows = kv_b_proj.n // max(1, n_heads)
    if rows * n_heads != kv_b_proj.n or rows < needed:
        raise ValueError(f"kv_b_proj of {kv_b_proj.n} rows does not fit {n_heads} heads of {needed}")
    return rows
