"""Prompt attention over one tile of expanded keys and values, compiled once per ISA; contract in `mla_prefill.py`.

A task is one head and some of its queries: keys and values are packed (`attention.h`), then meet ATTENTION_QUERIES
queries at a time.
"""

from libc.stdint cimport int64_t
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size
from deepzig._kernels._pool cimport parallel_for
from deepzig._kernels._tiles cimport FOR_TASK, parts_of, thread_floats

cnp.import_array()

cdef enum:
    TASKS_PER_THREAD = 4  # about; fewer, since each packs its head's keys, and more would not even out much


cdef extern from "attention.h" nogil:
    int64_t ATTENTION_QUERIES

    ctypedef struct PackedKeys:
        int64_t most_keys

    ctypedef struct Queries:
        const float* query
        float* running_max
        float* running_sum
        float* out
        int64_t query_stride, running_stride, out_stride, size, rope, value_dim, rows, next, visible
        float scale

    bint attention_in_bf16(int arithmetic)
    int64_t attention_space(bint bf16, int64_t nope, int64_t rope, int64_t value_dim)
    PackedKeys room_for_keys(bint bf16, int64_t nope, int64_t rope, int64_t value_dim, float* space)
    void pack_keys(PackedKeys* packed, const float* rows, int64_t stride, int64_t nope, const float* rope_rows,
                   int64_t rope, int64_t value_dim, int64_t n_keys)
    void attend(const Queries* q, const PackedKeys* packed)


cdef struct Job:
    const float* q  # (T, H, nope + rope_dim)
    const float* kv  # (S, H, nope + value_dim)
    const float* k_pe  # (S, rope_dim)
    float* running_max  # (T, H)
    float* running_sum  # (T, H)
    float* out  # (T, H, value_dim)
    int64_t n_rows, n_keys, n_heads, nope, rope_dim, value_dim
    int64_t ahead  # keys that query 0 sees; query t sees t more
    int64_t queries_per_task
    float softmax_scale
    bint bf16, no_memory


cdef int64_t queries_per_task(const Job* job, int n_threads) noexcept nogil:
    cdef int64_t queries = job.n_rows * job.n_heads // (TASKS_PER_THREAD * max(1, n_threads))
    return (queries // ATTENTION_QUERIES + 1) * ATTENTION_QUERIES


cdef void attend_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef Job* job = <Job*>ctx
    cdef int64_t head = task % job.n_heads, start = task // job.n_heads * job.queries_per_task, first = 0, t, at
    cdef int64_t stop = min(start + job.queries_per_task, job.n_rows), n_keys = min(job.n_keys, job.ahead + stop - 1)
    cdef int64_t stride = job.n_heads * (job.nope + job.value_dim)
    cdef float* space = thread_floats(FOR_TASK, attention_space(job.bf16, job.nope, job.rope_dim, job.value_dim))
    cdef PackedKeys packed
    cdef Queries queries
    if space == NULL:
        job.no_memory = True
        return
    packed = room_for_keys(job.bf16, job.nope, job.rope_dim, job.value_dim, space)
    queries.size, queries.rope, queries.value_dim = job.nope + job.rope_dim, job.rope_dim, job.value_dim
    queries.query_stride, queries.out_stride = job.n_heads * queries.size, job.n_heads * job.value_dim
    queries.running_stride = job.n_heads
    queries.scale = job.softmax_scale
    while first < n_keys:
        pack_keys(&packed, job.kv + first * stride + head * (job.nope + job.value_dim), stride, job.nope,
                  job.k_pe + first * job.rope_dim, job.rope_dim, job.value_dim, min(packed.most_keys, n_keys - first))
        t = max(start, first - job.ahead + 1)  # the first query that sees key `first`
        while t < stop:
            at = t * job.n_heads + head
            queries.rows, queries.visible = min(ATTENTION_QUERIES, stop - t), job.ahead + t - first
            queries.next = stop - t - queries.rows
            queries.query, queries.out = job.q + at * queries.size, job.out + at * job.value_dim
            queries.running_max, queries.running_sum = job.running_max + at, job.running_sum + at
            attend(&queries, &packed)
            t += ATTENTION_QUERIES
        first += packed.most_keys


def mla_prefill(cnp.ndarray q not None, cnp.ndarray kv not None, cnp.ndarray k_pe not None, int64_t first_query,
                int64_t first_key, float softmax_scale, cnp.ndarray running_max not None,
                cnp.ndarray running_sum not None, cnp.ndarray out not None, *, int arithmetic=0, int n_threads):
    cdef Job job
    need_array(q, "q", cnp.NPY_FLOAT32, 3, 3)
    need_array(kv, "kv", cnp.NPY_FLOAT32, 3, 3)
    need_array(k_pe, "k_pe", cnp.NPY_FLOAT32, 2, 2)
    need_output(running_max, "running_max", cnp.NPY_FLOAT32, 2, 2)
    need_output(running_sum, "running_sum", cnp.NPY_FLOAT32, 2, 2)
    need_output(out, "out", cnp.NPY_FLOAT32, 3, 3)
    job.n_rows, job.n_heads = cnp.PyArray_DIM(q, 0), cnp.PyArray_DIM(q, 1)
    job.n_keys, job.rope_dim = cnp.PyArray_DIM(k_pe, 0), cnp.PyArray_DIM(k_pe, 1)
    job.nope, job.value_dim = cnp.PyArray_DIM(q, 2) - job.rope_dim, cnp.PyArray_DIM(out, 2)
    need_size(kv, "kv", 0, job.n_keys)
    need_size(kv, "kv", 1, job.n_heads)
    need_size(kv, "kv", 2, job.nope + job.value_dim)
    for array, name in ((running_max, "running_max"), (running_sum, "running_sum"), (out, "out")):
        need_size(array, name, 0, job.n_rows)
        need_size(array, name, 1, job.n_heads)
    if job.nope < 0:
        raise ValueError(f"k_pe is wider than a query: {job.rope_dim}")
    job.q, job.kv, job.k_pe = floats(q), floats(kv), floats(k_pe)
    job.running_max, job.running_sum, job.out = floats(running_max), floats(running_sum), floats(out)
    job.ahead = first_query - first_key + 1
    job.softmax_scale = softmax_scale
    job.no_memory = False
    job.queries_per_task = queries_per_task(&job, n_threads)
    job.bf16 = attention_in_bf16(arithmetic)
    with nogil:
        parallel_for(attend_task, &job, job.n_heads * parts_of(job.n_rows, job.queries_per_task), n_threads)
    if job.no_memory:
        raise MemoryError
