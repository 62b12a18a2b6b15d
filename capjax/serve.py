"""The job `capjax serve`: one process with a page for people and a JSON API for programs, around one model."""

import argparse
import contextlib
import os
import signal
import socket
import sys

import jax

from capjax.captioning.loaded_model import load_model
from capjax.decoding.flags import add_decoder_flags, settings_from_flags
from capjax.errors import CapjaxError
from capjax.serving.limits import add_limit_flags, limits_from_flags
from capjax.serving.searches import MOST
from capjax.sharding import make_mesh


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `capjax serve`."""
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1); 0.0.0.0: any")
    parser.add_argument("--port", type=int, default=8000, help="to listen on (default: 8000); 0: any that is free")
    parser.add_argument(
        "--public_host",
        metavar="NAME,NAME",
        help="names by which a proxy on this computer passes requests on; without, those of this computer alone",
    )
    add_decoder_flags(parser)
    add_limit_flags(parser)
    most = ", ".join(f"{name} {value}" for name, value in MOST.items())
    parser.epilog = f"Requests may ask for at most {most}; where the server's own search goes beyond, for that."


def run(args: argparse.Namespace) -> int:
    """Serve until a SIGTERM or Ctrl-C; what was accepted by then is still answered."""
    limits = limits_from_flags(args)
    try:
        from capjax.serving.app import build_app
        from capjax.serving.guard import own_hosts
        from capjax.serving.protocol import make_server
        from capjax.serving.service import Service
    except ModuleNotFoundError as error:
        raise CapjaxError(f"capjax serve needs {error.name}: pip install 'capjax[serve]'") from None
    with _listen(args.host, args.port) as listener:
        address = _address(listener)
        model = load_model(args.model)
        service = Service(model, settings_from_flags(args, model.search), limits, make_mesh())
        failures: list[Exception] = []

        def on_ready(failure: Exception | None) -> None:
            if server.should_exit:  # it was told to stop meanwhile
                return
            if failure is not None:
                failures.append(failure)
                server.should_exit = True
                return
            # Searches that strangers ask for are not to fill the disk with compiled programs.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
            with contextlib.suppress(OSError):  # it serves whether or not anybody reads that
                print(f"capjax serves {args.model} at {address}", flush=True)

        hosts = own_hosts(args.host, listener.getsockname()[0], (args.public_host or "").split(","))
        server = make_server(build_app(service, hosts, on_ready), limits)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # uvicorn obeys them, and raises them again once it is done
        server.run(sockets=[listener])
    if failures:
        raise failures[0]
    if not service.close(0.0):  # a program still compiles, which Python would wait for
        with contextlib.suppress(OSError, AttributeError):  # no output, or none at all
            sys.stdout.flush()
        os._exit(0)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Open the port, before anything that takes long.

    Raises:
        CapjaxError: if it cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).split(" (")[0]
        raise CapjaxError(
            f"expected to listen on {host} port {port}, could not: {reason}; choose another --port"
        ) from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
