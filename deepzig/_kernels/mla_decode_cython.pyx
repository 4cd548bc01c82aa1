"""Absorbed attention over the paged cache, compiled once per ISA; contract in `mla_decode.py`.

A task is one row of queries, some of its heads and one chunk of the context, page by page (latent_attention.h). Chunks of a
row are merged in order afterwards, where there are several.
"""

from libc.math cimport expf
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size
from deepzig._kernels._pool cimport parallel_for
from deepzig._kernels._tiles cimport FOR_TASK, LANES, Matrix, dequantize_row, float_matrix, padded, parts_of, thread_floats
from deepzig._kernels.mla_decode import CHUNK as PYTHON_CHUNK

cnp.import_array()

cdef int64_t CHUNK = PYTHON_CHUNK


cdef extern from "tiles.h" nogil:
    int F32, INT8  # Matrix.format
    int SCALE_F32


cdef extern from "latent_attention.h" nogil:
    int64_t MOST_HEADS, LATENT_ROWS

    ctypedef struct LatentHeads:
        float* sums
        float* highest
        float* total

    int64_t latent_space(int64_t width, int64_t rank)
    LatentHeads latent_heads(const float* query, int64_t n_heads, int64_t size, int64_t width, int64_t rank, float scale,
                             float* space)
    void attend_latent(const LatentHeads* a, const float* rows, int64_t stride, int64_t count, const float* next)


cdef struct Job:
    const float* q_latent  # (T, H, width)
    const uint8_t* pages
    const float* scales  # of each row of pages, or NULL
    const int32_t* block_tables
    const int32_t* row_sequence
    const int32_t* lengths
    float* scratch  # (T, chunks, H, rank + 2): weighted sum, greatest score, sum of exp
    float* out  # (T, H, rank)
    int64_t n_rows, n_heads, width, rank, page_size, page_bytes, row_bytes, blocks, chunks
    int64_t task_heads, head_blocks  # of a task; blocks of them
    int64_t page_format  # of the cached rows, as Matrix.format
    float softmax_scale
    bint copies  # rows to floats of whole vectors
    bint no_memory


cdef inline Matrix page_matrix(const Job* job, int64_t t, int64_t block) noexcept nogil:
    """The cached rows of one page, where they lie."""
    cdef Matrix page = float_matrix(NULL, job.page_size, job.width, job.width)
    cdef int64_t number = job.block_tables[job.row_sequence[t] * job.blocks + block]
    page.codes = <int64_t>(job.pages + number * job.page_bytes)
    page.row_bytes = job.row_bytes
    page.format = job.page_format
    if job.scales != NULL:
        page.scale, page.scale_format = <int64_t>(job.scales + number * job.page_size), SCALE_F32
    return page


