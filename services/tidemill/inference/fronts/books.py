"""Metrics of several processes as those of one."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.metrics_core import Metric as Family

from tidemill import records
from tidemill.inference.statistics import Snapshot
from tidemill.telemetry import attributes

Samples: TypeAlias = list[list[Any]]
"""Name, kind, help, and samples (name, labels, value) of each metric, as they travel."""
_SUMMED_GAUGES = frozenset({attributes.METRIC_RPC_IN_FLIGHT, attributes.METRIC_QUEUE_LENGTH})
"""Gauges that count something of each process; others say something of the service, which the first process knows."""
_NOT_SUMMED = frozenset({attributes.METRIC_MODEL_LOADS})
"""What fronts do after the first process has done it: it counts once."""


def together(gone: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """Reports of fronts that have ended as one: what they have counted, not what they had at the moment."""
    counted = [[family for family in report["metrics"] if family[1] != "gauge"] for report in (gone, last)]
    found: dict[str, Snapshot] = {}
    for report in (gone, last):
        for key, values in report["statistics"].items():
            found.setdefault(key, Snapshot()).add(records.decode(Snapshot, json.dumps(values).encode()))
    statistics = {key: asdict(snapshot) for key, snapshot in found.items()}
    return {"metrics": _samples(merged([], counted)), "statistics": statistics}


def read(registry: CollectorRegistry) -> Samples:
    """What the metrics of this process say now."""
    return _samples(registry.collect())


def _samples(families: Iterable[Metric]) -> Samples:
    return [
        [
            family.name,
            family.type,
            family.documentation,
            [[sample.name, dict(sample.labels), sample.value] for sample in family.samples],
        ]
        for family in families
    ]


def merged(own: Iterable[Metric], others: Iterable[Samples]) -> list[Metric]:
    """The metrics of this process, with those of others added: sums, but for gauges that each process would repeat."""
    families: dict[str, tuple[str, str]] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}

    def add(name: str, kind: str, text: str, samples: Iterable[tuple[str, Mapping[str, str], float]]) -> None:
        families.setdefault(name, (kind, text))
        mine = values.setdefault(name, {})
        for sample, labels, value in samples:
            key = (sample, tuple(sorted(labels.items())))
            if not sample.endswith("_created"):
                value += mine.get(key, 0.0)
            mine[key] = value

    for family in own:
        add(family.name, family.type, family.documentation, ((s.name, s.labels, s.value) for s in family.samples))
    for process in others:
        for name, kind, text, samples in process:
            if name not in _NOT_SUMMED and (kind != "gauge" or name in _SUMMED_GAUGES):
                add(name, kind, text, ((sample, labels, value) for sample, labels, value in samples))
    found = []
    for name, (kind, text) in families.items():
        family = Family(name, text, kind)
        for (sample, labels), value in values[name].items():
            family.add_sample(sample, dict(labels), value)
        found.append(family)
    return found
