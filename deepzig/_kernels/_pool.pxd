"""C interface of the thread pool, for compiled kernels: `from deepzig._kernels._pool cimport parallel_for`."""

from libc.stdint cimport int64_t

ctypedef void (*task_fn)(void* ctx, int64_t task, int thread) noexcept nogil

# fn(ctx, task, thread) for every task in [0, n_tasks); thread is in [0, n_threads), and no two calls that overlap in
# time have the same one. The order of tasks is free. With one task or one thread no other thread is involved.
cdef void parallel_for(task_fn fn, void* ctx, int64_t n_tasks, int n_threads) noexcept nogil

# A task should touch at most TASK_BYTES, and work below SPLIT_FROM_BYTES stays on one thread, so that a region's fork and
# join do not show.
cdef enum:
    TASK_BYTES = 65536
    SPLIT_FROM_BYTES = 32768


cdef inline int64_t per_thread(int64_t n, int n_threads) noexcept nogil:
    """n split among threads, rounded up; below 1 they count as one."""
    return (n + max(1, n_threads) - 1) // max(1, n_threads)


cdef inline int64_t rows_per_task(int64_t bytes_per_row, int64_t n_rows, int n_threads) noexcept nogil:
    """How many rows make a task, for kernels whose cost is the bytes that they touch: from SPLIT_FROM_BYTES on, every
    thread gets a part."""
    cdef int64_t rows = max(1, TASK_BYTES // max(1, bytes_per_row))
    if n_rows * bytes_per_row >= SPLIT_FROM_BYTES:
        rows = min(rows, per_thread(n_rows, n_threads))
    return max(1, rows)
