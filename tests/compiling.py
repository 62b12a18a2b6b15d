"""How XLA compiles on CPUs in tests.

Nearly all that the tests would wait for is XLA, compiling programs that run once. The process of the tests has it do so
quickly, in less than half the time. Other processes, which are compared to the last bit, compile as those of users do,
unless a test asks for `quick_children`; so do programs that a test looks into, or that run longer than they compile.
"""

import platform

import jax

QUICKLY: dict[str, int | bool | str] = {"xla_backend_optimization_level": 0}
AS_FOR_USERS: dict[str, int | bool | str] = {"xla_backend_optimization_level": 3}
if platform.machine() == "x86_64":  # alike on processors that have AVX-512 and those that do not
    QUICKLY["xla_cpu_max_isa"], AS_FOR_USERS["xla_cpu_max_isa"] = "AVX2", ""
if jax.__version_info__ < (0, 11, 1):  # XLA then lost the older of two ways to emit code, the quicker one
    QUICKLY["xla_cpu_use_fusion_emitters"], AS_FOR_USERS["xla_cpu_use_fusion_emitters"] = False, True


def quick_flags(flags: str) -> str:
    """Add to the content of `XLA_FLAGS` what makes XLA compile quickly."""
    return " ".join(
        [
            flags,
            *(
                f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
                for name, value in QUICKLY.items()
            ),
        ]
    )
