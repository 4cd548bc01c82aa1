"""Prompt attention over one tile of expanded keys and values, compiled once per ISA; contract in `mla_prefill.py`.

A task is one head and QUERY_BLOCK queries. KEY_BLOCK keys at a time are packed (k_nope beside k_pe, so that scores are
one dot product; values side by side, since 16 KB apart they meet in a few sets of a cache); then come MIX_COLUMNS
queries at a time: scores, running softmax, weighted sum of the values.
"""

from libc.math cimport INFINITY, expf
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size
from deepzig._kernels._pool cimport parallel_for
from deepzig._kernels._rows cimport exp_row, highest_of
from deepzig._kernels._tiles cimport (
    FOR_TASK, Matrix, MIX_COLUMNS, dot_floats, float_matrix, mix_floats, padded, thread_floats,
)

cnp.import_array()

cdef int64_t QUERY_BLOCK = 256
cdef int64_t KEY_BLOCK = 256  # packed keys and values should stay in L2
cdef enum:
    MAX_COLUMNS = 8


cdef struct Job:
    const float* query  # (T, H, nope + rope_dim)
    const float* kv  # (S, H, nope + value_dim)
    const float* k_pe  # (S, rope_dim)
    float* running_max  # (T, H)
    float* running_sum  # (T, H)
    float* out  # (T, H, value_dim)
    int64_t n_rows, n_keys, n_heads, nope, rope_dim, value_dim
    int64_t ahead  # keys that query 0 sees; query t sees t more
    float softmax_scale
    bint no_memory


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
    cdef int64_t head = task % job.n_heads, start = task // job.n_heads * QUERY_BLOCK, first, count, t
    cdef int64_t stop = min(start + QUERY_BLOCK, job.n_rows), n_keys = min(job.n_keys, job.ahead + stop - 1)
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


def mla_prefill(cnp.ndarray query not None, cnp.ndarray kv not None, cnp.ndarray k_pe not None, int64_t first_query,
                int64_t first_key, float softmax_scale, cnp.ndarray running_max not None,
                cnp.ndarray running_sum not None, cnp.ndarray out not None, *, int n_threads):
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
    with nogil:
        parallel_for(attend_task, &job, job.n_heads * ((job.n_rows + QUERY_BLOCK - 1) // QUERY_BLOCK), n_threads)
    if job.no_memory:
        raise MemoryError
