"""What can be counted of jobs."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from tidemill.telemetry import attributes
from tidemill.training.jobs import NEXT, State


class Counters:
    """Metrics of the training service, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jobs = Gauge(attributes.METRIC_JOBS, "Jobs that have not ended.", ["state"], registry=registry)
        self._ended = Counter(attributes.METRIC_JOBS_ENDED, "Jobs that have ended here.", ["state"], registry=registry)
        self._restarts = Counter(attributes.METRIC_WORKER_RESTARTS, "Dead workers replaced.", registry=registry)
        self.active({})

    def active(self, jobs: Mapping[State, int]) -> None:
        """How many jobs there are in each state."""
        for state in State:
            if NEXT[state]:
                self._jobs.labels(state.value).set(jobs.get(state, 0))

    def ended(self, state: State) -> None:
        """A job has ended."""
        self._ended.labels(state.value).inc()

    def restarted(self) -> None:
        """A dead worker was replaced."""
        self._restarts.inc()
