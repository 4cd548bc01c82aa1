"""Query into the latent space, compiled once per ISA; contract in `absorb_query.py`."""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size, stride
from deepzig._kernels._pool cimport parallel_for
from deepzig._kernels._tiles cimport (
    FOR_TASK, Matrix, TILE_X_ROWS, codes_of, dequantize_row, float_matrix, has_nan, fits_steps, matrix_of, mix_rows, padded,
    prefetch_range, rows_of_head, thread_floats,
)

cnp.import_array()

cdef enum:
    L1_ROWS = 16  # weight rows whose columns are met part by part: they stay in L1 meanwhile


cdef struct Job:
    Matrix weight
    const float* query
    float* out
    int64_t n_rows, n_heads, nope, head_rows, query_stride, query_head_stride, out_stride, out_head_stride
    bint no_memory


cdef void head_task(void* ctx, int64_t head, int thread) noexcept nogil:
    """One head for all rows. Sums gather in padded rows of the thread, then move to `out`."""
    cdef Job* job = <Job*>ctx
    cdef int64_t rank = job.weight.k, width = padded(rank), first = head * job.head_rows, t, j, n, count, rows
    cdef bint decoded = (
        not fits_steps(&job.weight) or job.n_rows > TILE_X_ROWS or has_nan(&job.weight, first, first + job.nope)
    )
    cdef float* sums = thread_floats(FOR_TASK, (TILE_X_ROWS + (job.nope if decoded else 0)) * width)
    cdef Matrix matrix = job.weight
    cdef const float* coefficients[8]  # of TILE_X_ROWS at most
    if sums == NULL:
        job.no_memory = True
        return
    if decoded:
        matrix = float_matrix(sums + TILE_X_ROWS * width, job.nope, width, width)
        for n in range(job.nope):
            dequantize_row(&job.weight, first + n, sums + (TILE_X_ROWS + n) * width)
            memset(sums + (TILE_X_ROWS + n) * width + rank, 0, (width - rank) * sizeof(float))
        first = 0
    t = 0
    while t < job.n_rows:
        count = min(TILE_X_ROWS, job.n_rows - t)
        memset(sums, 0, count * width * sizeof(float))
        n = 0
        while n < job.nope:
            rows = job.nope if decoded else min(L1_ROWS, job.nope - n)
            for j in range(count):
                coefficients[j] = job.query + (t + j) * job.query_stride + head * job.query_head_stride + n
            if not decoded:  # soon this thread will want the same rows of the next head
                prefetch_range(codes_of(&matrix, first + n + job.head_rows), rows * matrix.row_bytes)
            mix_rows(&matrix, first + n, first + n + rows, coefficients, <int>count, width, sums, width)
            n += rows
        for j in range(count):
            memcpy(job.out + (t + j) * job.out_stride + head * job.out_head_stride, sums + j * width, rank * sizeof(float))
        t += count


def absorb_query(cnp.ndarray q_nope not None, kv_b_proj not None, cnp.ndarray out not None, *, int n_threads):
    cdef Job job
    need_array(q_nope, "q_nope", cnp.NPY_FLOAT32, 3, 1)
    need_output(out, "out", cnp.NPY_FLOAT32, 3, 1)
    job.weight = matrix_of(kv_b_proj)[0]
    job.n_rows, job.n_heads, job.nope = cnp.PyArray_DIM(q_nope, 0), cnp.PyArray_DIM(q_nope, 1), cnp.PyArray_DIM(q_nope, 2)
    need_size(out, "out", 0, job.n_rows)
    need_size(out, "out", 1, job.n_heads)
    need_size(out, "out", 2, job.weight.k)
    job.head_rows = rows_of_head(&job.weight, job.n_heads, job.nope)
    job.query, job.query_stride, job.query_head_stride = floats(q_nope), stride(q_nope, 0), stride(q_nope, 1)
    job.out, job.out_stride, job.out_head_stride = floats(out), stride(out, 0), stride(out, 1)
    job.no_memory = False
    with nogil:
        parallel_for(head_task, &job, job.n_heads, n_threads)
    if job.no_memory:
        raise MemoryError
