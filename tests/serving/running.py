"""A real server in a thread, on a port of its own, and what tests say to it."""

import contextlib
import io
import pathlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import jax
import numpy as np
from PIL import Image

from capjax.captioning.loaded_model import LoadedModel
from capjax.serving.app import build_app
from capjax.serving.guard import own_hosts
from capjax.serving.limits import Limits
from capjax.serving.protocol import make_server
from capjax.serving.service import Service
from capjax.sharding import make_mesh

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "model_0_1"
PHOTOS = sorted((GOLDEN / "photos").glob("*.png"))


@dataclass
class Server:
    """A server that runs, and a client of it."""

    url: str
    port: int
    service: Service
    client: httpx.Client

    def post(self, *photos: bytes, **fields: Any) -> httpx.Response:
        """Ask for captions of some images."""
        files = [("image", (f"{i}.png", photo)) for i, photo in enumerate(photos)]
        return self.client.post("/v1/captions", files=files, data=fields)

    def say(self, request: bytes) -> bytes:
        """Send bytes as they are; return all that comes back until the connection ends."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            received = b""
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # an end as well
                connection.sendall(request)
                while part := connection.recv(65536):
                    received += part
            return received


@contextlib.contextmanager
def serving(model: LoadedModel, is_awaited: bool = True, **limits: Any) -> Iterator[Server]:
    """Run a server; `is_awaited`: until it is ready."""
    bounds = Limits(**{"max_batch": 4, **limits})
    service = Service(model, model.search, bounds, make_mesh(jax.devices()[:1]))
    ready = threading.Event()
    failures: list[Exception] = []

    def on_ready(failure: Exception | None) -> None:
        failures.extend([failure] if failure else [])
        ready.set()

    server = make_server(build_app(service, own_hosts("127.0.0.1", "127.0.0.1"), on_ready), bounds)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        if is_awaited:
            assert ready.wait(120) and not failures, failures
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Server(f"http://127.0.0.1:{port}", port, service, client)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def picture(size: tuple[int, int] = (64, 48), seed: int = 0, form: str = "PNG") -> bytes:
    """Draw an encoded picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def check_problem(response: httpx.Response, status: int, detail: str) -> None:
    """Check that an answer is a problem as RFC 9457 has it, and one clear line."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert {"type", "title", "status", "detail"} <= set(told) and told["status"] == status
    assert detail in told["detail"] and "\n" not in told["detail"] and "Traceback" not in response.text
