"""softmax, compiled once per ISA; contract in `softmax.py`."""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size, stride
from deepzig._kernels._pool cimport parallel_for, rows_per_task
from deepzig._kernels._rows cimport exp_row, highest_of
from deepzig._kernels._simd cimport parts_of

cnp.import_array()


cdef struct Job:
    const float* x
    float* out
    int64_t n_rows, size, x_stride, out_stride, rows_per_task


cdef inline void softmax_row(const float* x, float* out, int64_t size) noexcept nogil:
    cdef float highest = highest_of(x, size)
    cdef float total = exp_row(x, highest if highest > -INFINITY else 0, out, size)
    cdef float factor = 1 / (total if total != 0 else 1)
    cdef int64_t s
    for s in range(size):
        out[s] *= factor


cdef void softmax_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef const Job* job = <const Job*>ctx
    cdef int64_t t
    for t in range(task * job.rows_per_task, min((task + 1) * job.rows_per_task, job.n_rows)):
        softmax_row(job.x + t * job.x_stride, job.out + t * job.out_stride, job.size)


def softmax(cnp.ndarray x not None, cnp.ndarray out not None, *, int n_threads):
    cdef Job job
    need_array(x, "x", cnp.NPY_FLOAT32, 2, 1)
    need_output(out, "out", cnp.NPY_FLOAT32, 2, 1)
    job.n_rows = cnp.PyArray_DIM(x, 0)
    job.size = cnp.PyArray_DIM(x, 1)
    need_size(out, "out", 0, job.n_rows)
    need_size(out, "out", 1, job.size)
    job.x, job.x_stride = floats(x), stride(x, 0)
    job.out, job.out_stride = floats(out), stride(out, 0)
    job.rows_per_task = rows_per_task(2 * sizeof(float) * job.size, job.n_rows, n_threads)
    with nogil:
        parallel_for(softmax_task, &job, parts_of(job.n_rows, job.rows_per_task), n_threads)
