"""How XLA compiles on CPUs in tests.

Nearly all that the tests would wait for is XLA, compiling programs that run once. The process of the tests itself, and
others that are compared by tolerances, have it compile quickly, in less than half the time. Processes that tests start
compile as those of users do otherwise, as are programs of which a test asks how they were compiled.
"""

import jax

QUICKLY: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
AS_FOR_USERS: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
if jax.__version_info__ < (0, 11, 1):  # XLA then lost the older of two ways to emit code, the quicker one
    QUICKLY["xla_cpu_use_fusion_emitters"], AS_FOR_USERS["xla_cpu_use_fusion_emitters"] = False, True


def quick_flags(flags: str) -> str:
    """Add to the content of `XLA_FLAGS` what makes XLA compile quickly."""
    return " ".join([flags, *(f"--{name}={str(value).lower()}" for name, value in QUICKLY.items())])
