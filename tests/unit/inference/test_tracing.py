"""Which requests are recorded."""

from collections.abc import Callable

import pytest
from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tidemill.errors import Invalid, TidemillError, Unimplemented
from tidemill.inference.tracing import Tracing
from tidemill.telemetry.setup import CHOSEN, Telemetry, setup

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-b7ad6b7169203331-0{flag}" for flag in (1, 0))


@pytest.fixture
def signals() -> Telemetry:
    return setup("test", sample=0.0)


@pytest.fixture
def spans(signals: Telemetry) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    signals.provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def tracing(signals: Telemetry, spans: InMemorySpanExporter) -> Tracing:
    return Tracing(signals.tracer, 0.01)


def chosen(tracing: Tracing, model: str = "m", number: int = 6, traceparent: str = "") -> list[bool]:
    found = []
    for _ in range(number):
        recorded = tracing.begin(model, lambda: traceparent)
        found.append(recorded is not None)
        if recorded is not None:
            recorded.end()
    return found


def test_nothing_is_decided_until_something_is_set(tracing: Tracing) -> None:
    assert chosen(tracing) == [False] * 6
    assert tracing.settings("m") == {
        "trace_file": ("",),
        "trace_level": ("TIMESTAMPS",),
        "trace_rate": ("100",),
        "trace_count": ("-1",),
        "log_frequency": ("0",),
        "trace_mode": ("opentelemetry",),
    }


def test_one_of_some_requests(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    tracing.update("m", {"trace_rate": ["3"]})
    assert chosen(tracing) == [False, False, True] * 2
    assert chosen(tracing, "other") == [False] * 6
    assert [span.name for span in spans.get_finished_spans()] == ["inference.infer"] * 2
    assert all(span.parent is None for span in spans.get_finished_spans())


def test_so_many_more_and_no_others(tracing: Tracing) -> None:
    tracing.update("m", {"trace_rate": ["1"], "trace_count": ["2"]})
    assert chosen(tracing) == [True, True, False, False, False, False]
    assert tracing.settings("m")["trace_count"] == ("0",)
    assert tracing.settings("other")["trace_count"] == ("-1",)


def test_off(tracing: Tracing, signals: Telemetry) -> None:
    tracing.update("", {"trace_rate": ["1"]})
    tracing.update("m", {"trace_level": ["OFF"]})
    assert chosen(tracing, "other", 2) == [True, True]
    assert chosen(tracing, "m", 2) == [False, False]
    span = signals.tracer.start_span("request", context=CHOSEN)
    token = otel.attach(trace.set_span_in_context(span))
    try:
        assert chosen(tracing, "m", 2) == [False, False]
        assert chosen(tracing, "m", 2, SAMPLED) == [True, True]
    finally:
        otel.detach(token)


def test_a_chosen_request_stays_in_the_trace_of_its_caller(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    tracing.update("", {"trace_rate": ["1"]})
    assert chosen(tracing, number=1, traceparent=UNSAMPLED) == [True]
    (span,) = spans.get_finished_spans()
    assert span.context is not None
    assert trace.format_trace_id(span.context.trace_id) == TRACE


def test_models_inherit_what_they_do_not_set(tracing: Tracing) -> None:
    tracing.update("m", {"trace_rate": ["2"]})
    tracing.update("", {"trace_count": ["1"], "trace_rate": ["7"]})
    assert chosen(tracing, "m") == [False, True, False, False, False, False]
    tracing.update("m", {"trace_rate": []})
    assert tracing.settings("m")["trace_rate"] == ("7",)
    tracing.update("", {"trace_rate": [], "trace_count": []})
    assert tracing.settings("m")["trace_rate"] == ("100",)
    assert chosen(tracing, "m") == [False] * 6


@pytest.mark.parametrize(
    ("name", "values", "kind", "text"),
    [
        ("trace_file", ["/tmp/x"], Unimplemented, "trace file location can not be updated through network protocol"),
        ("trace_file", [], Unimplemented, "trace file location can not be updated through network protocol"),
        ("nope", ["1"], Invalid, "unknown trace setting 'nope'"),
        ("trace_mode", ["triton"], Invalid, "trace_mode: must be opentelemetry"),
        ("trace_rate", ["1", "2"], Invalid, "trace_rate: takes one value, not 2"),
        *(
            ("trace_rate", [value], Invalid, "trace_rate: must be a number in [1, 2147483647]")
            for value in ("0", "-1", "x", "", "1.5", "9" * 30, "\u0663", "2147483648")
        ),
        ("trace_count", ["-2"], Invalid, "trace_count: must be a number in [-1, 2147483647]"),
        ("log_frequency", ["-1"], Invalid, "log_frequency: must be a number in [0, 2147483647]"),
        *(
            ("trace_level", values, Invalid, "trace_level: must be OFF, or TIMESTAMPS and TENSORS or one of them")
            for values in (["MAX"], ["OFF", "TENSORS"], ["TENSORS", "TENSORS"])
        ),
    ],
)
def test_refuses_wrong_settings(
    tracing: Tracing, name: str, values: list[str], kind: type[TidemillError], text: str
) -> None:
    before = tracing.settings("m")
    with pytest.raises(kind) as refused:
        tracing.update("m", {"trace_rate": ["1"], name: values})
    assert refused.value.message == text
    assert tracing.settings("m") == before


def test_the_callers_header_is_read_only_when_it_matters(tracing: Tracing) -> None:
    def unread() -> str:
        raise AssertionError

    header: Callable[[], str] = unread
    assert tracing.begin("m", header) is None
    tracing.update("other", {"trace_rate": ["1"]})
    assert tracing.begin("m", header) is None
