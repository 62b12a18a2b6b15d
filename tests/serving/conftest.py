"""A real server for every test that wants one, around a small model."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from capjax.captioning.loaded_model import LoadedModel, load_model
from tests.serving.running import GOLDEN, Server, serving


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    """A small model with an encoder."""
    return load_model(str(GOLDEN / "model"))


@pytest.fixture(scope="module")
def server(model: LoadedModel) -> Iterator[Server]:
    """A server with ordinary limits, shared by the tests of a file."""
    with serving(model) as running:
        yield running


@pytest.fixture
def serve(model: LoadedModel) -> Iterator[Callable[..., Server]]:
    """Starts servers with limits of one's own."""
    with contextlib.ExitStack() as stack:
        yield lambda **limits: stack.enter_context(serving(model, **limits))
