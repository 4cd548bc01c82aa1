"""Prompt attention over one tile of expanded keys and values, compiled once per ISA; contract in `mla_prefill.py`.

A task is one head and some of its queries. KEY_BLOCK keys at a time are packed (k_nope beside k_pe, so that scores are
one dot product; values side by side, since 16 KB apart they meet in a few sets of a cache); then come MIX_COLUMNS
queries at a time: scores, running softmax, weighted sum of the values. With one bf16 term, where the ISA multiplies
bf16, packing and the queries' part are those of `bf16_attention.h`.
"""

from libc.math cimport INFINITY, expf
from libc.stdint cimport int64_t, uint16_t
from libc.string cimport memcpy, memset
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size
from deepzig._kernels._pool cimport parallel_for, task_fn
from deepzig._kernels._rows cimport exp_row, highest_of
from deepzig._kernels._tiles cimport (
    FOR_TASK, Matrix, MIX_COLUMNS, dot_floats, float_matrix, mix_floats, padded, thread_floats,
)

cnp.import_array()

cdef extern from "bf16_attention.h" nogil:
    bint BF16_ATTENTION  # whether the ISA multiplies bf16
    int64_t ATTENTION_QUERIES
    int64_t ATTENTION_PACK

    ctypedef struct PackedKeys:
        int64_t n_keys, padded_keys, width, value_width
        uint16_t* keys
        uint16_t* values

    ctypedef struct Queries:
        const float* query
        float* running_max
        float* running_sum
        float* out
        int64_t query_step, running_step, out_step, size, rope, value_dim, rows, next, visible
        float scale

    int64_t bf16_width(int64_t k)
    int64_t bf16_attention_space(int64_t width, int64_t value_width)
    void bf16_pack_keys(const float* nope_rows, int64_t nope_step, int64_t nope, const float* rope_rows, int64_t rope,
                        PackedKeys* to, float* space)
    void bf16_pack_values(const float* rows, int64_t step, int64_t value_dim, PackedKeys* to)
    void bf16_attend(const Queries* q, const PackedKeys* packed, float* space)


cdef int64_t KEY_BLOCK = 256  # packed keys and values should stay in L2
cdef enum:
    MAX_COLUMNS = 8
    TASKS_PER_THREAD = 4  # about; fewer, since each packs its head's keys, and more would not even out much


cdef struct Job:
    const float* query  # (T, H, nope + rope_dim)
    const float* kv  # (S, H, nope + value_dim)
    const float* k_pe  # (S, rope_dim)
    float* running_max  # (T, H)
    float* running_sum  # (T, H)
    float* out  # (T, H, value_dim)
    int64_t n_rows, n_keys, n_heads, nope, rope_dim, value_dim
    int64_t ahead  # keys that query 0 sees; query t sees t more
    int64_t task_rows  # queries of a task
    float softmax_scale
    bint no_memory


