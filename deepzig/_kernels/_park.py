"""park(): called right before NumPy's BLAS computes for long, by `linear_blas` and `experts_blas`.

Workers of the kernels' pool spin for a moment after each kernel; BLAS threads would have to share their cores.
"""

try:
    from deepzig._kernels._pool import park
except ModuleNotFoundError:  # nothing is compiled, so no worker spins

    def park() -> None:
        pass


__all__ = ["park"]
