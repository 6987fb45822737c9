"""What models report besides answers: lines for the log, and metrics of their own."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar

from tidemill.errors import TidemillError
from tidemill.inference.isolation.link import Link
from tidemill.inference.pythonbackend.errors import TritonModelException


class LogLevel(Enum):
    """How urgent a line is."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    VERBOSE = "verbose"


class Logger:
    """Writes to the server's log."""

    link: ClassVar[Link]
    INFO, WARNING, ERROR, VERBOSE = LogLevel.INFO, LogLevel.WARNING, LogLevel.ERROR, LogLevel.VERBOSE

    @classmethod
    def log(cls, message: str, level: LogLevel = LogLevel.INFO) -> None:
        """Write a line."""
        cls.link.tell("log", level=level.value, text=str(message)[:4000])

    @classmethod
    def log_info(cls, message: str) -> None:
        """Write a line."""
        cls.log(message, LogLevel.INFO)

    @classmethod
    def log_warn(cls, message: str) -> None:
        """Write a warning."""
        cls.log(message, LogLevel.WARNING)

    @classmethod
    def log_error(cls, message: str) -> None:
        """Write an error."""
        cls.log(message, LogLevel.ERROR)

    @classmethod
    def log_verbose(cls, message: str) -> None:
        """Write a line that is of interest to few."""
        cls.log(message, LogLevel.VERBOSE)


class Metric:
    """One metric of a family: a number, or a histogram."""

    def __init__(self, link: Link, name: str, labels: Mapping[str, str], buckets: Sequence[float]) -> None:
        self._link = link
        self._name = name
        self._labels = {str(key): str(value) for key, value in labels.items()}
        _asked(link, "metric_series", name=name, labels=self._labels, buckets=[float(edge) for edge in buckets])

    def increment(self, value: float) -> None:
        """Add to a counter or a gauge."""
        self._change("increment", value)

    def set(self, value: float) -> None:
        """Set a gauge."""
        self._change("set", value)

    def observe(self, value: float) -> None:
        """Add a value to a histogram."""
        self._change("observe", value)

    def value(self) -> float:
        """What a counter or a gauge says now, changes by other instances of the model included."""
        return float(_asked(self._link, "metric_value", name=self._name, labels=self._labels)["value"])

    def _change(self, operation: str, value: float) -> None:
        _asked(
            self._link, "metric_change", name=self._name, labels=self._labels, operation=operation, value=float(value)
        )


class MetricFamily:
    """Metrics of one name, which differ by their labels.

    Args:
        name: as it is exported.
        description: what it is.
        kind: `COUNTER`, `GAUGE` or `HISTOGRAM`.

    Raises:
        TritonModelException: there is something else of this name already.
    """

    link: ClassVar[Link]
    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self._name = name
        _asked(self.link, "metric_family", name=name, description=description, kind=kind)

    def Metric(  # as models call it
        self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None
    ) -> Metric:
        """The metric with these labels; a histogram needs the upper edges of its buckets."""
        return Metric(self.link, self._name, labels or {}, buckets or ())


def _asked(link: Link, what: str, **body: Any) -> dict[str, Any]:
    try:
        return link.ask(what, **body)
    except TidemillError as error:
        raise TritonModelException(error.message) from error