cdef int64_t rows_of_task(const Job* job, int n_threads) noexcept nogil:
    cdef int64_t rows = job.n_rows * job.n_heads // (TASKS_PER_THREAD * n_threads)
    return (rows // ATTENTION_QUERIES + 1) * ATTENTION_QUERIES


cdef void pack_keys(const Job* job, int64_t head, int64_t first, int64_t n_keys, float* keys,
                    float* values) noexcept nogil:
    """Keys from `first` on: keys (n_keys, padded(nope + rope_dim)), values (n_keys, padded(value_dim))."""
    cdef int64_t s, width = padded(job.nope + job.rope_dim), value_width = padded(job.value_dim)
    cdef const float* row
    cdef float* key
    for s in range(n_keys):
        row = job.kv + ((first + s) * job.n_heads + head) * (job.nope + job.value_dim)
        key = keys + s * width
        memcpy(key, row, job.nope * sizeof(float))
        memcpy(key + job.nope, job.k_pe + (first + s) * job.rope_dim, job.rope_dim * sizeof(float))
        memset(key + job.nope + job.rope_dim, 0, (width - job.nope - job.rope_dim) * sizeof(float))
        memcpy(values + s * value_width, row + job.nope, job.value_dim * sizeof(float))
        memset(values + s * value_width + job.value_dim, 0, (value_width - job.value_dim) * sizeof(float))


cdef void attend(const Job* job, int64_t head, int64_t t, int64_t count, int64_t first, const Matrix* keys,
                 const Matrix* values, float* scores, float* sums, float* queries) noexcept nogil:
    """`count` queries from t on, and the packed keys, which begin with key `first`.

    scores (count, KEY_BLOCK), sums (count, padded(value_dim)), queries (count, padded(nope + rope_dim)).
    """
    cdef int64_t width = keys.k, value_width = padded(job.value_dim), j, s, visible, at
    cdef int64_t most = max(0, min(keys.n, job.ahead + t + count - 1 - first))
    cdef const float* x[MAX_COLUMNS]
    cdef float highest, keep
    for j in range(count):
        memcpy(queries + j * width, job.query + ((t + j) * job.n_heads + head) * (job.nope + job.rope_dim),
               (job.nope + job.rope_dim) * sizeof(float))
        x[j] = queries + j * width
    dot_floats(keys, 0, most, x, count, scores, KEY_BLOCK)
    for j in range(count):
        visible = max(0, min(keys.n, job.ahead + t + j - first))
        at = (t + j) * job.n_heads + head
        x[j] = scores + j * KEY_BLOCK
        for s in range(visible):
            scores[j * KEY_BLOCK + s] *= job.softmax_scale
        memset(scores + j * KEY_BLOCK + visible, 0, (most - visible) * sizeof(float))
        highest = job.running_max[at]
        keep = 1
        if visible:
            highest = max(highest, highest_of(x[j], visible))
            keep = expf(job.running_max[at] - highest)
            job.running_sum[at] = job.running_sum[at] * keep + exp_row(x[j], highest, scores + j * KEY_BLOCK, visible)
            job.running_max[at] = highest
        for s in range(job.value_dim):
            sums[j * value_width + s] = job.out[at * job.value_dim + s] * keep
    mix_floats(values, 0, most, x, count, value_width, sums, value_width)
    for j in range(count):
        memcpy(job.out + ((t + j) * job.n_heads + head) * job.value_dim, sums + j * value_width,
               job.value_dim * sizeof(float))


cdef void attend_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef Job* job = <Job*>ctx
    cdef int64_t head = task % job.n_heads, start = task // job.n_heads * job.task_rows, first, count, t
    cdef int64_t stop = min(start + job.task_rows, job.n_rows), n_keys = min(job.n_keys, job.ahead + stop - 1)
    cdef int64_t width = padded(job.nope + job.rope_dim), value_width = padded(job.value_dim)
    cdef float* keys = thread_floats(FOR_TASK, (KEY_BLOCK + MIX_COLUMNS) * (width + value_width)
                                     + MIX_COLUMNS * KEY_BLOCK)
    cdef float* values = keys + KEY_BLOCK * width
    cdef float* queries = values + KEY_BLOCK * value_width
    cdef float* sums = queries + MIX_COLUMNS * width
    cdef float* scores = sums + MIX_COLUMNS * value_width
    cdef Matrix key_matrix, value_matrix
    if keys == NULL:
        job.no_memory = True
        return
    memset(queries, 0, MIX_COLUMNS * (width + value_width + KEY_BLOCK) * sizeof(float))
    for first from 0 <= first < n_keys by KEY_BLOCK:
        count = min(KEY_BLOCK, n_keys - first)
        pack_keys(job, head, first, count, keys, values)
        key_matrix = float_matrix(keys, count, width, width)
        value_matrix = float_matrix(values, count, value_width, value_width)
        t = max(start, first - job.ahead + 1)  # the first query that sees key `first`
        while t < stop:
            attend(job, head, t, min(MIX_COLUMNS, stop - t), first, &key_matrix, &value_matrix, scores, sums, queries)
            t += MIX_COLUMNS


cdef void attend_bf16_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef Job* job = <Job*>ctx
    cdef int64_t head = task % job.n_heads, start = task // job.n_heads * job.task_rows, first, t, at
    cdef int64_t stop = min(start + job.task_rows, job.n_rows), n_keys = min(job.n_keys, job.ahead + stop - 1)
    cdef int64_t step = job.n_heads * (job.nope + job.value_dim)
    cdef PackedKeys packed
    cdef Queries queries
    cdef const float* row
    packed.width, packed.value_width = bf16_width(job.nope + 2 * job.rope_dim), bf16_width(job.value_dim)
    cdef int64_t packed_floats = ATTENTION_PACK * (packed.width + packed.value_width) // 2
    cdef float* space = thread_floats(
        FOR_TASK, packed_floats + bf16_attention_space(packed.width, packed.value_width))
    if space == NULL:
        job.no_memory = True
        return
    packed.keys = <uint16_t*>space
    packed.values = packed.keys + ATTENTION_PACK * packed.width
    space += packed_floats
    queries.size, queries.rope, queries.value_dim = job.nope + job.rope_dim, job.rope_dim, job.value_dim
    queries.scale = job.softmax_scale
    queries.query_step, queries.out_step = job.n_heads * queries.size, job.n_heads * job.value_dim
    queries.running_step = job.n_heads
    for first from 0 <= first < n_keys by ATTENTION_PACK:
        packed.n_keys = min(ATTENTION_PACK, n_keys - first)
        packed.padded_keys = bf16_width(packed.n_keys)
        row = job.kv + first * step + head * (job.nope + job.value_dim)
        bf16_pack_keys(row, step, job.nope, job.k_pe + first * job.rope_dim, job.rope_dim, &packed, space)
        bf16_pack_values(row + job.nope, step, job.value_dim, &packed)
        t = max(start, first - job.ahead + 1)  # the first query that sees key `first`
        while t < stop:
            at = t * job.n_heads + head
            queries.rows, queries.visible = min(ATTENTION_QUERIES, stop - t), job.ahead + t - first
            queries.next = stop - t - queries.rows
            queries.query, queries.out = job.query + at * queries.size, job.out + at * job.value_dim
            queries.running_max, queries.running_sum = job.running_max + at, job.running_sum + at
            bf16_attend(&queries, &packed, space)
            t += ATTENTION_QUERIES


def mla_prefill(cnp.ndarray query not None, cnp.ndarray kv not None, cnp.ndarray k_pe not None, int64_t first_query,
                int64_t first_key, float softmax_scale, cnp.ndarray running_max not None,
                cnp.ndarray running_sum not None, cnp.ndarray out not None, *, int bf16_terms=0,
                int n_threads):
    cdef Job job
    need_array(query, "query", cnp.NPY_FLOAT32, 3, 3)
    need_array(kv, "kv", cnp.NPY_FLOAT32, 3, 3)
    need_array(k_pe, "k_pe", cnp.NPY_FLOAT32, 2, 2)
    need_output(running_max, "running_max", cnp.NPY_FLOAT32, 2, 2)
    need_output(running_sum, "running_sum", cnp.NPY_FLOAT32, 2, 2)
    need_output(out, "out", cnp.NPY_FLOAT32, 3, 3)
    job.n_rows, job.n_heads = cnp.PyArray_DIM(query, 0), cnp.PyArray_DIM(query, 1)
    job.n_keys, job.rope_dim = cnp.PyArray_DIM(k_pe, 0), cnp.PyArray_DIM(k_pe, 1)
    job.nope, job.value_dim = cnp.PyArray_DIM(query, 2) - job.rope_dim, cnp.PyArray_DIM(out, 2)
    need_size(kv, "kv", 0, job.n_keys)
    need_size(kv, "kv", 1, job.n_heads)
    need_size(kv, "kv", 2, job.nope + job.value_dim)
    for array, name in ((running_max, "running_max"), (running_sum, "running_sum"), (out, "out")):
        need_size(array, name, 0, job.n_rows)
        need_size(array, name, 1, job.n_heads)
    if job.nope < 0:
        raise ValueError(f"k_pe is wider than a query: {job.rope_dim}")
    job.query, job.kv, job.k_pe = floats(query), floats(kv), floats(k_pe)
    job.running_max, job.running_sum, job.out = floats(running_max), floats(running_sum), floats(out)
    job.ahead = first_query - first_key + 1
    job.softmax_scale = softmax_scale
    job.no_memory = False
    job.task_rows = rows_of_task(&job, n_threads)
    cdef task_fn attend = attend_bf16_task if BF16_ATTENTION and bf16_terms == 1 else attend_task
    with nogil:
        parallel_for(attend, &job, job.n_heads * ((job.n_rows + job.task_rows - 1) // job.task_rows), n_threads)
    if job.no_memory:
        raise MemoryError
