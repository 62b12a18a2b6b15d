"""HTTP/1.1 by uvicorn, with bounds on what comes before a request: connections, and how long its head takes."""

import asyncio
import functools
import logging
from http import HTTPStatus
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from capjax.serving.guard import HEADERS
from capjax.serving.limits import Limits
from capjax.serving.problems import MEDIA_TYPE, Problem, json_response


def make_server(app: Any, limits: Limits) -> uvicorn.Server:
    """Make the server of an ASGI application; asked to stop, it answers what it has accepted."""
    config = uvicorn.Config(
        app,
        http=functools.partial(BoundedProtocol, limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,  # Python's own: errors alone, on stderr
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(limits.body_seconds + limits.answer_seconds) + 1,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self.force_exit:  # a second Ctrl-C: what it cuts off is no error, and connections would be waited for
            logging.getLogger("uvicorn.error").disabled = True
            for connection in list(self.server_state.connections):
                connection.loop.call_soon_threadsafe(connection.transport.abort)


class BoundedProtocol(H11Protocol):
    """One connection. It ends where nothing whole arrives in time, or where nobody takes what is sent."""

    def __init__(self, limits: Limits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if there is room for it."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            transport.abort()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._be_patient()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in part of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request of the connection."""
        super().on_response_complete()
        self._be_patient()
        self._watch()

    def pause_writing(self) -> None:
        """Wait for a client that does not take its answer."""
        super().pause_writing()
        self._be_patient()
        self._start_timer()

    def resume_writing(self) -> None:
        """Go on to send."""
        super().resume_writing()
        self._be_patient()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as every other problem."""
        answer = json_response(Problem(400, f"expected a request of HTTP/1.1: {msg}").to_dict(), 400, MEDIA_TYPE)
        headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
        headers += [*answer.raw_headers, (b"connection", b"close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = h11.Response(status_code=400, headers=headers, reason=HTTPStatus(400).phrase.encode())
            for event in (response, h11.Data(data=answer.body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Bound the time in which no request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._be_patient()
        elif self._patience is None:
            self._start_timer()

    def _start_timer(self) -> None:
        self._patience = self.loop.call_later(self._limits.header_seconds, self.transport.abort)

    def _be_patient(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
