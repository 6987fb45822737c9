"""The registry's own numbers for Prometheus."""

from collections import Counter as Counts

from prometheus_client import CollectorRegistry, Counter, Gauge

from tidemill.clock import Clock
from tidemill.errors import TidemillError
from tidemill.registry.instances import Instances
from tidemill.registry.models import Event
from tidemill.registry.records import kind_of
from tidemill.telemetry import attributes

INTERVAL = 10.0
"""Seconds between two counts of the live instances."""


class EventCounter:
    """Counts the events that this process writes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name = attributes.METRIC_REGISTRY_EVENTS
        self._events = Counter(name, "Events written by this process.", ["resource", "type"], registry=registry)

    def add(self, event: Event) -> None:
        """One more."""
        self._events.labels(kind_of(event.resource), event.type.name.lower()).inc()


class InstanceCounter:
    """Shows the number of live instances of each service."""

    def __init__(self, instances: Instances, clock: Clock, registry: CollectorRegistry) -> None:
        self._instances = instances
        self._clock = clock
        self._gauge = Gauge(attributes.METRIC_INSTANCES, "Live instances.", ["service"], registry=registry)
        self._seen: set[str] = set()

    async def run(self) -> None:
        """Count again and again; while the store is away there are no numbers."""
        while True:
            try:
                counts = Counts(instance.service for instance in await self._instances.list(""))
            except TidemillError:
                self._gauge.clear()
            else:
                self._show(counts)
            await self._clock.sleep(INTERVAL)

    def _show(self, counts: Counts[str]) -> None:
        self._seen |= set(counts)
        for service in self._seen:
            self._gauge.labels(service).set(counts[service])
