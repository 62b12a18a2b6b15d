"""What a server takes on at most: one validated description, and its command-line flags."""

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from capjax.errors import CapjaxError


def _limit(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Limits:
    """Bounds of a server, all of them above 0; whatever goes beyond is refused with a problem that names the bound.

    Raises:
        CapjaxError: a value out of range.
    """

    max_request_bytes: int = _limit(20_000_000, "bytes of one request's body")
    max_pixels: int = _limit(50_000_000, "pixels of one image, read off its header before it is decoded")
    max_images: int = _limit(16, "images of one request")
    max_queue: int = _limit(256, "images of all requests that wait or are worked on")
    max_body_bytes: int = _limit(256_000_000, "bytes of the bodies of all requests that are held at once")
    max_requests_per_client: int = _limit(16, "requests of one address that are answered at once")
    max_connections: int = _limit(512, "connections that are open at once")
    header_seconds: float = _limit(10.0, "seconds to send the head of a request")
    body_seconds: float = _limit(30.0, "seconds to send the body of a request")
    answer_seconds: float = _limit(60.0, "seconds until an answer, once the body is there")
    max_batch: int = _limit(16, "images captioned at once")
    batch_wait_ms: float = _limit(2.0, "milliseconds that an image waits for others to share its batch")
    max_searches: int = _limit(8, "searches other than the server's own that are kept compiled")
    decode_threads: int = _limit(2, "images decoded at once; one of 50 megapixels takes 0.6 GB meanwhile")

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if not (math.isfinite(value) and value > 0):
                raise CapjaxError(f"expected {setting.name} above 0, got {value}")

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Sizes that batches are filled up to: 1, 4, 16 and so on below `max_batch`, and `max_batch`."""
        smaller = (4**power for power in range(self.max_batch.bit_length()))
        return (*(size for size in smaller if size < self.max_batch), self.max_batch)


def add_limit_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--max_request_bytes` and so on to a parser."""
    group = parser.add_argument_group("limits", "what the server takes on at most")
    for setting in dataclasses.fields(Limits):
        text = f"{setting.metadata['help']} (default: {setting.default:,})"
        group.add_argument(f"--{setting.name}", type=type(setting.default), default=setting.default, help=text)


def limits_from_flags(args: argparse.Namespace) -> Limits:
    """Return the limits that the flags ask for.

    Raises:
        CapjaxError: as `Limits`.
    """
    return Limits(**{setting.name: getattr(args, setting.name) for setting in dataclasses.fields(Limits)})
