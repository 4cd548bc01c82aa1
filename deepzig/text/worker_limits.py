"""Limits of the operating system that end a worker process whatever it does.

Called by `render_worker` and `grammar_worker`.
"""

import resource
import signal


def limit_memory(n_bytes: int) -> None:
    """Lets the address space of this process grow by at most so much."""
    with open("/proc/self/statm") as file:
        used_bytes = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used_bytes + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def forbid_core_dumps() -> None:
    """Has this process leave no dump where a limit ends it, which happens as often as strangers like."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if hard == 0 else 1  # too few bytes for a file; a program that takes dumps gets none at 1, but does at 0
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def limit_cpu(seconds: float) -> None:
    """Has the kernel end this process after so much computing; 0 lifts the limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
