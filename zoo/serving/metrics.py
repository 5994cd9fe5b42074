"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class Metrics:
    """Of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "zoo_requests", "Answered requests.", ("path", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "zoo_request_seconds",
            "From the headers of a request to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batches = Histogram(
            "zoo_batch_images",
            "Images computed together.",
            ("model",),
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )
        self.computing = Histogram(
            "zoo_model_seconds",
            "Computing of a batch.",
            ("model",),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def gauge(self, name: str, words: str, value: Callable[[], float]) -> None:
        """A value that is asked for when it is read."""
        Gauge(name, words, registry=self._registry).set_function(value)

    def of_model(self, model: str) -> Callable[[int, float], None]:
        """Notes a batch of a model: its images and seconds."""
        images, seconds = self.batches.labels(model), self.computing.labels(model)

        def note(count: int, spent: float) -> None:
            images.observe(count)
            seconds.observe(spent)

        return note

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)
