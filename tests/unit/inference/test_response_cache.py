"""Keeping answers for equal requests."""

from typing import Any

import numpy as np
import pytest

from tests.support.batching import POISON, Mailbox, Marking, call, loaded, problem
from tidemill.errors import Internal
from tidemill.inference.calls import Answer, Call
from tidemill.inference.configuration import DynamicBatching, SequenceBatching
from tidemill.inference.responses import ResponseCache, digest
from tidemill.telemetry.setup import setup


def text(*elements: bytes) -> Call:
    array = np.empty(len(elements), object)
    array[:] = elements
    return Call(inputs={"s": array}, outputs=["y"])


@pytest.mark.parametrize(
    "other",
    [
        call(1, 3),
        call(1, 2, width=3),
        call(1, 2, outputs=["width"]),
        call(1, 2, outputs=["y", "width"]),
        call(1, 2, parameters={"top": 3}),
        Call(inputs={"z": call(1, 2).inputs["x"]}, outputs=["y"]),
        Call(inputs={"x": call(1, 2).inputs["x"].astype(np.uint64)}, outputs=["y"]),
        Call(inputs={"x": call(1, 2).inputs["x"].reshape(1, 4)}, outputs=["y"]),
    ],
    ids=["values", "width", "output", "more outputs", "parameters", "name", "type", "shape"],
)
def test_calls_that_may_be_answered_otherwise_differ(other: Call) -> None:
    assert digest(other) != digest(call(1, 2))


def test_equal_calls_are_equal() -> None:
    x, z = np.arange(6.0).reshape(2, 3), np.arange(2)
    one = Call(inputs={"x": x, "z": z}, outputs=["y"], id="a")
    other = Call(inputs={"z": z.copy(), "x": np.asfortranarray(x)}, outputs=["y"], id="b")
    assert digest(one) == digest(other)


def test_strings_do_not_run_together() -> None:
    assert len({digest(one) for one in (text(b"ab", b"c"), text(b"a", b"bc"), text(b"abc"), text(b"", b"abc"))}) == 4


@pytest.mark.parametrize("dynamic", [None, DynamicBatching()], ids=["direct", "dynamic"])
def test_equal_requests_run_once(dynamic: DynamicBatching | None) -> None:
    telemetry, model = setup("test"), Marking()
    version = loaded(model, telemetry, ResponseCache(1 << 20), cache=True, dynamic=dynamic)
    for _ in range(3):
        one = call(1, 2)
        assert problem(one, version.scheduler.infer(one)) == ""
    box, one = Mailbox(), call(1, 2)
    version.scheduler.submit(one, box.of("a"))
    box.wait()
    reply = box.replies["a"]
    assert isinstance(reply, Answer)
    assert problem(one, reply) == ""
    assert model.sizes == [2]
    books = version.statistics.snapshot()
    assert (books.success.count, books.hit.count, books.miss.count) == (4, 3, 1)
    assert (books.inferences, books.executions) == (2, 1)
    labels = {"model": "m", "version": "1"}
    found = telemetry.registry.get_sample_value("tidemill_cache_lookups_total", {**labels, "outcome": "hit"})
    assert found == 3
    version.close()


@pytest.mark.parametrize(
    "more",
    [
        {"cache": False},
        {"cache": True, "sequence": SequenceBatching(), "dynamic": None},
        {"cache": True, "decoupled": True, "dynamic": None},
    ],
    ids=["not asked for", "sequence", "decoupled"],
)
def test_others_run_each_time(more: dict[str, Any]) -> None:
    model = Marking()
    version = loaded(model, responses=ResponseCache(1 << 20), **more)
    for _ in range(2):
        version.scheduler.infer(call(1))
    assert model.sizes == [1, 1]
    version.close()


def test_nothing_is_kept_where_the_server_has_no_room_for_it() -> None:
    model = Marking()
    version = loaded(model, cache=True)
    for _ in range(2):
        version.scheduler.infer(call(1))
    assert model.sizes == [1, 1]
    version.close()


def test_failures_are_not_kept() -> None:
    model = Marking()
    version = loaded(model, responses=ResponseCache(1 << 20), cache=True)
    for _ in range(2):
        with pytest.raises(Internal):
            version.scheduler.infer(call(POISON))
    assert model.sizes == [1, 1]
    assert version.statistics.snapshot().miss.count == 2
    version.close()


def test_bounded_in_bytes_and_the_least_asked_for_goes_first() -> None:
    model, cache = Marking(), ResponseCache(10_000)
    version = loaded(model, responses=cache, cache=True)
    for number in range(1, 4):
        version.scheduler.infer(call(number, width=250))
    assert 0 < cache.size <= 10_000
    for number in (1, 4, 1, 2):
        version.scheduler.infer(call(number, width=250))
    assert model.seen == [1, 2, 3, 4, 2]
    assert cache.size <= 10_000
    version.scheduler.infer(call(9, width=2000))
    version.scheduler.infer(call(9, width=2000))
    assert model.seen[-2:] == [9, 9]
    version.close()


def test_versions_do_not_share_and_take_their_answers_with_them() -> None:
    cache = ResponseCache(1 << 20)
    models = [Marking(), Marking()]
    old, new = (loaded(model, responses=cache, cache=True) for model in models)
    for version in (old, new):
        version.scheduler.infer(call(1))
    assert [model.sizes for model in models] == [[1], [1]]
    both = cache.size
    old.close()
    assert cache.size == both / 2
    new.scheduler.infer(call(1))
    assert models[1].sizes == [1]
    new.close()
    assert cache.size == 0


def test_kept_answers_cannot_be_changed() -> None:
    version = loaded(Marking(), responses=ResponseCache(1 << 20), cache=True)
    first = version.scheduler.infer(call(1))
    first.outputs["y"][:] = 0
    for _ in range(2):
        one = call(1)
        kept = version.scheduler.infer(one)
        assert problem(one, kept) == ""
        with pytest.raises(ValueError, match="read-only"):
            kept.outputs["y"][:] = 0
        kept.outputs.clear()  # type: ignore[attr-defined]
    version.close()
