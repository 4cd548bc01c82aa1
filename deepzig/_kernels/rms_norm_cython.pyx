"""RMSNorm, compiled once per ISA; contract in `rms_norm.py`."""

from libc.math cimport sqrtf
from libc.stdint cimport int64_t
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size, stride
from deepzig._kernels._pool cimport parallel_for, rows_per_task
from deepzig._kernels._simd cimport LANES, parts_of, vfloat, vload, vload_part, vset, vstore, vstore_part, vsum

cnp.import_array()


cdef struct Job:
    const float* x
    const float* weight
    float* out
    int64_t n_rows, size, x_stride, out_stride, rows_per_task
    float eps


cdef inline float inverse_rms(const float* x, int64_t size, float eps) noexcept nogil:
    cdef vfloat sum0 = vset(0), sum1 = vset(0), sum2 = vset(0), sum3 = vset(0), part
    cdef int64_t d = 0
    while d + 4 * LANES <= size:
        sum0 += vload(x + d) * vload(x + d)
        sum1 += vload(x + d + LANES) * vload(x + d + LANES)
        sum2 += vload(x + d + 2 * LANES) * vload(x + d + 2 * LANES)
        sum3 += vload(x + d + 3 * LANES) * vload(x + d + 3 * LANES)
        d += 4 * LANES
    while d < size:
        part = vload(x + d) if d + LANES <= size else vload_part(x + d, size - d)
        sum0 += part * part
        d += LANES
    return 1 / sqrtf(vsum((sum0 + sum1) + (sum2 + sum3)) / <float>size + eps)


cdef inline void norm_row(const Job* job, int64_t t) noexcept nogil:
    cdef const float* x = job.x + t * job.x_stride
    cdef float* out = job.out + t * job.out_stride
    cdef vfloat factor = vset(inverse_rms(x, job.size, job.eps))
    cdef int64_t d = 0
    while d + LANES <= job.size:
        vstore(out + d, vload(x + d) * factor * vload(job.weight + d))
        d += LANES
    if d < job.size:
        vstore_part(out + d, job.size - d,
                    vload_part(x + d, job.size - d) * factor * vload_part(job.weight + d, job.size - d))


cdef void norm_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef const Job* job = <const Job*>ctx
    cdef int64_t t
    for t in range(task * job.rows_per_task, min((task + 1) * job.rows_per_task, job.n_rows)):
        norm_row(job, t)


def rms_norm(cnp.ndarray x not None, cnp.ndarray weight not None, float eps, cnp.ndarray out not None, *, int n_threads):
    cdef Job job
    need_array(x, "x", cnp.NPY_FLOAT32, 2, 1)
    need_array(weight, "weight", cnp.NPY_FLOAT32, 1, 1)
    need_output(out, "out", cnp.NPY_FLOAT32, 2, 1)
    job.n_rows = cnp.PyArray_DIM(x, 0)
    job.size = cnp.PyArray_DIM(x, 1)
    need_size(weight, "weight", 0, job.size)
    need_size(out, "out", 0, job.n_rows)
    need_size(out, "out", 1, job.size)
    job.x, job.x_stride = floats(x), stride(x, 0)
    job.weight = floats(weight)
    job.out, job.out_stride = floats(out), stride(out, 0)
    job.eps = eps
    job.rows_per_task = rows_per_task(2 * sizeof(float) * job.size, job.n_rows, n_threads)
    with nogil:
        parallel_for(norm_task, &job, parts_of(job.n_rows, job.rows_per_task), n_threads)
