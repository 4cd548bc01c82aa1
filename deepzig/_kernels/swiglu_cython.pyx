"""swiglu, compiled once per ISA; contract in `swiglu.py`."""

from libc.stdint cimport int64_t
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size, stride
from deepzig._kernels._pool cimport parallel_for, rows_per_task
from deepzig._kernels._rows cimport swiglu_row
from deepzig._kernels._simd cimport parts_of

cnp.import_array()


cdef struct Job:
    const float* gate
    const float* up
    float* out
    int64_t n_rows, size, gate_stride, up_stride, out_stride, rows_per_task


cdef void swiglu_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef const Job* job = <const Job*>ctx
    cdef int64_t t
    for t in range(task * job.rows_per_task, min((task + 1) * job.rows_per_task, job.n_rows)):
        swiglu_row(job.gate + t * job.gate_stride, job.up + t * job.up_stride, job.out + t * job.out_stride, job.size)


def swiglu(cnp.ndarray gate not None, cnp.ndarray up not None, cnp.ndarray out not None, *, int n_threads):
    cdef Job job
    need_array(gate, "gate", cnp.NPY_FLOAT32, 2, 1)
    need_array(up, "up", cnp.NPY_FLOAT32, 2, 1)
    need_output(out, "out", cnp.NPY_FLOAT32, 2, 1)
    job.n_rows = cnp.PyArray_DIM(gate, 0)
    job.size = cnp.PyArray_DIM(gate, 1)
    need_size(up, "up", 0, job.n_rows)
    need_size(up, "up", 1, job.size)
    need_size(out, "out", 0, job.n_rows)
    need_size(out, "out", 1, job.size)
    job.gate, job.gate_stride = floats(gate), stride(gate, 0)
    job.up, job.up_stride = floats(up), stride(up, 0)
    job.out, job.out_stride = floats(out), stride(out, 0)
    job.rows_per_task = rows_per_task(3 * sizeof(float) * job.size, job.n_rows, n_threads)
    with nogil:
        parallel_for(swiglu_task, &job, parts_of(job.n_rows, job.rows_per_task), n_threads)
