"""What stands around every request: whose page may ask, headers on every answer, counts, and no traceback."""

import ipaddress
import logging
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from capjax.serving.metrics import Metrics
from capjax.serving.problems import Problem, problem_response, unexpected

logger = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), clipboard-write=(self), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Sequence[str], hosts: Sequence[str]) -> None:
        """Stand around an application.

        Args:
            app: the application.
            metrics: that count the requests.
            paths: that it has; all others are counted as one, for anybody can make them up.
            hosts: names that it may be asked by; any if there are none. A server on the loopback device is reached by
                other names where a foreign page had its own name lead there, to read what it should not: DNS rebinding.
        """
        self._app, self._metrics, self._paths, self._hosts = app, metrics, frozenset(paths), frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            self._check(scope["method"], Headers(scope=scope))
            await self._app(scope, receive, send_guarded)
        except Problem as problem:
            await problem_response(problem)(scope, receive, send_guarded)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if not status:  # otherwise the answer is under way, and what fails is its sending
                await problem_response(unexpected())(scope, receive, send_guarded)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(path, status, time.monotonic() - start)

    def _check(self, method: str, headers: Headers) -> None:
        """Refuse what another site's page sends.

        Raises:
            Problem: 403.
        """
        host = headers.get("host", "")
        if self._hosts and _name_of(host) not in self._hosts:
            raise Problem(403, f"expected a Host out of {', '.join(sorted(self._hosts))}, got {host[:100]!r}")
        if method in ("GET", "HEAD", "OPTIONS"):
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") or (origin is not None and _place_of(origin) != host):
            raise Problem(403, "expected a request of this server's own page or of a program, got one of another site")


def _name_of(host: str) -> str:
    """Return the name or address in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _place_of(origin: str) -> str:
    """Return the name or address in an Origin header, with its port."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def own_hosts(name: str, address: str, public: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names that a server is asked by: those of the loopback device if it is bound there, else any.

    Args:
        name: that the user gave of the host, however it is spelt.
        address: that the server is bound to.
        public: more names, which a proxy before it is asked by.
    """
    bound_to = ipaddress.ip_address(address)
    bound_to = getattr(bound_to, "ipv4_mapped", None) or bound_to
    if not bound_to.is_loopback:
        return ()
    named = {host.strip().lower() for host in public} - {""}
    return tuple(sorted({"localhost", "127.0.0.1", "::1", address, name.lower()} | named))
