"""Puts a loaded version together: its runtime, what runs calls on it, and what brings them there."""

from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.context import Context

from tidemill.errors import Invalid
from tidemill.inference.configuration import Configuration, TensorConfiguration
from tidemill.inference.desired import Version
from tidemill.inference.executor import Executor
from tidemill.inference.loaded import Loaded
from tidemill.inference.metrics import Metrics, Series
from tidemill.inference.responses import ResponseCache
from tidemill.inference.runtimes.base import Runtime
from tidemill.inference.scheduling.base import Scheduler
from tidemill.inference.scheduling.cached import CachedScheduler
from tidemill.inference.scheduling.direct import DirectScheduler
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.inference.statistics import Statistics

Choice = Callable[[Configuration, Executor], Scheduler | None]
"""A scheduler for a version that is configured so, or None when it is for others."""

Compose = Callable[[Configuration, str, Statistics, Series], Scheduler]
"""The scheduler of an ensemble: its configuration, the version's number, its books and its metrics."""


class Assembler:
    """Makes `Loaded` versions.

    Args:
        tracer: makes the spans of runs.
        metrics: makes the series of versions.
        choices: schedulers, asked in order; calls for a version that none takes run at once.
        responses: keeps answers of versions that are configured so; None = nothing is kept.
        compose: makes the schedulers of ensembles; None = there are none.
    """

    def __init__(
        self,
        tracer: trace.Tracer,
        metrics: Metrics,
        choices: tuple[Choice, ...] = (),
        responses: ResponseCache | None = None,
        compose: Compose | None = None,
    ) -> None:
        self._tracer = tracer
        self._metrics = metrics
        self._choices = choices
        self._responses = responses
        self._compose = compose

    def forget(self, loaded: Loaded) -> None:
        """End the metrics of a version that is gone."""
        self._metrics.forget(loaded.version.model, loaded.label)

    def assemble(
        self, version: Version, configuration: Configuration, runtime: Runtime | None, context: Context
    ) -> Loaded:
        """The version, ready for calls.

        Args:
            version, configuration: which it is, and how it runs.
            runtime: where it runs; None for an ensemble, which runs other models.
            context: of the span that loads it.

        Raises:
            Invalid: for an ensemble that cannot work.
            Unavailable: for an ensemble of models that are not READY.
        """
        statistics = Statistics()
        label = str(version.number)
        series = self._metrics.series(version.model, label)
        scheduler: Scheduler
        try:
            if runtime is not None:
                scheduler = self._scheduler(version.model, label, configuration, runtime, statistics, series)
            elif self._compose is not None:
                scheduler = self._compose(configuration, label, statistics, series)
            else:
                raise Invalid("ensembles are not offered here", reason="MODEL_REFUSED")
        except BaseException:
            self._metrics.forget(version.model, label)
            raise
        if self._responses is not None and _repeats(configuration):
            scheduler = CachedScheduler(scheduler, self._responses.section(), statistics, series)
        series.waiting(lambda: scheduler.pending)
        return Loaded(version, configuration, runtime, scheduler, statistics, context)

    def _scheduler(
        self,
        model: str,
        label: str,
        configuration: Configuration,
        runtime: Runtime,
        statistics: Statistics,
        series: Series,
    ) -> Scheduler:
        """What brings calls to a runtime."""
        executor = Executor(
            runtime,
            model,
            label,
            statistics,
            series,
            self._tracer,
            instances=configuration.instances,
            decoupled=configuration.decoupled,
        )
        chosen = (choice(configuration, executor) for choice in self._choices)
        return next(filter(None, chosen), None) or DirectScheduler(executor)


def unconfigured(model: str, backend: str, runtime: Runtime) -> Configuration:
    """How a version runs of which nothing is known but its file."""
    signature: Signature = runtime.signature
    return Configuration(
        name=model,
        backend=backend,
        platform=runtime.platform,
        inputs=tuple(map(_declared, signature.inputs)),
        outputs=tuple(map(_declared, signature.outputs)),
    )


def _repeats(configuration: Configuration) -> bool:
    """Whether equal requests may get the same answer, and do get just one."""
    return configuration.cache and configuration.sequence is None and not configuration.decoupled


def _declared(spec: TensorSpec) -> TensorConfiguration:
    return TensorConfiguration(name=spec.name, datatype=spec.datatype, dims=spec.shape)
