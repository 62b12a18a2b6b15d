"""Who is let in: counts of the requests in flight, kept by the one thread of the event loop."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from capjax.serving.limits import Limits
from capjax.serving.problems import busy


class Admission:
    """Counts requests by client, bytes of bodies and images, and turns away what would be too many.

    Attributes:
        bytes_held: of bodies, by all requests.
        images_held: that wait or are worked on, of all requests.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests: Counter[str] = Counter()
        self.bytes_held = self.images_held = 0

    @contextlib.contextmanager
    def client(self, address: str) -> Iterator[None]:
        """Hold the place of a client's request.

        Raises:
            Problem: 429 if the client has too many.
        """
        most = self._limits.max_requests_per_client
        if self._requests[address] >= most:
            raise busy(f"expected at most {most} requests of one client at once; wait for an answer", status=429)
        self._requests[address] += 1
        try:
            yield
        finally:
            self._requests[address] -= 1
            if not self._requests[address]:
                del self._requests[address]

    @contextlib.contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Hold the bytes of a request's body; yield what is told how many there are, all at once or bit by bit.

        Raises:
            Problem: 503, by what is yielded, if all requests together would have too many.
        """
        mine = 0

        def hold(num_bytes: int) -> None:
            nonlocal mine
            if self.bytes_held + num_bytes > self._limits.max_body_bytes:
                raise busy(
                    f"expected at most {self._limits.max_body_bytes:,} bytes of requests at once, there are more; "
                    "try again in a moment"
                )
            self.bytes_held += num_bytes
            mine += num_bytes

        try:
            yield hold
        finally:
            self.bytes_held -= mine

    @contextlib.contextmanager
    def images(self, number: int) -> Iterator[None]:
        """Hold the places of a request's images.

        Raises:
            Problem: 503 if too many wait.
        """
        if self.images_held + number > self._limits.max_queue:
            raise busy(
                f"expected at most {self._limits.max_queue} images waiting, there are {self.images_held} and these "
                f"would be {number} more; try again in a moment"
            )
        self.images_held += number
        try:
            yield
        finally:
            self.images_held -= number
