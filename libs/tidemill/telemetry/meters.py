"""Counting calls cheaply: a metric object each for number, duration and calls in work costs more than a small call."""

import threading
from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tidemill.telemetry import attributes

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_LABELS = (*(str(bound) for bound in _BOUNDS), "+Inf")


class CallMeter:
    """The calls of one method. Safe to use from any thread."""

    __slots__ = ("_buckets", "_codes", "_ended", "_lock", "_seconds", "_started")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = 0
        self._ended = 0
        self._seconds = 0.0
        self._buckets = [0] * len(_LABELS)
        self._codes: dict[str, int] = {}

    def begin(self) -> None:
        """A call has begun."""
        with self._lock:
            self._started += 1

    def end(self, code: str, seconds: float) -> None:
        """A call has ended with this status."""
        bucket = bisect_left(_BOUNDS, seconds)
        with self._lock:
            self._ended += 1
            self._seconds += seconds
            self._buckets[bucket] += 1
            self._codes[code] = self._codes.get(code, 0) + 1

    def read(self) -> tuple[int, float, list[int], dict[str, int]]:
        """Calls in work, seconds of all that ended, how many fell into each bucket, and how many ended how."""
        with self._lock:
            return self._started - self._ended, self._seconds, list(self._buckets), dict(self._codes)


class CallMeters(Collector):
    """The meters of all methods of a server, as Prometheus sees them.

    Args:
        registry: where they are collected.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._meters: dict[str, CallMeter] = {}
        registry.register(self)

    def of(self, method: str) -> CallMeter:
        """The meter of a method."""
        return self._meters.get(method) or self._meters.setdefault(method, CallMeter())

    def collect(self) -> Iterator[Metric]:
        """Finished calls by status, their durations, and the calls in work."""
        handled = CounterMetricFamily(attributes.METRIC_RPC_HANDLED, "Finished calls.", labels=["method", "code"])
        seconds = HistogramMetricFamily(attributes.METRIC_RPC_SECONDS, "Duration of calls.", labels=["method"])
        in_flight = GaugeMetricFamily(attributes.METRIC_RPC_IN_FLIGHT, "Calls in work.", labels=["method"])
        for method, meter in sorted(self._meters.copy().items()):
            now, total, buckets, codes = meter.read()
            in_flight.add_metric([method], now)
            for code, count in sorted(codes.items()):
                handled.add_metric([method, code], count)
            below, cumulative = 0, []
            for label, count in zip(_LABELS, buckets, strict=True):
                below += count
                cumulative.append((label, below))
            seconds.add_metric([method], cumulative, total)
        yield from (handled, seconds, in_flight)
