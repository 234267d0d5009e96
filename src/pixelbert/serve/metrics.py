"""What the server counts, for Prometheus (`/metrics`)."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOGETHER = (1, 2, 4, 8, 16)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "pixelbert_requests", "Requests answered, by HTTP status", ["endpoint", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "pixelbert_request_seconds",
            "From a request's first byte to its answer",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._errors = Counter(
            "pixelbert_errors", "Requests answered with a status of 400 or more", ["endpoint"], registry=self.registry
        )
        self.images = Counter("pixelbert_images_encoded", "Images that went through the CNN", registry=self.registry)
        self.together = Histogram(
            "pixelbert_batch_requests",
            "Requests that the model's thread took from the queue at once",
            buckets=TOGETHER,
            registry=self.registry,
        )
        self._depth = Gauge("pixelbert_queue_depth", "Requests that wait for the model", registry=self.registry)

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Ask this for the depth of the queue."""
        self._depth.set_function(depth)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """One more request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)
        if status >= 400:
            self._errors.labels(endpoint).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
