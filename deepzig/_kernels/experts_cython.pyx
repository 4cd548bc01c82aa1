"""Routed experts, compiled once per ISA; contract in `experts.py`.

Slots (token, j) are sorted by expert; `scratch` holds, for each sorted slot, the activation (I) and the output (D).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
cimport numpy as cnp

from deepzig._kernels._array cimport floats, need_array, need_output, need_size, stride
from deepzig._kernels._pool cimport parallel_for
from deepzig._kernels._rows cimport swiglu_row
from deepzig._kernels._tiles cimport (
    FOR_CALL, FOR_TASK, Matrix, WAY_FLOATS, Way, codes_of, copy_stride, multiply, multiply_space, pack_rows,
    pack_space, packed_bytes, packs, padded, parts_of, same_packing, thread_floats, wants_copies, way_for,
    weight_rows_per_task,
)

cnp.import_array()

cdef enum:
    STREAM_BYTES = 64 << 10  # weights of a task when they are read once, of one matrix: the first phase reads two
    SUMS_SPLIT_FROM = 17  # tokens whose outputs are summed by several threads


cdef struct Job:
    const Matrix* weights  # (E, 3): gate, up, down
    const int32_t* topk_idx  # (T, K)
    const float* topk_weight  # (T, K)
    const float** x  # (T K,) row of each sorted slot
    const float** activation  # (T K,) row of each sorted slot
    int64_t* place  # (T K,) sorted place of a slot
    int64_t* slot  # (T K,) slot at a sorted place
    int64_t* start  # (E + 1,) first place of an expert
    int64_t* hit  # (E,) experts with a slot
    int64_t* x_start  # (E + 1,) where an expert's packed x begins
    int64_t* activation_start  # (E + 1,) where its packed activations begin
    uint8_t* packed_x  # if the way packs
    uint8_t* packed_activations
    Way up_way, down_way  # of gate_proj and up_proj; of down_proj
    int64_t n_tokens, n_slots, n_experts, n_hit, hidden_size, intermediate_size
    int64_t activation_stride, gate_rows, down_rows, gate_tasks, down_tasks, out_stride
    float* activations  # (T K, activation_stride)
    float* outputs  # (T K, D)
    float* out
    bint no_memory


cdef void sort_slots(Job* job) noexcept nogil:
    """Counting sort by expert; within an expert in order of slots."""
    cdef int64_t i, expert, total = job.n_tokens * job.n_slots
    for i in range(total):
        job.start[job.topk_idx[i] + 1] += 1
    for expert in range(job.n_experts):
        if job.start[expert + 1]:
            job.hit[job.n_hit] = expert
            job.n_hit += 1
        job.start[expert + 1] += job.start[expert]
    for i in range(total):
        job.place[i] = job.start[job.topk_idx[i]]
        job.slot[job.place[i]] = i
        job.start[job.topk_idx[i]] += 1
    for expert in range(job.n_experts, 0, -1):
        job.start[expert] = job.start[expert - 1]
    job.start[0] = 0


cdef inline void pack_expert(Job* job, int64_t expert, Way way, const Matrix* one, const float** x,
                             uint8_t* packed) noexcept nogil:
    """The x rows of an expert's slots, packed as they meet matrices like `one`."""
    cdef float* space = thread_floats(FOR_TASK, pack_space(way, one))
    if space == NULL:
        job.no_memory = True
    else:
        pack_rows(way, one, x + job.start[expert], job.start[expert + 1] - job.start[expert], packed, space)


cdef void pack_x_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef Job* job = <Job*>ctx
    cdef int64_t expert = job.hit[task]
    pack_expert(job, expert, job.up_way, job.weights, job.x, job.packed_x + job.x_start[expert])


cdef void pack_activation_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef Job* job = <Job*>ctx
    cdef int64_t expert = job.hit[task]
    pack_expert(job, expert, job.down_way, job.weights + 2, job.activation,
                job.packed_activations + job.activation_start[expert])


