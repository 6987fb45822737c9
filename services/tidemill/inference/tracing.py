"""Which requests are recorded: what clients have set for all models, or for one.

Until something is set, that is decided where requests come in. A request whose caller records it is recorded in any
case, since the caller's trace would have a hole.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.context import Context

from tidemill.errors import Exhausted, Invalid, Unimplemented
from tidemill.inference.calls import Call
from tidemill.inference.inputs import shown
from tidemill.telemetry import attributes
from tidemill.telemetry.propagation import from_traceparent
from tidemill.telemetry.setup import CHOSEN

Values = tuple[str, ...]

LEVEL, RATE, COUNT = "trace_level", "trace_rate", "trace_count"
FREQUENCY, FILE, MODE = "log_frequency", "trace_file", "trace_mode"
NAMES = (FILE, LEVEL, RATE, COUNT, FREQUENCY, MODE)
_LEVELS = frozenset({"OFF", "TIMESTAMPS", "TENSORS"})
_MOST_MODELS = 4096
_LARGEST = 2**31 - 1


class Recorded:
    """A request that is recorded.

    Args:
        context: of its span.
        span: begun for it here; None when it had one.
        tensors: whether the span tells what its tensors look like.
    """

    __slots__ = ("_span", "_tensors", "context")

    def __init__(self, context: Context, span: trace.Span | None = None, tensors: bool = False) -> None:
        self.context = context
        self._span = span
        self._tensors = tensors

    def describe(self, call: Call) -> None:
        """Note names, types and shapes of the inputs, if that is asked for; never their elements."""
        if self._tensors:
            told = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in call.inputs.items())
            trace.get_current_span(self.context).set_attribute(attributes.INPUTS, told[:1024])

    def end(self, error: Exception | None = None) -> None:
        """The request has ended."""
        if self._span is not None:
            if error is not None:
                self._span.set_status(trace.StatusCode.ERROR)
            self._span.end()


class Tracing:
    """Decides which requests are recorded. Safe to use from any thread.

    Args:
        tracer: makes the spans.
        sample: part of the requests that are recorded as long as nothing is set, 0 to 1.
    """

    def __init__(self, tracer: trace.Tracer, sample: float) -> None:
        self._tracer = tracer
        self._lock = threading.Lock()
        self._default: dict[str, Values] = {
            FILE: ("",),
            LEVEL: ("TIMESTAMPS",) if sample else ("OFF",),
            RATE: (str(round(1 / sample)) if sample else "1000",),
            COUNT: ("-1",),
            FREQUENCY: ("0",),
            MODE: ("opentelemetry",),
        }
        self._set: dict[str, dict[str, Values]] = {}
        self._choices: dict[str, _Choice] = {}
        self.updated: Callable[[str, Mapping[str, Sequence[str]]], None] | None = None
        """Called after each change, with what was changed."""

    @property
    def changes(self) -> dict[str, dict[str, Values]]:
        """What is set, by model ("" = for all)."""
        with self._lock:
            return {model: dict(found) for model, found in self._set.items()}

    def counts(self, model: str) -> bool:
        """Whether only so many requests to `model` are recorded."""
        if not self._choices:
            return False
        choice = self._choices.get(model) or self._choices.get("")
        return choice is not None and choice.left >= 0 and not choice.off

    def begin(self, model: str, traceparent: Callable[[], str]) -> Recorded | None:
        """What records a request to `model`; None when it is not recorded.

        Args:
            model: its name.
            traceparent: the caller's W3C traceparent, "" for none.
        """
        current = trace.get_current_span()
        recording = current.is_recording()
        if not self._choices:
            return Recorded(otel.get_current()) if recording else None
        choice = self._choices.get(model) or self._choices.get("")
        if choice is None:
            return Recorded(otel.get_current()) if recording else None
        parent = from_traceparent(traceparent())
        known = trace.get_current_span(parent).get_span_context()
        if recording and known.trace_flags.sampled:
            return Recorded(otel.get_current(), tensors=choice.tensors)
        with self._lock:
            chosen = choice.take()
        if not chosen:
            return None
        if recording:
            return Recorded(otel.get_current(), tensors=choice.tensors)
        if known.is_valid:
            kept = trace.SpanContext(known.trace_id, known.span_id, True, trace.TraceFlags(trace.TraceFlags.SAMPLED))
            parent = trace.set_span_in_context(trace.NonRecordingSpan(kept))
        span = self._tracer.start_span(
            attributes.SPAN_INFER,
            context=parent if known.is_valid else CHOSEN,
            kind=trace.SpanKind.SERVER,
            attributes={attributes.MODEL: model},
            record_exception=False,
        )
        return Recorded(trace.set_span_in_context(span), span, choice.tensors)

    def settings(self, model: str = "") -> dict[str, Values]:
        """What is in force for a model, or for those that have nothing of their own."""
        with self._lock:
            found = {**self._default, **self._set.get("", {}), **self._set.get(model, {})}
            choice = self._choices.get(model) or self._choices.get("")
            if choice is not None and choice.left >= 0:
                found[COUNT] = (str(choice.left),)
        return found

    def update(self, model: str, changes: Mapping[str, Sequence[str]]) -> None:
        """Set what a model ("" = all that have nothing of their own) records.

        Args:
            model: its name.
            changes: by name; an empty sequence takes back what was set.

        Raises:
            Invalid: a name or a value is wrong.
            Unimplemented: a file is named: traces go where the operator says.
            Exhausted: too many models have settings of their own.
        """
        checked = {name: _checked(name, tuple(values)) for name, values in changes.items()}
        if not checked:
            return
        with self._lock:
            own = dict(self._set.get(model, {}))
            for name, values in checked.items():
                if values:
                    own[name] = values
                else:
                    own.pop(name, None)
            if own and model not in self._set and len(self._set) >= _MOST_MODELS:
                raise Exhausted("too many models have trace settings of their own", reason="TOO_MANY_SETTINGS")
            self._set = {name: found for name, found in {**self._set, model: own}.items() if found}
            shared = {**self._default, **self._set.get("", {})}
            # What has changed for all has changed for those that inherit it, and all begin to count anew.
            again = set(self._set) if model == "" else {model}
            kept = {name: choice for name, choice in self._choices.items() if name in self._set and name not in again}
            fresh = {name: _Choice({**shared, **self._set[name]}) for name in again if name in self._set}
            self._choices = kept | fresh
        if self.updated is not None:
            self.updated(model, checked)


class _Choice:
    """Which of the requests for a model are recorded."""

    def __init__(self, settings: Mapping[str, Values]) -> None:
        self.off = "OFF" in settings[LEVEL]
        self.tensors = "TENSORS" in settings[LEVEL]
        self.rate = int(settings[RATE][0])
        self.left = int(settings[COUNT][0])
        self._seen = 0

    def take(self) -> bool:
        """Whether the request that comes now is recorded."""
        if self.off or self.left == 0:
            return False
        self._seen += 1
        if self._seen % self.rate:
            return False
        self.left -= self.left > 0
        return True


def _checked(name: str, values: Values) -> Values:
    if name not in NAMES:
        raise Invalid(f"unknown trace setting '{shown(name)}'", reason="UNKNOWN_SETTING")
    if name == FILE:
        raise Unimplemented("trace file location can not be updated through network protocol", reason="FILE_REFUSED")
    if not values:
        return values
    if name == LEVEL:
        if not _LEVELS.issuperset(values) or len(set(values)) < len(values) or ("OFF" in values and len(values) > 1):
            raise Invalid("trace_level: must be OFF, or TIMESTAMPS and TENSORS or one of them", reason="WRONG_SETTING")
        return values
    if len(values) > 1:
        raise Invalid(f"{name}: takes one value, not {len(values)}", reason="WRONG_SETTING")
    if name == MODE:
        if values != ("opentelemetry",):
            raise Invalid("trace_mode: must be opentelemetry", reason="WRONG_SETTING")
        return values
    least = {RATE: 1, COUNT: -1, FREQUENCY: 0}[name]
    number = least - 1
    with suppress(ValueError):
        if values[0].isascii() and len(values[0]) <= 11:
            number = int(values[0])
    if not least <= number <= _LARGEST:
        raise Invalid(f"{name}: must be a number in [{least}, {_LARGEST}]", reason="WRONG_SETTING")
    return (str(number),)
