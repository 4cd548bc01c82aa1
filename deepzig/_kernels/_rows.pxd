"""Whole rows of floats, for kernels that share them: greatest entry, exp and sum, gated activation."""

from libc.stdint cimport int64_t

from deepzig._kernels._simd cimport LANES, vfloat, vload, vload_part, vsigmoid, vstore, vstore_part


cdef extern from "vmath.h" nogil:
    float highest_of(const float* x, int64_t size)
    float exp_row(const float* x, float shift, float* out, int64_t size)  # out = exp(x - shift); returns the sum


cdef inline void swiglu_row(const float* gate, const float* up, float* out, int64_t size) noexcept nogil:
    """out = silu(gate) * up."""
    cdef vfloat g
    cdef int64_t i = 0
    while i + LANES <= size:
        g = vload(gate + i)
        vstore(out + i, g * vsigmoid(g) * vload(up + i))
        i += LANES
    if i < size:
        g = vload_part(gate + i, size - i)
        vstore_part(out + i, size - i, g * vsigmoid(g) * vload_part(up + i, size - i))
