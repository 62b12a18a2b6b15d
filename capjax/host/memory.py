"""How the C library hands out memory on Linux, set so that what a step frees the next step gets back.

XLA frees the intermediate results of a program after each call, on a CPU some hundred megabytes. glibc returns such
pieces to the kernel, which maps and clears every page anew: 16 to 19 % of the CPU time of `capjax train` (Att2in and
Up-Down on Flickr8k, 4 KiB pages) until they were kept.
"""

import ctypes
import os

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_KEPT_BYTES = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; to be called before there are threads.

    All of it comes from the one heap that can grow: each thread's own ends at 64 MiB, beyond which glibc asks the
    kernel after all. The process stays about as large as it once was; above 2 GiB only the heap's end is given back.

    Returns:
        Whether that was set: not where the C library is another than glibc, nor where the environment sets it already
        (MALLOC_…, GLIBC_TUNABLES).
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False
    settings = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _KEPT_BYTES}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
