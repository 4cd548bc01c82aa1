"""Attention output out of the latent space, compiled once per ISA; contract in `absorb_value.py`."""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size
from deepzig._kernels._pool cimport parallel_for
from deepzig._kernels._tiles cimport (
    FOR_CALL, FOR_TASK, Matrix, dot_block, dot_space, fits_steps, matrix_of, padded, rows_of_head, thread_floats,
)

cnp.import_array()


cdef struct Job:
    Matrix weight
    const float** rows  # (H, T) rows of o_latent, padded where the weight needs it
    float* out
    int64_t n_rows, n_heads, value_dim, head_rows
    bint no_memory


cdef void head_task(void* ctx, int64_t head, int thread) noexcept nogil:
    cdef Job* job = <Job*>ctx
    cdef int64_t last = (head + 1) * job.head_rows
    cdef float* space = thread_floats(FOR_TASK, dot_space(&job.weight))
    if space == NULL:
        job.no_memory = True
        return
    dot_block(&job.weight, last - job.value_dim, last, job.rows + head * job.n_rows, job.n_rows,
              job.out + head * job.value_dim, job.n_heads * job.value_dim, space)


cdef void run(Job* job, const float* o_latent, int n_threads) noexcept nogil:
    """Rows of o_latent as pointers, copied where they must end in zeros; then the products."""
    cdef int64_t t, head, rank = job.weight.k, width = padded(rank), total = job.n_rows * job.n_heads
    cdef bint copies = not fits_steps(&job.weight)
    cdef float* shared = thread_floats(FOR_CALL, padded(2 * total) + (total * width if copies else 0))
    cdef float* copy = shared + padded(2 * total)
    cdef const float* row
    if shared == NULL:
        job.no_memory = True
        return
    job.rows = <const float**>shared
    for t in range(job.n_rows):
        for head in range(job.n_heads):
            row = o_latent + (t * job.n_heads + head) * rank
            if copies:
                memcpy(copy, row, rank * sizeof(float))
                memset(copy + rank, 0, (width - rank) * sizeof(float))
                row = copy
                copy += width
            job.rows[head * job.n_rows + t] = row
    parallel_for(head_task, job, job.n_heads if job.n_rows else 0, n_threads)


def absorb_value(cnp.ndarray o_latent not None, kv_b_proj not None, cnp.ndarray out not None, *, int n_threads):
    cdef Job job
    need_array(o_latent, "o_latent", cnp.NPY_FLOAT32, 3, 3)
    need_output(out, "out", cnp.NPY_FLOAT32, 3, 3)
    job.weight = matrix_of(kv_b_proj)[0]
    job.n_rows, job.n_heads, job.value_dim = cnp.PyArray_DIM(out, 0), cnp.PyArray_DIM(out, 1), cnp.PyArray_DIM(out, 2)
    need_size(o_latent, "o_latent", 0, job.n_rows)
    need_size(o_latent, "o_latent", 1, job.n_heads)
    need_size(o_latent, "o_latent", 2, job.weight.k)
    job.head_rows = rows_of_head(&job.weight, job.n_heads, job.value_dim)
    job.out = floats(out)
    job.no_memory = False
    with nogil:
        run(&job, floats(o_latent), n_threads)
    if job.no_memory:
        raise MemoryError
