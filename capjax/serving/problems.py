"""What a server answers: JSON, and problems as RFC 9457 has them (`application/problem+json`)."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from capjax.errors import CapjaxError
from capjax.images import ImageError

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1
"""When a client that was turned away for want of room may try again: a batch takes less."""


class Problem(CapjaxError):
    """A request that is refused, or an image of one; the message says what was expected, what arrived, what to change.

    Attributes:
        status: of the answer, as HTTP has it.
        headers: that the answer has besides.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """Give the members of the problem."""
        title = HTTPStatus(self.status).phrase
        return {"type": "about:blank", "title": title, "status": self.status, "detail": str(self)}


def busy(message: str, status: int = 503) -> Problem:
    """Return the problem of a server that has no room at the moment."""
    return Problem(status, message, {"Retry-After": str(RETRY_SECONDS)})


def unexpected() -> Problem:
    """Return the problem of a request that met a bug: nothing of the error itself."""
    return Problem(500, "expected an answer, something failed that should not; the server's log says what")


def image_problem(error: ImageError, opened: bool) -> Problem:
    """Return the problem of an image that cannot be used.

    Args:
        error: what `capjax.images` says.
        opened: whether its header could be read, so that it is an image at all.
    """
    if error.kind == "too large":
        return Problem(413, str(error))
    return Problem(422 if opened or error.kind != "unreadable" else 415, str(error))


def json_response(
    content: Any, status: int = 200, media_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with JSON: ASCII, so that no name of a file is beyond it, and without NaN, which JSON lacks."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
    return Response(body, status, headers, media_type)


def problem_response(problem: Problem, **more: Any) -> Response:
    """Answer with a problem, and with members beyond those of every problem."""
    return json_response(problem.to_dict() | more, problem.status, MEDIA_TYPE, problem.headers)
