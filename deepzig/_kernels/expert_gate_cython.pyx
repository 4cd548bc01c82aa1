"""expert_gate, compiled once per ISA; contract in `expert_gate.py`."""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size
from deepzig._kernels._pool cimport parallel_for, rows_per_task
from deepzig._kernels._rows cimport exp_row, highest_of
from deepzig._kernels._simd cimport LANES, parts_of, vload, vload_part, vsigmoid, vstore, vstore_part

from deepzig._kernels.expert_gate import check

cnp.import_array()


cdef struct Job:
    const float* logits
    const float* bias  # NULL: none
    int32_t* topk_idx
    float* topk_weight
    float* scratch  # (n_threads, 2 E + 2 n_group): scores, choice, value of each group, indices of the kept groups
    int64_t n_rows, n_experts, n_group, topk_group, top_k, scratch_stride, rows_per_task
    bint is_softmax, by_groups, is_noaux, normalise
    float factor


cdef inline void choose(const float* values, int64_t size, int64_t n, int32_t* found) noexcept nogil:
    """found[:n] = indices of the n highest values, falling; the lowest index first among equals."""
    cdef int64_t i, place, count = 0
    for i in range(size):
        if count == n and not values[i] > values[found[n - 1]]:
            continue
        if count < n:
            count += 1
        place = count - 1
        while place > 0 and values[i] > values[found[place - 1]]:
            found[place] = found[place - 1]
            place -= 1
        found[place] = <int32_t>i


cdef inline void sigmoid_row(const float* logits, int64_t size, float* scores) noexcept nogil:
    cdef int64_t e = 0
    while e + LANES <= size:
        vstore(scores + e, vsigmoid(vload(logits + e)))
        e += LANES
    if e < size:
        vstore_part(scores + e, size - e, vsigmoid(vload_part(logits + e, size - e)))


cdef inline void softmax_row(const float* logits, int64_t size, float* scores) noexcept nogil:
    cdef float total = exp_row(logits, highest_of(logits, size), scores, size)
    cdef int64_t e
    for e in range(size):
        scores[e] /= total


cdef inline float group_value(const float* choice, int64_t size, bint add_second) noexcept nogil:
    cdef float best = -INFINITY, second = -INFINITY
    cdef int64_t e
    for e in range(size):
        if choice[e] > best:
            second = best
            best = choice[e]
        elif choice[e] > second:
            second = choice[e]
    return best + second if add_second and size > 1 else best


cdef inline void drop_groups(const Job* job, float* scores, float* choice, float* by_group, int32_t* kept) noexcept nogil:
    cdef int64_t g, j, e, size = job.n_experts // job.n_group
    cdef bint is_kept
    for g in range(job.n_group):
        by_group[g] = group_value(choice + g * size, size, job.is_noaux)
    choose(by_group, job.n_group, job.topk_group, kept)
    for g in range(job.n_group):
        is_kept = False
        for j in range(job.topk_group):
            is_kept = is_kept or kept[j] == g
        if not is_kept:
            for e in range(g * size, (g + 1) * size):
                choice[e] = -INFINITY if job.is_noaux else 0
                scores[e] = scores[e] if job.is_noaux else 0


cdef inline void gate_row(const Job* job, int64_t t, float* scores) noexcept nogil:
    cdef float* choice = scores + job.n_experts
    cdef float* by_group = choice + job.n_experts
    cdef int32_t* topk_idx = job.topk_idx + t * job.top_k
    cdef float* topk_weight = job.topk_weight + t * job.top_k
    cdef float total = <float>1e-20
    cdef int64_t e, j
    if job.is_softmax:
        softmax_row(job.logits + t * job.n_experts, job.n_experts, scores)
    else:
        sigmoid_row(job.logits + t * job.n_experts, job.n_experts, scores)
    for e in range(job.n_experts):
        choice[e] = scores[e] + job.bias[e] if job.bias != NULL else scores[e]
        if choice[e] != choice[e]:
            choice[e] = -INFINITY
    if job.by_groups:
        drop_groups(job, scores, choice, by_group, <int32_t*>(by_group + job.n_group))
    choose(choice, job.n_experts, job.top_k, topk_idx)
    for j in range(job.top_k):
        total += scores[topk_idx[j]]
    for j in range(job.top_k):
        topk_weight[j] = scores[topk_idx[j]]
        if job.normalise:
            topk_weight[j] /= total
        topk_weight[j] *= job.factor


cdef void gate_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef const Job* job = <const Job*>ctx
    cdef int64_t t
    for t in range(task * job.rows_per_task, min((task + 1) * job.rows_per_task, job.n_rows)):
        gate_row(job, t, job.scratch + thread * job.scratch_stride)


def expert_gate(
    cnp.ndarray logits not None,
    cnp.ndarray bias,
    int64_t top_k,
    int64_t n_group,
    int64_t topk_group,
    str scoring_func not None,
    str topk_method not None,
    bint norm_topk_prob,
    float routed_scaling_factor,
    cnp.ndarray topk_idx not None,
    cnp.ndarray topk_weight not None,
    *,
    int n_threads,
):
    cdef Job job
    need_array(logits, "logits", cnp.NPY_FLOAT32, 2, 2)
    need_output(topk_idx, "topk_idx", cnp.NPY_INT32, 2, 2)
    need_output(topk_weight, "topk_weight", cnp.NPY_FLOAT32, 2, 2)
    job.n_rows = cnp.PyArray_DIM(logits, 0)
    job.n_experts = cnp.PyArray_DIM(logits, 1)
    check(job.n_experts, top_k, n_group, topk_group, scoring_func, topk_method)
    for output, name in ((topk_idx, "topk_idx"), (topk_weight, "topk_weight")):
        need_size(output, name, 0, job.n_rows)
        need_size(output, name, 1, top_k)
    job.bias = NULL
    if bias is not None:
        need_array(bias, "bias", cnp.NPY_FLOAT32, 1, 1)
        need_size(bias, "bias", 0, job.n_experts)
        job.bias = floats(bias)
    job.logits = floats(logits)
    job.topk_idx = <int32_t*>cnp.PyArray_DATA(topk_idx)
    job.topk_weight = floats(topk_weight)
    job.top_k, job.n_group, job.topk_group = top_k, n_group, topk_group
    job.is_softmax = scoring_func == "softmax"
    job.by_groups = topk_method != "greedy"
    job.is_noaux = topk_method == "noaux_tc"
    job.normalise = norm_topk_prob
    job.factor = routed_scaling_factor
    job.scratch_stride = 2 * job.n_experts + (2 * n_group if job.by_groups else 0)
    # 16: it computes more than it reads
    job.rows_per_task = rows_per_task(16 * sizeof(float) * job.n_experts, job.n_rows, n_threads)
    job.scratch = <float*>malloc(max(n_threads, 1) * job.scratch_stride * sizeof(float))
    if job.scratch == NULL:
        raise MemoryError
    with nogil:
        parallel_for(gate_task, &job, parts_of(job.n_rows, job.rows_per_task), n_threads)
    free(job.scratch)
