"""dequantize, compiled once per ISA; contract in `dequantize.py`, the formats' arithmetic in weights.h."""

from libc.stdint cimport int32_t, int64_t
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size, stride
from deepzig._kernels._pool cimport parallel_for, rows_per_task
from deepzig._kernels._tiles cimport Matrix, dequantize_row, matrix_of, parts_of

cnp.import_array()


cdef struct Job:
    const Matrix* weight
    const int32_t* rows
    float* out
    int64_t n_rows, out_stride, rows_per_task


cdef void dequantize_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef const Job* job = <const Job*>ctx
    cdef int64_t i
    for i in range(task * job.rows_per_task, min((task + 1) * job.rows_per_task, job.n_rows)):
        dequantize_row(job.weight, job.rows[i], job.out + i * job.out_stride)


def dequantize(weight not None, cnp.ndarray rows not None, cnp.ndarray out not None, *, int n_threads):
    cdef Job job
    cdef int64_t i
    need_array(rows, "rows", cnp.NPY_INT32, 1, 1)
    need_output(out, "out", cnp.NPY_FLOAT32, 2, 1)
    job.weight = matrix_of(weight)
    job.n_rows = cnp.PyArray_DIM(rows, 0)
    job.rows = <const int32_t*>cnp.PyArray_DATA(rows)
    need_size(out, "out", 0, job.n_rows)
    need_size(out, "out", 1, job.weight.k)
    for i in range(job.n_rows):
        if not 0 <= job.rows[i] < job.weight.n:
            raise ValueError(f"rows names row {job.rows[i]} of {job.weight.n}")
    job.out, job.out_stride = floats(out), stride(out, 0)
    job.rows_per_task = rows_per_task(job.weight.row_bytes + sizeof(float) * job.weight.k, job.n_rows, n_threads)
    with nogil:
        parallel_for(dequantize_task, &job, parts_of(job.n_rows, job.rows_per_task), n_threads)
