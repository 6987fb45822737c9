"""The metrics of versions, by the names in `telemetry/attributes.py`."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tidemill.telemetry import attributes

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LOOKUPS = ("hit", "miss")
_CLOSED = ("full", "preferred", "delay", "idle")


class Metrics(Collector):
    """Makes the series of versions, and ends them; not safe to use from several threads.

    Args:
        registry: of the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._runs: dict[tuple[str, str], RunMeter] = {}
        registry.register(self)
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
            self._runs.setdefault((model, version), RunMeter()),
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
        del self._runs[model, version]
        for closed in _CLOSED:
            self._closed.remove(model, version, closed)
        for outcome in _LOOKUPS:
            self._lookups.remove(model, version, outcome)
        for metric in (self._sizes, self._queued, self._length):
            metric.remove(model, version)

    def collect(self) -> Iterator[Metric]:
        """Requests by outcome, and the time that models ran."""
        requests = CounterMetricFamily(
            attributes.METRIC_INFERENCES, "Requests run, by outcome.", labels=["model", "version", "outcome"]
        )
        seconds = HistogramMetricFamily(
            attributes.METRIC_INFERENCE_SECONDS, "Time that models ran.", labels=["model", "version"]
        )
        for (model, version), meter in sorted(self._runs.copy().items()):
            meter.tell([model, version], requests, seconds)
        yield from (requests, seconds)


class RunMeter:
    """Requests and runs of one version, counted at less cost than by a metric object each."""

    __slots__ = ("_buckets", "_failures", "_lock", "_seconds", "_successes")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._successes = 0
        self._failures = 0
        self._seconds = 0.0
        self._buckets = [0] * (len(_SECONDS) + 1)

    def success(self, requests: int, seconds: float) -> None:
        """One run answered so many requests."""
        bucket = bisect_left(_SECONDS, seconds)
        with self._lock:
            self._successes += requests
            self._seconds += seconds
            self._buckets[bucket] += 1

    def failure(self) -> None:
        """A request failed."""
        with self._lock:
            self._failures += 1

    def tell(self, labels: list[str], requests: CounterMetricFamily, seconds: HistogramMetricFamily) -> None:
        """Add what was counted to metrics."""
        with self._lock:
            counts = {"success": self._successes, "failure": self._failures}
            total, buckets = self._seconds, list(self._buckets)
        for outcome, count in counts.items():
            requests.add_metric([*labels, outcome], count)
        bounds = [*map(str, _SECONDS), "+Inf"]
        seconds.add_metric(labels, list(zip(bounds, accumulate(buckets), strict=True)), total)


@dataclass(frozen=True, slots=True)
class Series:
    """The metrics of one version."""

    runs: RunMeter
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
        self.runs.success(requests, ns / 1e9)

    def failure(self) -> None:
        """A request failed."""
        self.runs.failure()

    def batch(self, rows: int, closed: str, queues: Sequence[int]) -> None:
        """A batch of `rows` was closed for the reason `closed`; its requests waited for `queues` nanoseconds."""
        self.sizes.observe(rows)
        self.closed[closed].inc()
        for queued in queues:
            self.queued.observe(queued / 1e9)
