"""Linear layer, compiled once per ISA; contract in `linear.py`."""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size, stride
from deepzig._kernels._pool cimport parallel_for, per_thread
from deepzig._kernels._tiles cimport (
    FOR_CALL, FOR_TASK, Matrix, PACK_X_ROWS, PASS_X_ROWS, Way, codes_of, copy_stride, matrix_of,
    multiply, multiply_space, pack_rows, pack_space, packed_bytes, packs, padded, parts_of, round_up, row_multiple,
    takes_floats, thread_floats, wants_copies, way_for, weight_rows_per_task,
)

cnp.import_array()

cdef enum:
    STREAM_BYTES = 96 << 10  # weights of a task when they are read once: long enough to hide the task's start
    SPLIT_FROM = 128 << 10  # multiplications of a product from which every thread gets a part
    PACKED_X_ROWS = 128  # x rows that meet all weights before the next ones do: packed to fewer bytes, they stay in L2
    PASS_FLOATS = 128 << 10  # the same for rows of floats, unless they meet panels, costly to make again


cdef struct Job:
    Matrix weight
    Way way
    const float* given  # x as it was given, given_stride apart
    const float** x  # T rows: of `given`, or of its copy
    float* copy  # with zeros behind each row, copy_stride apart, if wants_copies
    uint8_t* packed  # the rows packed, if the way packs
    int64_t given_stride, x_rows, first_x_row, rows_per_task, out_stride  # first_x_row: of the pass
    float* out
    bint no_memory


cdef inline int64_t pass_x_rows(const Job* job) noexcept nogil:
    if not takes_floats(job.way):
        return PACKED_X_ROWS
    return max(1, PASS_FLOATS // (job.weight.k * PASS_X_ROWS)) * PASS_X_ROWS


cdef void dot_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef Job* job = <Job*>ctx
    cdef int64_t first = task * job.rows_per_task
    cdef int64_t last = min(first + job.rows_per_task, job.weight.n)
    cdef float* space = thread_floats(FOR_TASK, multiply_space(job.way, &job.weight, job.rows_per_task))
    if space == NULL:
        job.no_memory = True
    else:
        multiply(job.way, &job.weight, first, last, job.x + job.first_x_row,
                 job.packed + packed_bytes(job.way, &job.weight, job.first_x_row),
                 min(pass_x_rows(job), job.x_rows - job.first_x_row), job.out + job.first_x_row * job.out_stride + first,
                 job.out_stride, codes_of(&job.weight, last), space)


cdef void copy_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef Job* job = <Job*>ctx
    cdef int64_t t, k = job.weight.k, width = copy_stride(k)
    for t in range(task * PACK_X_ROWS, min((task + 1) * PACK_X_ROWS, job.x_rows)):
        memcpy(job.copy + t * width, job.given + t * job.given_stride, k * sizeof(float))
        memset(job.copy + t * width + k, 0, (padded(k) - k) * sizeof(float))
        job.x[t] = job.copy + t * width


cdef void pack_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef Job* job = <Job*>ctx
    cdef int64_t first = task * PACK_X_ROWS
    cdef float* space = thread_floats(FOR_TASK, pack_space(job.way, &job.weight))
    if space == NULL:
        job.no_memory = True
    else:
        pack_rows(job.way, &job.weight, job.x + first, min(PACK_X_ROWS, job.x_rows - first),
                  job.packed + packed_bytes(job.way, &job.weight, first), space)


cdef void run(Job* job, int n_threads) noexcept nogil:
    """Rows of x as pointers, with zeros behind them or packed where the way needs it; then the products."""
    cdef int64_t t, pointers = padded(2 * job.x_rows)
    cdef int64_t copied = job.x_rows * copy_stride(job.weight.k) if wants_copies(job.way, &job.weight, job.x_rows) else 0
    cdef float* shared = thread_floats(
        FOR_CALL, pointers + copied + packed_bytes(job.way, &job.weight, job.x_rows) // 4)
    if shared == NULL:
        job.no_memory = True
        return
    job.x = <const float**>shared
    job.copy = shared + pointers
    job.packed = <uint8_t*>job.copy
    if copied:
        parallel_for(copy_task, job, parts_of(job.x_rows, PACK_X_ROWS), n_threads)
    else:
        for t in range(job.x_rows):
            job.x[t] = job.given + t * job.given_stride
    if packs(job.way):
        parallel_for(pack_task, job, parts_of(job.x_rows, PACK_X_ROWS), n_threads)
    job.first_x_row = 0
    while job.first_x_row < job.x_rows and not job.no_memory:
        parallel_for(dot_task, job, parts_of(job.weight.n, job.rows_per_task), n_threads)
        job.first_x_row += pass_x_rows(job)


def linear(cnp.ndarray x not None, weight not None, cnp.ndarray out not None, *, int arithmetic=0, int n_threads):
    cdef Job job
    need_array(x, "x", cnp.NPY_FLOAT32, 2, 1)
    need_output(out, "out", cnp.NPY_FLOAT32, 2, 1)
    job.weight = matrix_of(weight)[0]
    job.x_rows = cnp.PyArray_DIM(x, 0)
    need_size(x, "x", 1, job.weight.k)
    need_size(out, "out", 0, job.x_rows)
    need_size(out, "out", 1, job.weight.n)
    job.given, job.given_stride = floats(x), stride(x, 0)
    job.out, job.out_stride = floats(out), stride(out, 0)
    job.way = way_for(&job.weight, arithmetic, job.x_rows)
    job.rows_per_task = weight_rows_per_task(job.way, &job.weight, STREAM_BYTES)
    if job.x_rows * job.weight.n * job.weight.k >= SPLIT_FROM:
        job.rows_per_task = min(job.rows_per_task, round_up(per_thread(job.weight.n, n_threads), row_multiple(job.way)))
    job.no_memory = False
    with nogil:
        run(&job, n_threads)
    if job.no_memory:
        raise MemoryError
