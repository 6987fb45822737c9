"""Metrics that models define themselves, among the server's own."""

import re
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tidemill.errors import Exhausted, Invalid

KINDS = ("counter", "gauge", "histogram")
MOST_FAMILIES, MOST_SERIES, MOST_BUCKETS = 1000, 1000, 100
"""Bounds of the server, of a family, and of a histogram."""
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}")
_OWN = "tidemill_"
_OPERATIONS = {"counter": ("increment",), "gauge": ("increment", "set"), "histogram": ("observe",)}
Key: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Series:
    edges: tuple[float, ...] = ()
    counts: list[int] = field(default_factory=list)
    value: float = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.edges, value)] += 1
        self.value += value


@dataclass(slots=True)
class _Family:
    description: str
    kind: str
    owners: set[int] = field(default_factory=set)
    series: dict[Key, _Series] = field(default_factory=dict)


class CustomMetrics(Collector):
    """Families of metrics, kept as long as somebody who has defined them is there. Safe to use from any thread.

    Args:
        registry: shows them; its own names are taken.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._families: dict[str, _Family] = {}
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Nothing yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What there is now."""
        with self._lock:
            found = [_metric(name, family) for name, family in self._families.items()]
        yield from found

    def define(self, owner: object, name: str, description: str, kind: str) -> None:
        """A family of metrics; several owners may define the same.

        Raises:
            Invalid: the name is none, is one of ours, or is another kind of metric already.
            Exhausted: there are too many.
        """
        if not _NAME.fullmatch(name) or name.startswith(_OWN):
            raise _invalid(f"'{name[:64]}' cannot be the name of a metric")
        if kind not in KINDS:
            raise _invalid(f"a metric is one of {', '.join(KINDS)}, not '{kind[:64]}'")
        with self._lock:
            family = self._families.get(name)
            if family is None:
                if len(self._families) >= MOST_FAMILIES:
                    raise Exhausted(f"there are {MOST_FAMILIES} metrics of models already", reason="TOO_MANY_METRICS")
                family = self._families[name] = _Family(description, kind)
            if family.kind != kind:
                raise _invalid(f"metric '{name}' is a {family.kind} already")
            family.owners.add(id(owner))

    def series(self, name: str, labels: Mapping[str, str], buckets: Sequence[float]) -> None:
        """One metric of a family. Raises Invalid, Exhausted."""
        for label in labels:
            if not _LABEL.fullmatch(label) or label.startswith("__"):
                raise _invalid(f"'{label[:64]}' cannot be the name of a label")
        edges = tuple(buckets)
        with self._lock:
            family = self._family(name)
            if family.kind == "histogram" and (not 0 < len(edges) <= MOST_BUCKETS or sorted(set(edges)) != [*edges]):
                raise _invalid(f"histogram '{name}' needs 1 to {MOST_BUCKETS} rising upper edges of its buckets")
            if family.kind != "histogram" and edges:
                raise _invalid(f"'{name}' is a {family.kind}: it has no buckets")
            key = _key(labels)
            if key not in family.series and len(family.series) >= MOST_SERIES:
                raise Exhausted(f"metric '{name}' has {MOST_SERIES} sets of labels already", reason="TOO_MANY_METRICS")
            family.series.setdefault(key, _Series(edges, [0] * (len(edges) + 1)))

    def record(self, name: str, labels: Mapping[str, str], operation: str, value: float) -> None:
        """Change a metric: "increment" it, "set" it, or have it "observe" a value. Raises Invalid."""
        with self._lock:
            family, series = self._one(name, labels)
            if operation not in _OPERATIONS[family.kind]:
                raise _invalid(f"'{name}' is a {family.kind}: there is no {operation[:32]}")
            if family.kind == "counter" and not value >= 0:
                raise _invalid(f"counter '{name}' cannot be incremented by {value:g}")
            if operation == "observe":
                series.observe(value)
            else:
                series.value = value if operation == "set" else series.value + value

    def value(self, name: str, labels: Mapping[str, str]) -> float:
        """What a counter or gauge says now. Raises Invalid."""
        with self._lock:
            family, series = self._one(name, labels)
            if family.kind == "histogram":
                raise _invalid(f"'{name}' is a histogram: it has no value")
            return series.value

    def forget(self, owner: object) -> None:
        """The owner is gone, and with it the families that nobody else has defined."""
        with self._lock:
            for name, family in list(self._families.items()):
                family.owners.discard(id(owner))
                if not family.owners:
                    del self._families[name]

    def _family(self, name: str) -> _Family:
        if name not in self._families:
            raise _invalid(f"there is no metric '{name[:64]}'")
        return self._families[name]

    def _one(self, name: str, labels: Mapping[str, str]) -> tuple[_Family, _Series]:
        family = self._family(name)
        series = family.series.get(_key(labels))
        if series is None:
            raise _invalid(f"metric '{name}' has no such labels")
        return family, series


def _metric(name: str, family: _Family) -> Metric:
    # Counters whose name does not end as the format wants it would be renamed: their type stays open instead.
    total = name.endswith("_total")
    kind = "unknown" if family.kind == "counter" and not total else family.kind
    metric = Metric(name.removesuffix("_total") if kind == "counter" else name, family.description, kind)
    for key, series in family.series.items():
        labels = dict(key)
        if kind != "histogram":
            metric.add_sample(name, labels, series.value)
            continue
        below = 0
        for edge, count in zip((*series.edges, float("inf")), series.counts, strict=True):
            below += count
            metric.add_sample(f"{name}_bucket", {**labels, "le": "+Inf" if edge == float("inf") else repr(edge)}, below)
        metric.add_sample(f"{name}_sum", labels, series.value)
        metric.add_sample(f"{name}_count", labels, below)
    return metric


def _key(labels: Mapping[str, str]) -> Key:
    return tuple(sorted(labels.items()))


def _invalid(text: str) -> Invalid:
    return Invalid(text, reason="INVALID_METRIC")
