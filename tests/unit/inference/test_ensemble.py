"""Ensembles: requests on their way through a graph of models."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.support.ensembles import Models, call, tensors
from tidemill.errors import DeadlineExceeded, Exhausted, Internal, Invalid, NotFound, TidemillError, Unavailable
from tidemill.inference.calls import Answer, Array, Call
from tidemill.inference.configuration import Step
from tidemill.tensors.dtypes import DataType

X = [[1.0, 2.0]]


@pytest.fixture
def models() -> Iterator[Models]:
    made = Models()
    made.add("double", lambda x: {"y": 2 * x})
    made.add("add", lambda a, b: {"sum": a + b, "difference": a - b}, tensors("a", "b"), tensors("sum", "difference"))
    yield made
    made.close()


def step(model: str, inputs: dict[str, str], outputs: dict[str, str], version: str = "") -> Step:
    return Step(model=model, version=version, inputs=inputs, outputs=outputs)


def chain(models: Models, name: str = "chain", **more: Any) -> Any:
    """out = 4 * in."""
    steps = [step("double", {"x": "in"}, {"y": "t"}), step("double", {"x": "t"}, {"y": "out"})]
    return models.ensemble(name, steps, tensors("in"), tensors("out"), **more)


def diamond(models: Models, left: str = "double", right: str = "double") -> Any:
    """total = left(in) + right(in), gap = left(in) - right(in), half = left(in)."""
    steps = [
        step("add", {"a": "half", "b": "other"}, {"sum": "total", "difference": "gap"}),
        step(left, {"x": "in"}, {"y": "half"}),
        step(right, {"x": "in"}, {"y": "other"}),
    ]
    return models.ensemble("diamond", steps, tensors("in"), tensors("total", "gap", "half"))


def test_steps_run_in_the_order_of_the_data(models: Models) -> None:
    chain(models)
    assert models.infer("chain", call("out", **{"in": X}))["out"].tolist() == [[4, 8]]


def test_outputs_come_in_the_order_asked_for(models: Models) -> None:
    models.add("triple", lambda x: {"y": 3 * x})
    diamond(models, right="triple")
    found = models.infer("diamond", call("gap", "half", "total", **{"in": X}))
    assert {name: array.tolist() for name, array in found.items()} == {
        "gap": [[-1, -2]],
        "half": [[2, 4]],
        "total": [[5, 10]],
    }
    assert list(found) == ["gap", "half", "total"]


def test_only_the_steps_that_the_outputs_need_run_and_only_for_what_is_needed(models: Models) -> None:
    ran: list[str] = []
    models.add("other", lambda x: ran.append("other") or {"y": x})  # type: ignore[func-returns-value]
    diamond(models, right="other")
    assert models.infer("diamond", call("half", **{"in": X}))["half"].tolist() == [[2, 4]]
    assert ran == []
    models.infer("diamond", call("gap", **{"in": X}))
    assert ran == ["other"]


def test_steps_that_are_ready_run_beside_each_other(models: Models) -> None:
    both = threading.Barrier(2)

    def meet(x: Array) -> dict[str, Array]:
        both.wait(10)
        return {"y": x}

    models.add("left", meet)
    models.add("right", meet)
    diamond(models, "left", "right")
    assert models.infer("diamond", call("total", **{"in": X}))["total"].tolist() == [[2, 4]]


def test_nested_ensembles_need_no_free_thread() -> None:
    models = Models(threads=1)
    models.add("double", lambda x: {"y": 2 * x})
    models.add("add", lambda a, b: {"sum": a + b, "difference": a - b}, tensors("a", "b"), tensors("sum", "difference"))
    diamond(models)
    for depth in range(1, 4):
        inner = "diamond" if depth == 1 else f"nest{depth - 1}"
        out = "total" if depth == 1 else "sum"
        steps = [
            step(inner, {"in": "in"}, {out: "a"}),
            step(inner, {"in": "in"}, {out: "b"}),
            step("add", {"a": "a", "b": "b"}, {"sum": "sum"}),
        ]
        models.ensemble(f"nest{depth}", steps, tensors("in"), tensors("sum"))
    with ThreadPoolExecutor(8) as pool:
        made = [call("sum", **{"in": [[number, 0.0]]}) for number in range(40)]
        found = list(pool.map(lambda one: models.infer("nest3", one)["sum"][0, 0], made))
    assert found == [32 * number for number in range(40)]
    models.close()


def test_a_failing_step_fails_the_call_with_its_error_and_stops_the_rest(models: Models) -> None:
    after: list[int] = []

    def fail(x: Array) -> dict[str, Array]:
        raise Invalid("the picture is no picture", reason="BAD_PICTURE")

    models.add("fail", fail)
    models.add("later", lambda x: after.append(1) or {"y": x})  # type: ignore[func-returns-value]
    steps = [step("fail", {"x": "in"}, {"y": "t"}), step("later", {"x": "t"}, {"y": "out"})]
    loaded = models.ensemble("fails", steps, tensors("in"), tensors("out"))
    with pytest.raises(Invalid, match="the picture is no picture"):
        models.infer("fails", call("out", **{"in": X}))
    assert after == []
    assert loaded.statistics.snapshot().fail.count == 1


def test_a_fault_in_a_step_is_told_as_that_models(models: Models) -> None:
    def fail(x: Array) -> dict[str, Array]:
        raise ZeroDivisionError

    models.add("faulty", fail)
    steps = [step("faulty", {"x": "in"}, {"y": "a"}), step("double", {"x": "in"}, {"y": "b"})]
    models.ensemble("e", steps, tensors("in"), tensors("a", "b"))
    with pytest.raises(Internal, match="model 'faulty' version 1 failed"):
        models.infer("e", call("a", "b", **{"in": X}))


def test_intermediate_tensors_may_be_larger_than_a_message_and_are_dropped() -> None:
    models = Models(largest_answer=1 << 10)
    seen: list[int] = []
    models.add("grow", lambda x: {"y": np.ones((1000, 2), np.float32)})
    models.add("shrink", lambda x: seen.append(len(x)) or {"y": x[:1]})  # type: ignore[func-returns-value]
    steps = [step("grow", {"x": "in"}, {"y": "t"}), step("shrink", {"x": "t"}, {"y": "out"})]
    models.ensemble("e", steps, tensors("in"), tensors("t", "out"))
    assert models.infer("e", call("out", **{"in": X}))["out"].tolist() == [[1, 1]]
    assert seen == [1000]
    with pytest.raises(Exhausted):
        models.infer("e", call("t", **{"in": X}))
    models.close()


def test_what_a_caller_says_of_its_request_reaches_every_step(models: Models) -> None:
    seen: list[Call] = []

    loaded = models.add("spied", lambda x: {"y": x})
    infer = loaded.scheduler.infer

    def spy(made: Call) -> Answer:
        seen.append(made)
        return infer(made)

    loaded.scheduler.infer = spy  # type: ignore[method-assign, assignment]
    models.ensemble("e", [step("spied", {"x": "in"}, {"y": "out"})], tensors("in"), tensors("out"))
    made = Call(
        inputs={"in": np.array(X, np.float32)},
        outputs=("out",),
        id="7",
        correlation="s",
        starts=True,
        ends=True,
        priority=3,
        patience=2.0,
        expires=1e12,
        parameters={"a": 1},
    )
    models.infer("e", made)
    (inner,) = seen
    for name in ("id", "correlation", "starts", "ends", "priority", "patience", "expires", "parameters"):
        assert getattr(inner, name) == getattr(made, name)


def test_nothing_runs_for_a_caller_that_has_gone(models: Models) -> None:
    here = True

    def leave(x: Array) -> dict[str, Array]:
        nonlocal here
        here = False
        return {"y": x}

    models.add("leave", leave)
    steps = [step("leave", {"x": "in"}, {"y": "t"}), step("double", {"x": "t"}, {"y": "out"})]
    models.ensemble("e", steps, tensors("in"), tensors("out"))
    made = Call(inputs={"in": np.array(X, np.float32)}, outputs=("out",), alive=lambda: here)
    with pytest.raises(DeadlineExceeded):
        models.infer("e", made)
    late = Call(inputs={"in": np.array(X, np.float32)}, outputs=("out",), expires=0.0)
    with pytest.raises(DeadlineExceeded):
        models.infer("e", late)


def test_an_ensemble_counts_its_own_requests(models: Models) -> None:
    loaded = chain(models)
    for _ in range(3):
        models.infer("chain", call("out", **{"in": X}))
    found = loaded.statistics.snapshot()
    assert (found.success.count, found.inferences, found.executions, found.fail.count) == (3, 3, 3, 0)
    assert 0 < found.infer.ns <= found.success.ns
    assert models.repository.serving("double", "").statistics.snapshot().success.count == 6


def test_optional_inputs_may_be_left_out(models: Models) -> None:
    def maybe(x: Array, bias: Array | None = None) -> dict[str, Array]:
        return {"y": x if bias is None else x + bias}

    models.add("maybe", maybe, tensors("x", "bias?"))
    steps = [step("maybe", {"x": "in", "bias": "b"}, {"y": "out"})]
    models.ensemble("e", steps, tensors("in", "b?"), tensors("out"))
    assert models.infer("e", call("out", **{"in": X}))["out"].tolist() == X
    assert models.infer("e", call("out", **{"in": X, "b": X}))["out"].tolist() == [[2, 4]]
    with pytest.raises(Invalid, match="optional"):
        models.ensemble("f", [step("double", {"x": "b"}, {"y": "out"})], tensors("b?"), tensors("out"))


def test_batches_are_as_large_as_each_model_allows(models: Models) -> None:
    models.add("four", lambda x: {"y": x}, tensors("x", dims=(2,)), tensors("y", dims=(2,)), max_batch=4)
    one = [step("four", {"x": "in"}, {"y": "out"})]
    models.ensemble("fits", one, tensors("in", dims=(2,)), tensors("out", dims=(2,)), max_batch=4)
    models.ensemble("whole", one, tensors("in"), tensors("out"))
    with pytest.raises(Invalid, match="allows maximum batch size 8, but it contains model 'four' which only allows"):
        models.ensemble("more", one, tensors("in", dims=(2,)), tensors("out", dims=(2,)), max_batch=8)
    assert models.infer("whole", call("out", **{"in": X * 4}))["out"].shape == (4, 2)
    with pytest.raises(Invalid, match="batch-size must be <= 4 for 'four'"):
        models.infer("whole", call("out", **{"in": X * 5}))


def test_shapes_between_steps_are_checked(models: Models) -> None:
    models.add("narrow", lambda x: {"y": x}, tensors("x", dims=(1, 2)))
    steps = [step("double", {"x": "in"}, {"y": "t"}), step("narrow", {"x": "t"}, {"y": "out"})]
    models.ensemble("e", steps, tensors("in"), tensors("out"))
    models.infer("e", call("out", **{"in": X}))
    with pytest.raises(
        Invalid, match=r"unexpected shape for input 'x' for model 'narrow'. Expected \[1,2\], got \[3,2\]"
    ):
        models.infer("e", call("out", **{"in": X * 3}))


def test_text_between_steps_becomes_bytes(models: Models) -> None:
    strings = {"kind": DataType.BYTES, "dims": (-1,)}
    models.add("text", lambda x: {"y": np.array(["ä"], object)}, outputs=tensors("y", **strings))  # type: ignore[arg-type]
    seen: list[Any] = []
    models.add(
        "read",
        lambda x: {"y": np.array(seen.extend(x.tolist()) or [[1.0, 1.0]], np.float32)},  # type: ignore[func-returns-value]
        tensors("x", **strings),  # type: ignore[arg-type]
    )
    steps = [step("text", {"x": "in"}, {"y": "t"}), step("read", {"x": "t"}, {"y": "out"})]
    models.ensemble("e", steps, tensors("in"), tensors("out"))
    models.infer("e", call("out", **{"in": X}))
    assert seen == ["ä".encode()]


STEP = step("double", {"x": "in"}, {"y": "out"})


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([step("double", {"x": "t"}, {"y": "out"})], "'t' comes from nowhere"),
        ([step("double", {"x": "in"}, {"y": "t"})], "'out' comes from nowhere"),
        ([STEP, STEP], "'out' comes from more than one place"),
        ([step("double", {"x": "in"}, {"y": "in"}), STEP], "'in' comes from more than one place"),
        (
            [
                step("add", {"a": "in", "b": "u"}, {"sum": "t"}),
                step("add", {"a": "in", "b": "t"}, {"sum": "u", "difference": "out"}),
            ],
            "wait for each other",
        ),
        ([step("double", {"z": "in"}, {"y": "out"})], "no input 'z'"),
        ([step("double", {"x": "in"}, {"z": "out"})], "no output 'z'"),
        ([step("add", {"a": "in"}, {"sum": "out"})], "input 'b' of model 'add' is not mapped"),
        ([step("integers", {"x": "in"}, {"y": "out"})], "is INT32, but the tensor that it is mapped to FP32"),
        (
            [step("wide", {"x": "in"}, {"y": "out"})],
            r"has shape \[-1, 3\], but the tensor .* to \[-1, 2\]",
        ),
        ([step("many", {"x": "in"}, {"y": "out"})], "decoupled"),
    ],
)
def test_ensembles_that_cannot_work_are_refused(models: Models, steps: list[Step], problem: str) -> None:
    models.add("integers", lambda x: {"y": x}, tensors("x", kind=DataType.INT32))
    models.add("wide", lambda x: {"y": x}, tensors("x", dims=(-1, 3)))
    models.add("many", lambda x: {"y": x}, decoupled=True)
    with pytest.raises(Invalid, match=problem):
        models.ensemble("e", steps, tensors("in"), tensors("out"))


def test_an_ensemble_needs_its_models_to_be_there_when_it_is_loaded(models: Models) -> None:
    with pytest.raises(Unavailable, match=r"ensemble 'e' contains models that are not available.*'nope' is not found"):
        models.ensemble("e", [step("nope", {"x": "in"}, {"y": "out"})], tensors("in"), tensors("out"))
    with pytest.raises(Unavailable, match="version 2 is not found"):
        models.ensemble("e", [step("double", {"x": "in"}, {"y": "out"}, "2")], tensors("in"), tensors("out"))


def test_an_ensemble_is_ready_only_while_its_models_are(models: Models) -> None:
    chain(models)
    outer = [step("chain", {"in": "in"}, {"out": "out"})]
    models.ensemble("outer", outer, tensors("in"), tensors("out"))
    assert models.repository.ready("outer", "")
    models.drop("double")
    assert not models.repository.ready("chain", "1")
    assert not models.repository.ready("outer", "")
    with pytest.raises(Unavailable, match="'chain' version 1 is not at ready state"):
        models.repository.acquire("chain", "1")
    with pytest.raises(NotFound, match="'outer' has no available versions"):
        models.repository.acquire("outer", "")
    shown = {entry.model: (entry.state, entry.reason) for entry in models.repository.index(only_ready=False)}
    assert shown["chain"] == ("UNAVAILABLE", "a model that it is made of is not ready, or does not fit any more")
    assert [entry.model for entry in models.repository.index(only_ready=True)] == ["add"]
    models.add("double", lambda x: {"y": 3 * x})
    assert models.infer("outer", call("out", **{"in": X}))["out"].tolist() == [[9, 18]]


def test_an_ensemble_takes_up_new_versions_that_fit_and_no_others(models: Models) -> None:
    chain(models)
    models.add("double", lambda x: {"y": 10 * x}, number=2)
    assert models.infer("chain", call("out", **{"in": X}))["out"].tolist() == [[100, 200]]
    models.add("double", lambda x: {"y": x}, tensors("x", kind=DataType.INT32), number=3)
    assert not models.repository.ready("chain", "")


def test_an_ensemble_that_comes_to_be_made_of_itself_does_not_run(models: Models) -> None:
    chain(models)
    steps = [step("chain", {"in": "x"}, {"out": "y"})]
    with pytest.raises(Invalid, match="made of itself"):
        models.ensemble("double", steps, tensors("x"), tensors("y"))
    assert models.repository.ready("chain", "")


def test_models_are_in_use_while_a_call_runs(models: Models) -> None:
    began, go = threading.Event(), threading.Event()

    def wait(x: Array) -> dict[str, Array]:
        began.set()
        go.wait(10)
        return {"y": x}

    models.add("wait", wait)
    steps = [step("wait", {"x": "in"}, {"y": "t"}), step("double", {"x": "t"}, {"y": "out"})]
    models.ensemble("e", steps, tensors("in"), tensors("out"))
    closed = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(models.infer, "e", call("out", **{"in": X}))
        began.wait(10)
        models.repository.serving("double", "").retire(closed.set)
        assert not closed.is_set()
        go.set()
        assert found.result(10)["out"].tolist() == [[2, 4]]
    assert closed.wait(10)


def test_answers_of_ensembles_may_be_kept(models: Models) -> None:
    loaded = chain(models, cache=True)
    assert loaded.scheduler.available
    for _ in range(2):
        assert models.infer("chain", call("out", **{"in": X}))["out"].tolist() == [[4, 8]]
    assert loaded.statistics.snapshot().hit.count == 1


def test_the_scheduler_answers_with_a_reply(models: Models) -> None:
    loaded = chain(models)
    got: list[tuple[Answer | TidemillError | None, bool]] = []
    loaded.scheduler.submit(call("out", **{"in": X}), lambda reply, final: got.append((reply, final)))
    loaded.scheduler.submit(call("out", **{"in": [[1.0, 2.0, 3.0]]}), lambda reply, final: got.append((reply, final)))
    (good, last), (bad, end) = got
    assert isinstance(good, Answer)
    assert last
    assert isinstance(bad, Invalid)
    assert end
