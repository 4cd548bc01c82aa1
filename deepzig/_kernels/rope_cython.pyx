"""rope, compiled once per ISA; contract in `rope.py`."""

from libc.stdint cimport int64_t
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size, stride
from deepzig._kernels._pool cimport parallel_for, rows_per_task
from deepzig._kernels._simd cimport parts_of

cnp.import_array()


cdef extern from *:
    """
    /* C, because only `restrict` lets the compiler use vectors for pairs. */
    static inline void rotate_interleaved(float *restrict x, const float *restrict cos, const float *restrict sin,
                                          int64_t half) {
        for (int64_t i = 0; i < half; i++) {
            float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cos[i] - b * sin[i];
            x[2 * i + 1] = b * cos[i] + a * sin[i];
        }
    }

    static inline void rotate_halves(float *restrict first, float *restrict second, const float *restrict cos,
                                     const float *restrict sin, int64_t half) {
        for (int64_t i = 0; i < half; i++) {
            float a = first[i], b = second[i];
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }
    """
    void rotate_interleaved(float* x, const float* cos, const float* sin, int64_t half) noexcept nogil
    void rotate_halves(float* first, float* second, const float* cos, const float* sin, int64_t half) noexcept nogil


cdef struct Job:
    float* x
    const float* cos
    const float* sin
    int64_t n_rows, n_heads, half, x_stride, head_stride, cos_stride, sin_stride, rows_per_task
    bint interleave


cdef inline void rope_token(const Job* job, int64_t t) noexcept nogil:
    cdef const float* cos = job.cos + t * job.cos_stride
    cdef const float* sin = job.sin + t * job.sin_stride
    cdef float* x = job.x + t * job.x_stride
    cdef int64_t h
    for h in range(job.n_heads):
        if job.interleave:
            rotate_interleaved(x + h * job.head_stride, cos, sin, job.half)
        else:
            rotate_halves(x + h * job.head_stride, x + h * job.head_stride + job.half, cos, sin, job.half)


cdef void rope_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef const Job* job = <const Job*>ctx
    cdef int64_t t
    for t in range(task * job.rows_per_task, min((task + 1) * job.rows_per_task, job.n_rows)):
        rope_token(job, t)


def rope(cnp.ndarray x not None, cnp.ndarray cos not None, cnp.ndarray sin not None, bint interleave, *, int n_threads):
    cdef Job job
    need_output(x, "x", cnp.NPY_FLOAT32, 3, 1)
    need_array(cos, "cos", cnp.NPY_FLOAT32, 2, 1)
    need_array(sin, "sin", cnp.NPY_FLOAT32, 2, 1)
    job.n_rows = cnp.PyArray_DIM(x, 0)
    job.n_heads = cnp.PyArray_DIM(x, 1)
    job.half = cnp.PyArray_DIM(x, 2) // 2
    need_size(x, "x", 2, 2 * job.half)
    need_size(cos, "cos", 0, job.n_rows)
    need_size(cos, "cos", 1, job.half)
    need_size(sin, "sin", 0, job.n_rows)
    need_size(sin, "sin", 1, job.half)
    job.x, job.x_stride, job.head_stride = floats(x), stride(x, 0), stride(x, 1)
    job.cos, job.cos_stride = floats(cos), stride(cos, 0)
    job.sin, job.sin_stride = floats(sin), stride(sin, 0)
    job.interleave = interleave
    job.rows_per_task = rows_per_task(4 * sizeof(float) * job.half * job.n_heads, job.n_rows, n_threads)
    with nogil:
        parallel_for(rope_task, &job, parts_of(job.n_rows, job.rows_per_task), n_threads)
