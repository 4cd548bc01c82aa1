"""What compiled kernels check of an array before they take its pointer: cheap facts, no memoryview.

Cimported by the `*_cython.pyx` files; code in `_array.pyx`. The model checks its shapes once, at load; these checks
keep a mistake from reading foreign memory.
"""

from libc.stdint cimport int64_t
cimport numpy as cnp

# Raises ValueError unless `array` has a dtype (cnp.NPY_FLOAT32, ...), a number of axes, and its last `n_packed` axes
# lie packed as in C. The axes before them may have any stride.
cdef int need_array(cnp.ndarray array, str name, int dtype, int n_axes, int n_packed) except -1

# The same, and the array must be writable.
cdef int need_output(cnp.ndarray array, str name, int dtype, int n_axes, int n_packed) except -1

# Raises ValueError unless an axis of `array` has `size` entries.
cdef int need_size(cnp.ndarray array, str name, int axis, int64_t size) except -1


cdef inline float* floats(cnp.ndarray array) noexcept nogil:
    return <float*>cnp.PyArray_DATA(array)


cdef inline int64_t stride(cnp.ndarray array, int axis) noexcept nogil:
    """Distance of neighbours along an axis, in elements."""
    return cnp.PyArray_STRIDE(array, axis) // cnp.PyArray_ITEMSIZE(array)
