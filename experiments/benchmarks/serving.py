"""`capjax serve` under load: many clients at once, broken files, bombs and slow senders among them.

    python experiments/benchmarks/serving.py --model=demo/run/model --photos=demo/pictures

The server is a process of its own. First one client asks for one caption after another; then many at once, of a server
that captions one image at a time, and of one that makes batches; then the same again with bad requests in between.
Every caption is compared with that of `PhotoCaptioner` for the same photo, every bad request has to get the status that
it deserves, and the memory of the server must not grow beyond a bound. Clients and server share the machine.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import platform
import random
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import jax
import numpy as np
import psutil
from timing import command_line

from capjax.captioning.loaded_model import load_model
from capjax.captioning.photos import PhotoCaptioner
from capjax.images import list_images

BODY_SECONDS = 5
MAX_REQUEST_BYTES = 2_000_000


@dataclass
class Result:
    """What one run of requests gave."""

    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    ready_rss: int = 0
    peak_rss: int = 0

    def row(self, name: str, clients: int) -> str:
        """Return it as a row of the table."""
        p50, p99 = (1000 * np.percentile(self.waits, q) for q in (50, 99))
        return (
            f"| {name} | {clients} | {len(self.waits) / self.seconds:.0f} | {p50:.0f} | {p99:.0f} | "
            f"{self.ready_rss / 1e6:.0f} | {self.peak_rss / 1e6:.0f} |"
        )


def request_of(body: bytes, length: int | None = None, kind: str = "image/png") -> bytes:
    """Write a request for a caption."""
    head = f"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def bomb(side: int) -> bytes:
    """Write a PNG whose header promises side × side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b""))
    written = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def bad_requests(photo: bytes) -> dict[str, tuple[bytes, int | None]]:
    """Return requests that cannot be answered well, and the status that each deserves; None where the client leaves."""
    return {
        "truncated": (request_of(photo[: len(photo) // 2]), 422),
        "no image": (request_of(b"<!doctype html>" + bytes(5000)), 415),
        "bomb": (request_of(bomb(60_000)), 413),
        "bomb within the limits": (request_of(bomb(6_000)), 422),  # decoded until its pixels end
        "too large": (request_of(bytes(MAX_REQUEST_BYTES + 1)), 413),
        "another kind": (request_of(b"{}", kind="application/json"), 415),
        "slow sender": (request_of(photo[:-1], len(photo)), 408),
        "client that leaves": (request_of(photo[:-1], len(photo)), None),
        "no HTTP": (b"\x16\x03\x01\r\n\r\n", 400),
    }


async def ask(port: int, request: bytes, stays: bool = True) -> tuple[int, bytes]:
    """Send a request; return status and body of the answer, or 0 where there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        if stays:
            received = await asyncio.wait_for(reader.read(-1), 120)
        else:
            await writer.drain()
    writer.close()
    head, _, body = received.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


async def load(
    port: int, photos: list[tuple[bytes, str]], number: int, clients: int, num_bad: int, watch: Callable[[], None]
) -> Result:
    """Have clients send requests one after another, each its share, until all are answered."""
    result = Result()
    draw = random.Random(0)
    kinds = bad_requests(photos[0][0])
    jobs: list[int | str] = [*range(number), *(list(kinds)[i % len(kinds)] for i in range(num_bad))]
    draw.shuffle(jobs)
    left = iter(jobs)

    async def client() -> None:
        for job in left:
            if isinstance(job, str):
                request, deserved = kinds[job]
                status, _ = await ask(port, request, deserved is not None)
                # The answer to what was not read to its end may be lost, with the connection.
                result.refused[f"{job}: {status}"] += 1
                if status != deserved and not (status == 0 and job in ("too large", "client that leaves")):
                    result.wrong.append(f"{job} got {status}, not {deserved}")
                continue
            content, caption = photos[job % len(photos)]
            start = time.perf_counter()
            status, body = await ask(port, request_of(content))
            result.waits.append(time.perf_counter() - start)
            said = json.loads(body)["captions"][0]["caption"] if status == 200 else body
            if said != caption:
                result.wrong.append(f"photo {job % len(photos)} got {status} {said!r}, not {caption!r}")

    async def watcher() -> None:
        while True:
            watch()
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watcher())
    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    result.seconds = time.perf_counter() - start
    watching.cancel()
    return result


@contextlib.contextmanager
def server(model: str, *flags: str) -> Iterator[tuple[int, psutil.Process]]:
    """Start a server; yield its port and its process once it is ready."""
    command = [sys.executable, "-m", "capjax", "serve", f"--model={model}", "--port=0", "--max_requests_per_client=256"]
    command += [f"--body_seconds={BODY_SECONDS}", f"--max_request_bytes={MAX_REQUEST_BYTES}", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        yield int(line.rstrip().rstrip("/").rsplit(":", 1)[1]), psutil.Process(process.pid)
        process.terminate()
        if process.wait(60):
            sys.exit(f"the server ended with status {process.returncode}")
    finally:
        process.kill()


def measure(
    model: str, photos: list[tuple[bytes, str]], number: int, clients: int, num_bad: int = 0, *flags: str
) -> Result:
    """Run one load against a fresh server."""
    with server(model, *flags) as (port, process):
        ready = peak = process.memory_info().rss

        def watch() -> None:
            nonlocal peak
            peak = max(peak, process.memory_info().rss)

        asyncio.run(load(port, photos, clients, clients, 0, watch))  # what is slow the first time is not counted
        result = asyncio.run(load(port, photos, number, clients, num_bad, watch))
    result.ready_rss, result.peak_rss = ready, peak
    return result


def main() -> None:
    """Run the benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--photos", type=pathlib.Path, required=True, help="folder of images")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results/serving.md"))
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--bad", type=int, default=200)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--max_growth_mb", type=int, default=800, help="of the server's memory, once it is ready")
    parser.add_argument("--note", default="", help="a line on the state of the machine")
    args = parser.parse_args()
    files = list_images(args.photos)
    loaded = load_model(args.model)
    captions = PhotoCaptioner([loaded])(files, loaded.search)
    photos = [(file.read_bytes(), caption.text) for file, caption in zip(files, captions, strict=True)]
    runs = {
        "one after another": (measure(args.model, photos, args.requests, 1), 1),
        "together, batches of 1": (
            measure(args.model, photos, args.requests, args.clients, 0, "--max_batch=1"),
            args.clients,
        ),
        "together, batches of up to 16": (measure(args.model, photos, args.requests, args.clients), args.clients),
        f"the same, and {args.bad} bad requests": (
            measure(args.model, photos, args.requests, args.clients, args.bad),
            args.clients,
        ),
    }
    refused = sum((result.refused for result, _ in runs.values()), Counter())
    lines = [
        "# Captions over HTTP under load",
        "",
        f"`{command_line()}`, which says what is done.",
        "",
        f"jax {jax.__version__}, {os.cpu_count()} CPU cores, which clients and server share, Python "
        f"{platform.python_version()}; {args.requests:,} uploads, {len(photos)} photos. Memory is that of the server: "
        f"when it is ready, and at most. {args.note}".rstrip(),
        "",
        "| requests | clients | captions/s | p50 ms | p99 ms | MB ready | MB at most |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(result.row(name, clients) for name, (result, clients) in runs.items()),
        "",
        "Bad requests and the status that each got: "
        + "; ".join(f"{name} × {count}" for name, count in sorted(refused.items()))
        + ". Of a client that leaves, and of a body that is not read to its end, no answer may arrive (0).",
    ]
    print(*lines, sep="\n")
    for name, (result, _) in runs.items():
        if result.wrong:
            sys.exit(f"{name}: {len(result.wrong)} wrong answers, the first: {result.wrong[0]}")
        if result.peak_rss - result.ready_rss > args.max_growth_mb * 1e6:
            sys.exit(f"{name}: the memory grew by more than {args.max_growth_mb} MB")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
