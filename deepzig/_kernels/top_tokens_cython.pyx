"""Candidates for drawing a token, compiled once per ISA; contract in `top_tokens.py`.

Sorting a whole vocabulary takes longer than decoding a token of a small model. So tokens are counted by the leading bits
of their probability first, which order them roughly, and only those are sorted that may be among the wanted ones.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy, memset
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size
from deepzig._kernels._rows cimport exp_row, highest_of

cnp.import_array()

cdef enum:
    FINER_BITS = 21  # of a float, below its exponent and two bits of its mantissa
    BUCKETS = (0x3f800000 >> FINER_BITS) + 1  # of floats from 0 to 1
cdef double ROUNDING = 1 + 1e-6  # of sums in another order


cdef struct Candidate:
    float p
    int32_t token


cdef int by_probability(const void* a, const void* b) noexcept nogil:
    cdef const Candidate* left = <const Candidate*>a
    cdef const Candidate* right = <const Candidate*>b
    if left.p != right.p:
        return -1 if left.p > right.p else 1
    return -1 if left.token < right.token else 1


cdef float least_wanted(const float* p, int64_t size, double sum_p, int64_t top_k, float top_p) noexcept nogil:
    """A lower bound of what top_k and top_p leave, above 0: tokens of p = 0 follow in order of their ids."""
    cdef int64_t count[BUCKETS]
    cdef double total[BUCKETS]
    cdef int64_t token, bucket, n = 0
    cdef double reached = 0
    cdef uint32_t bits
    cdef float bound
    memset(count, 0, sizeof(count))
    memset(total, 0, sizeof(total))
    for token in range(size):
        if p[token] > 0:
            memcpy(&bits, &p[token], 4)
            count[bits >> FINER_BITS] += 1
            total[bits >> FINER_BITS] += p[token]
    for bucket in range(BUCKETS - 1, -1, -1):
        n += count[bucket]
        reached += total[bucket]
        if n >= top_k if 0 < top_k else reached >= top_p * sum_p * ROUNDING:
            break
    bits = max(1, <uint32_t>bucket << FINER_BITS)
    memcpy(&bound, &bits, 4)
    return bound


cdef int64_t most_likely(const float* p, int64_t size, double sum_p, int64_t top_k, float top_p, Candidate* found) noexcept nogil:
    """The tokens that top_k and top_p leave, sorted, their p normalised. p is relative to the greatest, which is 1."""
    cdef float bound = least_wanted(p, size, sum_p, top_k, top_p)
    cdef double reached = 0
    cdef int64_t token, i, n = 0
    for token in range(size):
        if p[token] >= bound:
            found[n].p, found[n].token = p[token], <int32_t>token
            n += 1
    qsort(found, n, sizeof(Candidate), by_probability)
    for token in range(size):
        if n >= top_k:
            break
        if p[token] < bound:  # so it is 0
            found[n].p, found[n].token = 0, <int32_t>token
            n += 1
    if 0 < top_k:
        n = min(n, top_k)
        sum_p = 0
        for i in range(n):
            sum_p += found[i].p
    for i in range(n):
        found[i].p = <float>(found[i].p / sum_p)
        reached += found[i].p
        if top_p < 1 and reached >= top_p:
            return i + 1
    return n


cdef void choose(const float* logits, int64_t size, float temperature, int64_t top_k, float top_p, float min_p,
                 int32_t* token_ids, float* probs, Candidate* found) noexcept nogil:
    cdef int64_t i, n = size, kept = 0
    cdef float highest
    cdef double sum_p = 0
    highest = highest_of(logits, size)
    for i in range(size):
        probs[i] = (logits[i] - highest) / temperature  # in this order no quotient is infinite and positive
    exp_row(probs, 0, probs, size)
    for i in range(size):
        sum_p += probs[i]
    if 0 < top_k < size or top_p < 1:
        n = most_likely(probs, size, sum_p, top_k, top_p, found)
    else:
        for i in range(size):
            found[i].p = <float>(probs[i] / sum_p)
            found[i].token = <int32_t>i
    highest = 0
    for i in range(n):
        highest = max(highest, found[i].p)
    for i in range(n):
        if found[i].p >= min_p * highest:
            token_ids[kept], probs[kept] = found[i].token, found[i].p
            kept += 1
    for i in range(kept, size):
        token_ids[i], probs[i] = -1, 0


def top_tokens(cnp.ndarray logits not None, float temperature, int64_t top_k, float top_p, float min_p,
               cnp.ndarray token_ids not None, cnp.ndarray probs not None, *, int n_threads):
    cdef int64_t size
    cdef Candidate* found
    need_array(logits, "logits", cnp.NPY_FLOAT32, 1, 1)
    need_output(token_ids, "token_ids", cnp.NPY_INT32, 1, 1)
    need_output(probs, "probs", cnp.NPY_FLOAT32, 1, 1)
    size = cnp.PyArray_DIM(logits, 0)
    need_size(token_ids, "token_ids", 0, size)
    need_size(probs, "probs", 0, size)
    found = <Candidate*>malloc((size + 1) * sizeof(Candidate))
    if found == NULL:
        raise MemoryError
    with nogil:
        choose(floats(logits), size, temperature, top_k, top_p, min_p, <int32_t*>cnp.PyArray_DATA(token_ids),
               floats(probs), found)
    free(found)
