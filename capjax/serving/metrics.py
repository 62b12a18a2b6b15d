"""What a server counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counts of one server, in a registry of its own."""

    def __init__(self, batch_sizes: tuple[int, ...], queue_length: Callable[[], float]) -> None:
        """Start at 0.

        Args:
            batch_sizes: bounds of the histogram of batches.
            queue_length: says how many images wait at the moment.
        """
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "capjax_requests", "requests by path and status", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "capjax_request_seconds", "from the head of a request to the end of its answer", ["path"],
            registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip
        self._images = Counter("capjax_images", "images by what became of them", ["outcome"], registry=self._registry)
        self._batches = Histogram(
            "capjax_batch_images", "images of a batch", registry=self._registry, buckets=batch_sizes
        )
        queue = Gauge("capjax_queue_images", "images that wait for a batch", registry=self._registry)
        queue.set_function(queue_length)
        ProcessCollector(registry=self._registry)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def image(self, captioned: bool) -> None:
        """Count an image."""
        self._images.labels("captioned" if captioned else "refused").inc()

    def batch(self, num_images: int) -> None:
        """Count a batch."""
        self._batches.observe(num_images)

    def response(self) -> Response:
        """Answer with all counts."""
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
