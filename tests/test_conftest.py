"""The set-up of the tests themselves: in continuous integration nothing is skipped unseen."""

import os
import subprocess
import sys

import jax
import pytest

from tests.compiling import QUICKLY, quick_flags

TESTS = {
    "test_file.py": "import pytest\npytest.importorskip('no_such_module')\n",
    "test_tests.py": """
import pytest

@pytest.mark.skipif(True, reason='no Java here')
def test_marked(): pass

def test_called(): pytest.skip('no browser here')

@pytest.mark.xfail
def test_expected(): assert False

def test_real_data(real_data): pass

def test_passes(): pass
""",
}


@pytest.mark.parametrize(("no_skips", "outcome"), [("1", "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors"),
                                                   ("0", "1 passed, 4 skipped, 1 xfailed")])  # fmt: skip
@pytest.mark.parametrize("workers", ["0", "1"])
def test_skips_are_failures_where_nothing_may_lack(tmp_path, no_skips, outcome, workers):
    for name, content in TESTS.items():
        (tmp_path / name).write_text(content)
    environment = os.environ | {"CAPJAX_NO_SKIPS": no_skips, "PYTHONPATH": os.getcwd()}
    environment.pop("CAPJAX_TEST_DATA", None)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", f"--rootdir={tmp_path}", "-n", workers]
    command += ["-rsfE", "--continue-on-collection-errors", str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == int(no_skips)
    assert outcome in result.stdout.splitlines()[-1]
    for reason in ("no Java here", "no browser here", "no_such_module"):
        assert reason in result.stdout


@pytest.mark.skipif(os.environ["JAX_PLATFORMS"] != "cpu", reason="on accelerators all compile alike")
def test_processes_that_tests_start_compile_as_those_of_users_do(tmp_path):
    """What the test process asks of XLA reaches neither them nor the programs that they find compiled."""
    code = "import jax, jax.numpy as jnp; jax.jit(lambda x: jnp.tanh(x) @ x)(jnp.ones((8, 8)))"
    assert not any(name in os.environ["XLA_FLAGS"] for name in QUICKLY)
    environment = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    found = {}
    for kind, flags in {"users": os.environ["XLA_FLAGS"], "quick": quick_flags(os.environ["XLA_FLAGS"])}.items():
        environment |= {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / kind)}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        found[kind] = {path.name for path in (tmp_path / kind).iterdir() if path.name.startswith("jit__lambda")}
    assert found["users"] and found["quick"] and not found["users"] & found["quick"]
    assert jax.config.jax_compilation_cache_dir != os.environ["JAX_COMPILATION_CACHE_DIR"]
