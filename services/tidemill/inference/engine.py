"""Runs requests on loaded versions, and makes them seen."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from opentelemetry import trace
from prometheus_client import CollectorRegistry, Counter, Histogram

from tidemill.errors import DeadlineExceeded, Exhausted, Internal, TidemillError
from tidemill.inference.loaded import Loaded
from tidemill.rpc import deadline
from tidemill.telemetry import attributes

LOG = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]

_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


@dataclass(frozen=True, slots=True)
class _Series:
    """The metrics of one version."""

    successes: Counter
    failures: Counter
    seconds: Histogram


class Engine:
    """Runs one request at a time on the thread that calls it.

    Args:
        tracer: makes the spans.
        registry: of the metrics.
        largest_answer: most bytes that the outputs of a request may have together.
    """

    def __init__(self, tracer: trace.Tracer, registry: CollectorRegistry, largest_answer: int) -> None:
        self._tracer = tracer
        self._largest_answer = largest_answer
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
            buckets=_BUCKETS,
        )
        self._series: dict[Loaded, _Series] = {}

    def run(self, loaded: Loaded, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """The named outputs, in this order.

        Args:
            loaded: what to run; in use by the caller.
            inputs: one array for every input of its signature, of its type and shape.
            outputs: names of its outputs.

        Raises:
            DeadlineExceeded: nobody waits for the answer any more.
            Exhausted: the answer is larger than a message may be.
            Invalid, Internal: as `Runtime.run`.
        """
        left = deadline.remaining()
        if left is not None and left <= 0:
            raise DeadlineExceeded("the request's time was over before the model ran", reason="EXPIRED")
        series = self._series.get(loaded) or self._begin_series(loaded)
        started = time.time_ns()
        try:
            with self._span(loaded):
                found = loaded.runtime.run(inputs, outputs)
        except Internal as error:
            series.failures.inc()
            raise _explained(error, loaded) from error
        except TidemillError:
            series.failures.inc()
            raise
        ended = time.time_ns()
        self._check_size(found)
        series.successes.inc()
        series.seconds.observe((ended - started) / 1e9)
        if loaded.first_time():
            self._first_prediction(loaded, started, ended)
        return found

    def forget(self, loaded: Loaded) -> None:
        """Drop the series of a version that is gone."""
        self._series.pop(loaded, None)
        model, version = loaded.version.model, loaded.label
        if any((other.version.model, other.label) == (model, version) for other in list(self._series)):
            return  # a model made anew under the same name has taken the series over
        for outcome in ("success", "failure"):
            self._inferences.remove(model, version, outcome)
        self._seconds.remove(model, version)

    def _begin_series(self, loaded: Loaded) -> _Series:
        """Looked up once: finding a series by its labels takes as long as a small model."""
        model, version = loaded.version.model, loaded.label
        series = self._series[loaded] = _Series(
            self._inferences.labels(model, version, "success"),
            self._inferences.labels(model, version, "failure"),
            self._seconds.labels(model, version),
        )
        return series

    def _span(self, loaded: Loaded) -> AbstractContextManager[object]:
        """The span of the run, in requests that are recorded: in others it would cost time for nothing."""
        if not trace.get_current_span().is_recording():
            return nullcontext()
        return self._tracer.start_as_current_span(
            attributes.SPAN_EXECUTE,
            attributes={attributes.MODEL: loaded.version.model, attributes.MODEL_VERSION: loaded.label},
            record_exception=False,
        )

    def _check_size(self, arrays: Sequence[Array]) -> None:
        size = sum(array.nbytes for array in arrays)
        if size > self._largest_answer:
            raise Exhausted(
                f"the outputs have {size} bytes; an answer may have {self._largest_answer}", reason="ANSWER_TOO_LARGE"
            )

    def _first_prediction(self, loaded: Loaded, started: int, ended: int) -> None:
        """A span in the trace of the version, which so runs from its job to the first prediction."""
        request = trace.get_current_span().get_span_context()
        span = self._tracer.start_span(
            attributes.SPAN_FIRST_PREDICTION,
            context=loaded.trace,
            links=[trace.Link(request)] if request.is_valid else [],
            attributes={attributes.MODEL: loaded.version.model, attributes.MODEL_VERSION: loaded.label},
            start_time=started,
        )
        span.end(ended)


def _explained(error: Internal, loaded: Loaded) -> Internal:
    """The error for the caller: the runtime's own words about a fault of ours go to the log alone."""
    version = loaded.version
    LOG.warning(
        "execution failed",
        extra={"model": version.model, "version": version.number, "error": str(error.__cause__ or error)[:1000]},
    )
    return Internal(
        f"model '{version.model}' version {version.number} failed on these inputs; the server's log says why",
        reason="EXECUTION_FAILED",
    )
