"""The routes: a page, captions, what the model is, and what those who run the server ask."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from capjax.serving.guard import Guard
from capjax.serving.intake import read_upload
from capjax.serving.openapi import document
from capjax.serving.problems import Problem, busy, json_response, problem_response, unexpected
from capjax.serving.service import Service

_PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css")}
_PAGE |= {"/page.js": ("page.js", "text/javascript")}
_SECONDS_TO_CLOSE = 5.0


def build_app(service: Service, hosts: Sequence[str], on_ready: Callable[[Exception | None], None]) -> Guard:
    """Make the application of a server.

    Args:
        service: what it serves.
        hosts: names that it may be asked by, see `Guard`.
        on_ready: is told, on another thread, when everything is compiled, or why it could not be.
    """

    async def captions(request: Request) -> Response:
        address = request.client.host if request.client else ""
        with service.admission.client(address), service.admission.body() as hold:
            if not service.is_ready:
                raise busy("expected a server that is ready, this one still compiles; /readyz says when it is done")
            upload = await read_upload(request, service.limits, hold)
            settings, explain = service.rules.read(upload.fields)
            with service.admission.images(len(upload.images)):
                found = await service.answer(upload.images, settings, explain)
        problems = [entry for entry in found if isinstance(entry, Problem)]
        if len(found) == len(problems) == 1:
            raise problems[0]
        entries = [
            {"file": image.name, "error": entry.to_dict()} if isinstance(entry, Problem) else entry
            for image, entry in zip(upload.images, found, strict=True)
        ]
        if len(problems) == len(found):
            status = problems[0].status if len({problem.status for problem in problems}) == 1 else 422
            none = Problem(status, f"expected images, none of the {len(found)} can be used; `captions` says why")
            return problem_response(none, captions=entries)
        return json_response({"model": service.name, "search": settings.to_dict(), "captions": entries})

    async def model(request: Request) -> Response:
        return json_response(service.describe())

    async def openapi(request: Request) -> Response:
        return json_response(document(service))

    async def healthz(request: Request) -> Response:
        if not service.is_alive:
            raise Problem(503, "a thread of the server ended that should not; start the server anew")
        return json_response({"status": "ok"})

    async def readyz(request: Request) -> Response:
        if not service.is_ready:
            raise busy("expected a server that is ready, this one still compiles")
        return json_response({"status": "ready"})

    async def metrics(request: Request) -> Response:
        return service.metrics.response()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start(on_ready)
        yield
        service.close(_SECONDS_TO_CLOSE)

    endpoints = {"/v1/model": model, "/openapi.json": openapi}
    endpoints |= {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    routes = [Route("/v1/captions", captions, methods=["POST"])]
    routes += [Route(path, endpoint) for path, endpoint in endpoints.items()]
    routes += [Route(path, _file(*file)) for path, file in _PAGE.items()]
    handlers: dict[Any, Any] = {HTTPException: _http_problem, Problem: _raised_problem}
    handlers |= {ClientDisconnect: _gone, Exception: _unexpected}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return Guard(app, service.metrics, [route.path for route in routes], hosts)


def _file(name: str, media_type: str) -> Callable[[Request], Any]:
    content = resources.files("capjax.serving").joinpath(name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return endpoint


async def _http_problem(request: Request, error: HTTPException) -> Response:
    """Answer for Starlette, which knows the paths and their methods."""
    details = {
        404: "expected a path of this server, see /openapi.json",
        405: f"expected another method for this path, got {request.method}; the header Allow says which",
    }
    return problem_response(Problem(error.status_code, details.get(error.status_code, error.detail), error.headers))


async def _raised_problem(request: Request, problem: Problem) -> Response:
    return problem_response(problem)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # for the counts alone: nobody is there


async def _unexpected(request: Request, error: Exception) -> Response:
    return problem_response(unexpected())  # Starlette raises the error again, and the guard logs it
