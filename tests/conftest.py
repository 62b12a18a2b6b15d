"""Test session set-up: simulated devices, a compilation cache, strict JAX, and the optional real data."""

import functools
import os
import pathlib
import shutil
import signal
from collections.abc import Generator, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Accelerators round what they multiply to TensorFloat-32 or bfloat16 unless told otherwise; bounds here are float32's.
if os.environ["JAX_PLATFORMS"] != "cpu":
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# Eight simulated devices on two busy cores wait for each other; XLA takes 40 seconds of that for a deadlock and aborts.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_collective_call_terminate_timeout_seconds=600")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "capjax" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the processes that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import jaxtyping
import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.compiling import AS_FOR_USERS, quick_flags

# This process alone compiles quickly, and keeps what it compiled apart from the programs of those that it starts.
if os.environ["JAX_PLATFORMS"] == "cpu":
    for_others = os.environ["XLA_FLAGS"]
    os.environ["XLA_FLAGS"] = quick_flags(for_others)
    jax.devices()  # which has the flags read
    os.environ["XLA_FLAGS"] = for_others
    jax.config.update("jax_compilation_cache_dir", f"{os.environ['JAX_COMPILATION_CACHE_DIR']}-quick")

# Every call of the package is checked against its annotations, shapes and dtypes included; JAXTYPING_DISABLE=1 leaves
# that out. It has to come before the first import of capjax, and does not reach the processes that tests start. An int
# passes for a float, as PEP 484 has it and beartype by itself does not.
jaxtyping.install_import_hook("capjax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


def no_skips() -> bool:
    """Whether a test that cannot run is to fail: in continuous integration, where nothing may be lacking."""
    return os.environ.get("CAPJAX_NO_SKIPS", "0") != "0"


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"CAPJAX_NO_SKIPS is set, and this would be skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test into a failure where `no_skips`; the real data are optional there as well."""
    report = yield
    if report.skipped and no_skips() and not hasattr(report, "wasxfail"):
        if "real_data" not in getattr(item, "fixturenames", ()):
            _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole file into a failure where `no_skips`."""
    report = yield
    if report.skipped and no_skips():
        _fail(report)
    return report


@pytest.fixture
def quick_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the processes that a test starts compile quickly too, where tolerances or what they say is compared."""
    monkeypatch.setenv("XLA_FLAGS", quick_flags(os.environ["XLA_FLAGS"]))


@pytest.fixture
def compiled_as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process optimise what it compiles: for what runs longer than that takes."""
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=AS_FOR_USERS))


@pytest.fixture
def wrong_types_allowed() -> Iterator[None]:
    """Switch the check of annotations off, for tests of how the program itself refuses what has the wrong type."""
    was_off = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was_off)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Features and captions for `tests.tiny_runs.tiny_config`."""
    from tests.tiny_runs import make_store

    path = tmp_path_factory.mktemp("features") / "store"
    make_store(path)
    return path


@pytest.fixture(scope="module")
def finished(store: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Any]:
    """The workdir of a tiny run, and its last state on the host."""
    from capjax.train import train
    from tests.tiny_runs import tiny_config

    workdir = tmp_path_factory.mktemp("finished")
    return workdir, jax.device_get(train(tiny_config(store), workdir))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, or another that is installed, to look at pages with."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium to look at pages")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of optional real photographs and captions; tests that want it skip where it is absent."""
    folder = os.environ.get("CAPJAX_TEST_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("needs real data: set CAPJAX_TEST_DATA to a folder with coco/, coco-mini/ and flickr8k/")
    return pathlib.Path(folder)
