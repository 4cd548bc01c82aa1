"""dequantize, compiled once per ISA; contract in `dequantize.py`, the formats' arithmetic in weights.h."""

from libc.stdint cimport int64_t
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size, step
from deepzig._kernels._pool cimport parallel_for, rows_per_task
from deepzig._kernels._tiles cimport Matrix, dequantize_row

cnp.import_array()


cdef struct Job:
    const Matrix* weight
    float* out
    int64_t n_rows, row_start, out_step, task_rows


cdef void dequantize_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef const Job* job = <const Job*>ctx
    cdef int64_t i
    for i in range(task * job.task_rows, min((task + 1) * job.task_rows, job.n_rows)):
        dequantize_row(job.weight, job.row_start + i, job.out + i * job.out_step)


def dequantize(weight not None, int64_t row_start, cnp.ndarray out not None, *, int n_threads):
    cdef Job job
    cdef cnp.ndarray descriptor = weight.descriptor
    need_array(descriptor, "weight.descriptor", cnp.NPY_INT64, 1, 1)
    need_size(descriptor, "weight.descriptor", 0, sizeof(Matrix) // sizeof(int64_t))
    need_output(out, "out", cnp.NPY_FLOAT32, 2, 1)
    job.weight = <const Matrix*>cnp.PyArray_DATA(descriptor)
    job.n_rows = cnp.PyArray_DIM(out, 0)
    job.row_start = row_start
    need_size(out, "out", 1, job.weight.k)
    if row_start < 0 or row_start + job.n_rows > job.weight.n:
        raise ValueError(f"rows {row_start} to {row_start + job.n_rows} are not in a weight of {job.weight.n} rows")
    job.out, job.out_step = floats(out), step(out, 0)
    job.task_rows = rows_per_task(job.weight.row_bytes + sizeof(float) * job.weight.k)
    with nogil:
        parallel_for(dequantize_task, &job, (job.n_rows + job.task_rows - 1) // job.task_rows, n_threads)
