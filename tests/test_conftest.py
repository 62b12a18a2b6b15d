"""The set-up of the tests themselves: in continuous integration nothing is skipped unseen."""

import os
import subprocess
import sys

import pytest

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
