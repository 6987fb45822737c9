"""The metrics of versions, by the names in `telemetry/attributes.py`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tidemill.telemetry import attributes

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_OUTCOMES = ("success", "failure")
_LOOKUPS = ("hit", "miss")
_CLOSED = ("full", "preferred", "delay", "idle")


class Metrics:
    """Makes the series of versions, and ends them; not safe to use from several threads.

    Args:
        registry: of the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._inferences = Counter(
            attributes.METRIC_INFERENCES,
            "Requests run, by outcome.",
            ["model", "version", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            attributes.METRIC_INFERENCE_SECONDS,
            "Time that models ran.",
            ["model", "version"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._sizes = Histogram(
            attributes.METRIC_BATCH_SIZE, "Rows of batches.", ["model", "version"], registry=registry, buckets=_SIZES
        )
        self._closed = Counter(
            attributes.METRIC_BATCHES,
            "Batches, by why they were closed.",
            ["model", "version", "closed"],
            registry=registry,
        )
        self._users: dict[tuple[str, str], int] = {}
        self._queued = Histogram(
            attributes.METRIC_QUEUE_SECONDS,
            "Time that requests waited for their batch.",
            ["model", "version"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._length = Gauge(
            attributes.METRIC_QUEUE_LENGTH, "Requests that wait.", ["model", "version"], registry=registry
        )
        self._lookups = Counter(
            attributes.METRIC_CACHE_LOOKUPS,
            "Looks into the response cache, by outcome.",
            ["model", "version", "outcome"],
            registry=registry,
        )

    def series(self, model: str, version: str) -> "Series":
        """The series of a version. Looked up once: finding one by its labels takes as long as a small model."""
        self._users[model, version] = self._users.get((model, version), 0) + 1
        return Series(
            self._inferences.labels(model, version, "success"),
            self._inferences.labels(model, version, "failure"),
            self._seconds.labels(model, version),
            self._sizes.labels(model, version),
            {closed: self._closed.labels(model, version, closed) for closed in _CLOSED},
            self._queued.labels(model, version),
            self._length.labels(model, version),
            {outcome: self._lookups.labels(model, version, outcome) for outcome in _LOOKUPS},
        )

    def forget(self, model: str, version: str) -> None:
        """End the series of a version that is gone, unless another one has taken its place."""
        self._users[model, version] -= 1
        if self._users[model, version]:
            return
        del self._users[model, version]
        for outcome in _OUTCOMES:
            self._inferences.remove(model, version, outcome)
        for closed in _CLOSED:
            self._closed.remove(model, version, closed)
        for outcome in _LOOKUPS:
            self._lookups.remove(model, version, outcome)
        for metric in (self._seconds, self._sizes, self._queued, self._length):
            metric.remove(model, version)


@dataclass(frozen=True, slots=True)
class Series:
    """The metrics of one version."""

    successes: Counter
    failures: Counter
    seconds: Histogram
    sizes: Histogram
    closed: dict[str, Counter]
    queued: Histogram
    length: Gauge
    lookups: dict[str, Counter]

    def waiting(self, pending: Callable[[], int]) -> None:
        """So many requests wait, whenever somebody asks."""
        self.length.set_function(pending)

    def lookup(self, hit: bool) -> None:
        """A look into the response cache."""
        self.lookups["hit" if hit else "miss"].inc()

    def success(self, requests: int, ns: int) -> None:
        """One run of `ns` nanoseconds answered so many requests."""
        self.successes.inc(requests)
        self.seconds.observe(ns / 1e9)

    def failure(self) -> None:
        """A request failed."""
        self.failures.inc()

    def batch(self, rows: int, closed: str, queues: Sequence[int]) -> None:
        """A batch of `rows` was closed for the reason `closed`; its requests waited for `queues` nanoseconds."""
        self.sizes.observe(rows)
        self.closed[closed].inc()
        for queued in queues:
            self.queued.observe(queued / 1e9)
