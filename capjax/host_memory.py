"""How the C library hands out memory on Linux, set so that what a step frees the next step gets back.

XLA frees the intermediate results of a program after each call, on a CPU some hundred megabytes. Those come from the
kernel and go back to it, which maps and clears every page anew: a fifth of a training step (experiments/results/
decoder.md).
"""

import ctypes

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_KEPT_BYTES = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB that it has freed; to be called before there are threads.

    All memory comes from the one heap that can grow: each thread's own ends at 64 MiB, beyond which glibc asks the
    kernel after all.

    Returns:
        Whether the C library knows how: glibc does, others are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _KEPT_BYTES}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