cdef void gate_up_task(void* ctx, int64_t task, int thread) noexcept nogil:
    """Rows of gate_proj and up_proj of one expert against its tokens, and silu(gate) * up."""
    cdef Job* job = <Job*>ctx
    cdef int64_t expert = job.hit[task // job.gate_tasks]
    cdef int64_t first = task % job.gate_tasks * job.gate_rows
    cdef int64_t last = min(first + job.gate_rows, job.intermediate_size), rows = last - first
    cdef int64_t place = job.start[expert], count = job.start[expert + 1] - place, j
    cdef const Matrix* gate = job.weights + 3 * expert
    cdef const uint8_t* packed = job.packed_x + job.x_start[expert]
    cdef int64_t space_floats = padded(max(multiply_space(job.up_way, gate, job.gate_rows),
                                           multiply_space(job.up_way, gate + 1, job.gate_rows)))
    cdef float* space = thread_floats(FOR_TASK, space_floats + count * rows)
    cdef float* activation = job.activations + place * job.activation_stride + first
    cdef float* up = space + space_floats
    if space == NULL:
        job.no_memory = True
        return
    multiply(job.up_way, gate, first, last, job.x + place, packed, count, activation, job.activation_stride,
             codes_of(gate + 1, first), space)
    multiply(job.up_way, gate + 1, first, last, job.x + place, packed, count, up, rows, codes_of(gate, last), space)
    for j in range(count):
        swiglu_row(activation + j * job.activation_stride, up + j * rows, activation + j * job.activation_stride, rows)
        if last == job.intermediate_size:
            memset(activation + j * job.activation_stride + rows, 0, (padded(last) - last) * sizeof(float))


cdef void down_task(void* ctx, int64_t task, int thread) noexcept nogil:
    cdef Job* job = <Job*>ctx
    cdef int64_t expert = job.hit[task // job.down_tasks]
    cdef int64_t first = task % job.down_tasks * job.down_rows
    cdef int64_t last = min(first + job.down_rows, job.hidden_size)
    cdef int64_t place = job.start[expert], count = job.start[expert + 1] - place
    cdef const Matrix* down = job.weights + 3 * expert + 2
    cdef float* out = job.outputs + place * job.hidden_size + first
    cdef float* space = thread_floats(FOR_TASK, multiply_space(job.down_way, down, job.down_rows))
    if space == NULL:
        job.no_memory = True
    else:
        multiply(job.down_way, down, first, last, job.activation + place,
                 job.packed_activations + job.activation_start[expert], count, out, job.hidden_size,
                 codes_of(down, last), space)


cdef void sum_task(void* ctx, int64_t token, int thread) noexcept nogil:
    """The token's outputs, weighted, in order of slots."""
    cdef const Job* job = <const Job*>ctx
    cdef float* out = job.out + token * job.out_stride
    cdef const float* row
    cdef int64_t j, d
    cdef float weight
    for j in range(job.n_slots):
        row = job.outputs + job.place[token * job.n_slots + j] * job.hidden_size
        weight = job.topk_weight[token * job.n_slots + j]
        if j == 0:
            for d in range(job.hidden_size):
                out[d] = weight * row[d]
        else:
            for d in range(job.hidden_size):
                out[d] += weight * row[d]


cdef Way common_way(const Job* job, int64_t first, int64_t count, int arithmetic) noexcept nogil:
    """The way of matrices first, .., first + count - 1 of every expert if rows packed for one suit all; or WAY_FLOATS."""
    cdef const Matrix* one = job.weights + first
    cdef int64_t x_rows = job.n_tokens * job.n_slots // job.n_experts  # of an expert, about
    cdef Way way = way_for(one, arithmetic, x_rows), other
    cdef int64_t i, j
    for i in range(job.n_experts):
        for j in range(first, first + count):
            other = way_for(job.weights + 3 * i + j, arithmetic, x_rows)
            if not same_packing(way, one, other, job.weights + 3 * i + j):
                way.kind = WAY_FLOATS
                return way
    return way


cdef bint share_memory(Job* job, const float* x, int64_t x_stride) noexcept nogil:
    """Pointers to the rows of each sorted slot, copies of x that end in zeros, room for packed rows. False: no memory."""
    cdef int64_t total = job.n_tokens * job.n_slots, width = copy_stride(job.hidden_size), i, count
    cdef int64_t copied = job.n_tokens * width if wants_copies(job.up_way, job.weights, total // job.n_hit) else 0
    cdef float* shared
    for i in range(job.n_experts):
        count = job.start[i + 1] - job.start[i]
        job.x_start[i + 1] = job.x_start[i] + packed_bytes(job.up_way, job.weights, count)
        job.activation_start[i + 1] = job.activation_start[i] + packed_bytes(job.down_way, job.weights + 2, count)
    count = job.x_start[job.n_experts] + job.activation_start[job.n_experts]
    shared = thread_floats(FOR_CALL, padded(4 * total) + copied + count // 4)
    if shared == NULL:
        return False
    job.x, job.activation = <const float**>shared, <const float**>shared + total
    shared += padded(4 * total)
    job.packed_x = <uint8_t*>(shared + copied)
    job.packed_activations = job.packed_x + job.x_start[job.n_experts]
    if copied:
        for i in range(job.n_tokens):
            memcpy(shared + i * width, x + i * x_stride, job.hidden_size * sizeof(float))
            memset(shared + i * width + job.hidden_size, 0, (padded(job.hidden_size) - job.hidden_size) * sizeof(float))
        x, x_stride = shared, width
    for i in range(total):
        job.x[i] = x + job.slot[i] // job.n_slots * x_stride
        job.activation[i] = job.activations + i * job.activation_stride
    return True


cdef void run(Job* job, const float* x, int64_t x_stride, int n_threads) noexcept nogil:
    sort_slots(job)
    if not share_memory(job, x, x_stride):
        job.no_memory = True
        return
    job.gate_rows = weight_rows_per_task(job.up_way, job.weights, STREAM_BYTES)
    job.down_rows = weight_rows_per_task(job.down_way, job.weights + 2, STREAM_BYTES)
    job.gate_tasks = parts_of(job.intermediate_size, job.gate_rows)
    job.down_tasks = parts_of(job.hidden_size, job.down_rows)
    if packs(job.up_way):
        parallel_for(pack_x_task, job, job.n_hit, n_threads)
    parallel_for(gate_up_task, job, job.n_hit * job.gate_tasks, n_threads)
    if packs(job.down_way):
        parallel_for(pack_activation_task, job, job.n_hit, n_threads)
    parallel_for(down_task, job, job.n_hit * job.down_tasks, n_threads)
    parallel_for(sum_task, job, job.n_tokens, n_threads if job.n_tokens >= SUMS_SPLIT_FROM else 1)


def experts(cnp.ndarray x not None, cnp.ndarray topk_idx not None, cnp.ndarray topk_weight not None, weights not None,
            cnp.ndarray scratch not None, cnp.ndarray out not None, *, int arithmetic=0, int n_threads):
    cdef Job job
    cdef int64_t total, i
    cdef int64_t* integers
    cdef cnp.ndarray descriptors = weights.descriptors
    need_array(descriptors, "weights.descriptors", cnp.NPY_INT64, 3, 3)
    need_size(descriptors, "weights.descriptors", 1, 3)
    need_size(descriptors, "weights.descriptors", 2, sizeof(Matrix) // sizeof(int64_t))
    need_array(x, "x", cnp.NPY_FLOAT32, 2, 1)
    need_array(topk_idx, "topk_idx", cnp.NPY_INT32, 2, 2)
    need_array(topk_weight, "topk_weight", cnp.NPY_FLOAT32, 2, 2)
    need_output(scratch, "scratch", cnp.NPY_FLOAT32, 1, 1)
    need_output(out, "out", cnp.NPY_FLOAT32, 2, 1)
    memset(&job, 0, sizeof(Job))
    job.weights = <const Matrix*>cnp.PyArray_DATA(descriptors)
    job.n_experts = cnp.PyArray_DIM(descriptors, 0)
    job.hidden_size, job.intermediate_size = job.weights.k, job.weights.n
    job.n_tokens, job.n_slots = cnp.PyArray_DIM(topk_idx, 0), cnp.PyArray_DIM(topk_idx, 1)
    total = job.n_tokens * job.n_slots
    need_size(x, "x", 0, job.n_tokens)
    need_size(x, "x", 1, job.hidden_size)
    need_size(topk_weight, "topk_weight", 0, job.n_tokens)
    need_size(topk_weight, "topk_weight", 1, job.n_slots)
    need_size(out, "out", 0, job.n_tokens)
    need_size(out, "out", 1, job.hidden_size)
    job.activation_stride = copy_stride(job.intermediate_size)
    if total == 0:
        return
    if cnp.PyArray_SIZE(scratch) < total * (job.hidden_size + job.activation_stride):
        raise ValueError(f"scratch has {cnp.PyArray_SIZE(scratch)} floats, fewer than experts.scratch_size")
    job.topk_idx = <const int32_t*>cnp.PyArray_DATA(topk_idx)
    job.topk_weight = floats(topk_weight)
    for i in range(total):
        if not 0 <= job.topk_idx[i] < job.n_experts:
            raise ValueError(f"topk_idx names expert {job.topk_idx[i]} of {job.n_experts}")
    job.activations = floats(scratch)
    job.outputs = job.activations + total * job.activation_stride
    job.out, job.out_stride = floats(out), stride(out, 0)
    job.up_way = common_way(&job, 0, 2, arithmetic)
    job.down_way = common_way(&job, 2, 1, arithmetic)
    integers = <int64_t*>calloc(2 * total + 4 * job.n_experts + 3, sizeof(int64_t))
    if integers == NULL:
        raise MemoryError
    job.place, job.slot, job.hit = integers, integers + total, integers + 2 * total
    job.start = job.hit + job.n_experts
    job.x_start = job.start + job.n_experts + 1
    job.activation_start = job.x_start + job.n_experts + 1
    with nogil:
        run(&job, floats(x), stride(x, 0), n_threads)
    free(integers)
    if job.no_memory:
        raise MemoryError