cdef inline const float* float_rows(const Job* job, int64_t t, int64_t s, int64_t count, float* copy) noexcept nogil:
    """Cached rows from s on, all of one page: where they lie, or as floats in `copy`, padded with zeros."""
    cdef Matrix page = page_matrix(job, t, s // job.page_size)
    cdef int64_t n, first = s % job.page_size, width = padded(job.width)
    if not job.copies:
        return <const float*>page.codes + first * job.width
    for n in range(count):
        dequantize_row(&page, first + n, copy + n * width)
        memset(copy + n * width + job.width, 0, (width - job.width) * sizeof(float))
    return copy


cdef inline int64_t rows_of_step(const Job* job, int64_t s, int64_t last) noexcept nogil:
    """Rows from s on that one page holds."""
    return min(min(LATENT_ROWS, job.page_size - s % job.page_size), last - s)


cdef void attend(Job* job, int64_t t, int64_t chunk, int64_t head, float* own) noexcept nogil:
    """One task. own: `latent_space`, and cached rows as floats."""
    cdef int64_t last = min((chunk + 1) * CHUNK, job.lengths[t]), s = chunk * CHUNK, count, j, r
    cdef int64_t n_heads = min(job.task_heads, job.n_heads - head), width = padded(job.width), rank = padded(job.rank)
    cdef LatentHeads heads = latent_heads(job.q_latent + (t * job.n_heads + head) * job.width, n_heads, job.width, width,
                                          rank, job.softmax_scale, own)
    cdef float* copy = own + latent_space(width, rank)
    cdef const float* rows
    cdef const float* next
    cdef float* part
    cdef float* out = job.out + (t * job.n_heads + head) * job.rank
    cdef float weight
    while s < last:
        count = rows_of_step(job, s, last)
        rows = next = float_rows(job, t, s, count, copy)
        if not job.copies and s + count < last:
            next = float_rows(job, t, s + count, count, copy)
        attend_latent(&heads, rows, width, count, next)
        s += count
    for j in range(n_heads):
        if job.lengths[t] <= CHUNK:
            weight = 1 / heads.total[j]
            for r in range(job.rank):
                out[j * job.rank + r] = weight * heads.sums[j * rank + r]
        else:
            part = job.scratch + ((t * job.chunks + chunk) * job.n_heads + head + j) * (job.rank + 2)
            memcpy(part, heads.sums + j * rank, job.rank * sizeof(float))
            part[job.rank], part[job.rank + 1] = heads.highest[j], heads.total[j]


cdef void attend_task(void* ctx, int64_t task, int thread) noexcept nogil:
    """Tasks of one chunk are neighbours, so that its cached rows are read from memory once."""
    cdef Job* job = <Job*>ctx
    cdef int64_t head = task % job.head_blocks * job.task_heads
    cdef int64_t chunk = task // job.head_blocks % job.chunks, t = task // job.head_blocks // job.chunks
    cdef float* own
    if chunk * CHUNK >= job.lengths[t]:
        return
    own = thread_floats(FOR_TASK, latent_space(padded(job.width), padded(job.rank)) + LATENT_ROWS * padded(job.width))
    if own == NULL:
        job.no_memory = True
        return
    attend(job, t, chunk, head, own)


cdef void merge_task(void* ctx, int64_t task, int thread) noexcept nogil:
    """The chunks of a head of a row, weighted by exp of their greatest scores, in order."""
    cdef const Job* job = <const Job*>ctx
    cdef int64_t t = task // job.n_heads, head = task % job.n_heads, stride = job.n_heads * (job.rank + 2), chunk, r
    cdef int64_t chunks = parts_of(job.lengths[t], CHUNK)
    cdef const float* part = job.scratch + (t * job.chunks * job.n_heads + head) * (job.rank + 2)
    cdef float* out = job.out + task * job.rank
    cdef float highest = part[job.rank], total = 0, weight
    if chunks == 1:
        return
    for chunk in range(1, chunks):
        highest = max(highest, part[chunk * stride + job.rank])
    for chunk in range(chunks):
        total += part[chunk * stride + job.rank + 1] * expf(part[chunk * stride + job.rank] - highest)
    memset(out, 0, job.rank * sizeof(float))
    for chunk in range(chunks):
        weight = expf(part[chunk * stride + job.rank] - highest) / total
        for r in range(job.rank):
            out[r] += weight * part[chunk * stride + r]


cdef int check_tables(const Job* job, int64_t n_pages, int64_t n_sequences) except -1:
    """Every page that will be read exists."""
    cdef int64_t t, block, page
    for t in range(job.n_rows):
        if not 0 <= job.row_sequence[t] < n_sequences:
            raise ValueError(f"row_sequence names block table {job.row_sequence[t]} of {n_sequences}")
        if not 1 <= job.lengths[t] <= job.blocks * job.page_size:
            raise ValueError(f"length {job.lengths[t]} does not fit {job.blocks} pages")
        for block in range((job.lengths[t] + job.page_size - 1) // job.page_size):
            page = job.block_tables[job.row_sequence[t] * job.blocks + block]
            if not 0 <= page < n_pages:
                raise ValueError(f"block_tables names page {page} of {n_pages}")
    return 0


def mla_decode(cnp.ndarray q_latent not None, cnp.ndarray pages not None, cnp.ndarray scales,
               cnp.ndarray block_tables not None, cnp.ndarray row_sequence not None, cnp.ndarray lengths not None,
               float softmax_scale, cnp.ndarray scratch not None, cnp.ndarray out not None, *, int n_threads):
    cdef Job job
    cdef int64_t longest = 0, t
    need_array(q_latent, "q_latent", cnp.NPY_FLOAT32, 3, 3)
    if scales is None:
        need_array(pages, "pages", cnp.NPY_FLOAT32, 3, 3)
        job.page_format, job.scales = F32, NULL
    else:
        need_array(pages, "pages", cnp.NPY_INT8, 3, 3)
        need_array(scales, "scales", cnp.NPY_FLOAT32, 2, 2)
        need_size(scales, "scales", 0, cnp.PyArray_DIM(pages, 0))
        need_size(scales, "scales", 1, cnp.PyArray_DIM(pages, 1))
        job.page_format, job.scales = INT8, floats(scales)
    need_array(block_tables, "block_tables", cnp.NPY_INT32, 2, 2)
    need_array(row_sequence, "row_sequence", cnp.NPY_INT32, 1, 1)
    need_array(lengths, "lengths", cnp.NPY_INT32, 1, 1)
    need_output(scratch, "scratch", cnp.NPY_FLOAT32, 1, 1)
    need_output(out, "out", cnp.NPY_FLOAT32, 3, 3)
    job.n_rows, job.n_heads = cnp.PyArray_DIM(q_latent, 0), cnp.PyArray_DIM(q_latent, 1)
    job.width, job.rank = cnp.PyArray_DIM(q_latent, 2), cnp.PyArray_DIM(out, 2)
    if job.rank > job.width:
        raise ValueError(f"out has {job.rank} numbers a head, more than the {job.width} of a cached row")
    need_size(pages, "pages", 2, job.width)
    need_size(row_sequence, "row_sequence", 0, job.n_rows)
    need_size(lengths, "lengths", 0, job.n_rows)
    need_size(out, "out", 0, job.n_rows)
    need_size(out, "out", 1, job.n_heads)
    job.q_latent, job.scratch, job.out = floats(q_latent), floats(scratch), floats(out)
    job.pages = <const uint8_t*>cnp.PyArray_DATA(pages)
    job.block_tables = <const int32_t*>cnp.PyArray_DATA(block_tables)
    job.row_sequence = <const int32_t*>cnp.PyArray_DATA(row_sequence)
    job.lengths = <const int32_t*>cnp.PyArray_DATA(lengths)
    job.page_size, job.blocks = cnp.PyArray_DIM(pages, 1), cnp.PyArray_DIM(block_tables, 1)
    job.row_bytes = job.width * cnp.PyArray_ITEMSIZE(pages)
    job.page_bytes = job.page_size * job.row_bytes
    job.softmax_scale = softmax_scale
    job.no_memory = False
    check_tables(&job, cnp.PyArray_DIM(pages, 0), cnp.PyArray_DIM(block_tables, 0))
    for t in range(job.n_rows):
        longest = max(longest, job.lengths[t])
    job.chunks = parts_of(longest, CHUNK)
    job.copies = job.page_format != F32 or job.width % LANES != 0 or job.rank % LANES != 0
    # many heads share what is read of a row; few make enough tasks for the threads
    job.task_heads = MOST_HEADS if job.n_rows * job.chunks * job.n_heads >= 2 * n_threads * MOST_HEADS else LANES
    job.head_blocks = parts_of(job.n_heads, job.task_heads)
    if cnp.PyArray_SIZE(scratch) < job.n_rows * job.n_heads * job.chunks * (job.rank + 2):
        raise ValueError(f"scratch has {cnp.PyArray_SIZE(scratch)} floats, fewer than mla_decode.scratch_size")
    with nogil:
        parallel_for(attend_task, &job, job.n_rows * job.chunks * job.head_blocks, n_threads)
        if job.chunks > 1:
            parallel_for(merge_task, &job, job.n_rows * job.n_heads, n_threads)
    if job.no_memory:
        raise MemoryError
