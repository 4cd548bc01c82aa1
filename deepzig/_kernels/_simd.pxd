"""Vector primitives of simd.h and vmath.h for Cython code. LANES floats a vector, depending on the ISA."""

from libc.stdint cimport int64_t


cdef extern from "vmath.h" nogil:
    int64_t LANES
    int64_t parts_of(int64_t n, int64_t size)
    # Truly a vector: Cython only passes its operators on to C. Never mix it with a scalar; use vset.
    ctypedef float vfloat
    vfloat vload(const float* p)
    void vstore(float* p, vfloat v)
    vfloat vset(float s)
    float vsum(vfloat v)
    vfloat vload_part(const float* p, int64_t n)
    void vstore_part(float* p, int64_t n, vfloat v)
    vfloat vsigmoid(vfloat x)
