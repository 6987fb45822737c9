"""Models written for Triton's Python backend, run as they are."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.support import pythonmodels
from tidemill.errors import DeadlineExceeded, Internal, Invalid, TidemillError, Unavailable
from tidemill.inference.calls import Answer, Call, Receive
from tidemill.inference.configuration import Configuration, DynamicBatching, SequenceBatching, TensorConfiguration
from tidemill.inference.custommetrics import CustomMetrics
from tidemill.inference.isolation.restarts import Limits
from tidemill.inference.runtimes.base import Invoke, ModelMetrics, Settings
from tidemill.inference.runtimes.python import PythonRuntime
from tidemill.tensors.dtypes import DataType

FP32, INT32, BYTES = DataType.FP32, DataType.INT32, DataType.BYTES
LIMITS = Limits(first=0.01, grace=1, start=60)
Load = Callable[..., PythonRuntime]


def tensor(name: str, datatype: DataType = FP32, dims: tuple[int, ...] = (-1,)) -> TensorConfiguration:
    return TensorConfiguration(name=name, datatype=datatype, dims=dims)


def configuration(
    inputs: tuple[TensorConfiguration, ...],
    outputs: tuple[TensorConfiguration, ...],
    *,
    name: str = "m",
    max_batch: int = 0,
    instances: int = 1,
    decoupled: bool = False,
    sequence: SequenceBatching | None = None,
) -> Configuration:
    return Configuration(
        name=name,
        backend="python",
        inputs=inputs,
        outputs=outputs,
        max_batch=max_batch,
        instances=instances,
        decoupled=decoupled,
        sequence=sequence,
    )


ADD_SUB = configuration((tensor("INPUT0"), tensor("INPUT1")), (tensor("OUTPUT0"), tensor("OUTPUT1")))
X_TO_Y = configuration((tensor("x"),), (tensor("y"),))
REPEAT = configuration((tensor("IN", INT32),), (tensor("OUT", INT32, (1,)),), decoupled=True)


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    loaded: list[PythonRuntime] = []

    def start(
        source: str,
        config: Configuration | None = None,
        *,
        invoke: Invoke | None = None,
        metrics: ModelMetrics | None = None,
        beside: dict[str, str] | None = None,
    ) -> PythonRuntime:
        directory = tmp_path / str(len(loaded)) / "1"
        directory.mkdir(parents=True)
        for name, text in (beside or {}).items():
            (directory / name).write_text(text)
        settings = Settings(
            trusted=True, directory=directory, version="1", configuration=config, invoke=invoke, metrics=metrics
        )
        loaded.append(PythonRuntime.load({"model.py": source.encode()}, settings, limits=LIMITS))
        return loaded[-1]

    yield start
    for runtime in loaded:
        runtime.close()


class Streamed:
    """Receives the replies of a stream."""

    def __init__(self) -> None:
        self.replies: list[Answer | TidemillError | None] = []
        self.ended = threading.Event()

    def __call__(self, reply: Answer | TidemillError | None, final: bool) -> None:
        self.replies.append(reply)
        if final:
            self.ended.set()


def x(*values: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"x": np.array(values, np.float32)}


def call(*values: float, expires: float | None = None) -> Call:
    return Call(inputs=x(*values), outputs=["y"], expires=expires)


def test_adds_and_subtracts(load: Load) -> None:
    runtime = load(pythonmodels.ADD_SUB, ADD_SUB)
    a, b = np.array([1, 2], np.float32), np.array([3, 5], np.float32)
    total, difference = runtime.run({"INPUT0": a, "INPUT1": b}, ["OUTPUT0", "OUTPUT1"])
    np.testing.assert_array_equal(total, [4, 7])
    np.testing.assert_array_equal(difference, [-2, -3])
    assert runtime.ready


def add_sub(model: str, version: str, call: Call, receive: Receive) -> None:
    if model != "add_sub":
        receive(Invalid(f"no model {model}"), True)
        return
    a, b = call.inputs["INPUT0"], call.inputs["INPUT1"]
    receive(Answer(outputs={"OUTPUT0": a + b, "OUTPUT1": a - b}), True)


@pytest.mark.parametrize("source", [pythonmodels.BLS, pythonmodels.BLS_ASYNC], ids=["sync", "async"])
def test_calls_other_models(load: Load, source: str) -> None:
    config = configuration((*ADD_SUB.inputs, tensor("MODEL_NAME", BYTES, (1,))), ADD_SUB.outputs)
    runtime = load(source, config, invoke=add_sub)
    a, b = np.array([1, 2], np.float32), np.array([3, 5], np.float32)
    inputs = {"INPUT0": a, "INPUT1": b}
    (total,) = runtime.run({**inputs, "MODEL_NAME": np.array([b"add_sub"], object)}, ["OUTPUT0"])
    np.testing.assert_array_equal(total, [4, 7])
    with pytest.raises(Internal, match="no model other"):
        runtime.run({**inputs, "MODEL_NAME": np.array([b"other"], object)}, ["OUTPUT0"])


def test_sends_any_number_of_answers_after_it_has_returned(load: Load) -> None:
    runtime = load(pythonmodels.REPEAT, REPEAT)
    for values in ([4, 2, 0, 1], []):
        streamed = Streamed()
        runtime.stream(Call(inputs={"IN": np.array(values, np.int32)}, outputs=["OUT"]), streamed)
        assert streamed.ended.wait(20)
        *answers, last = streamed.replies
        assert last is None
        assert [int(each.outputs["OUT"][0]) for each in answers if isinstance(each, Answer)] == values


def test_iterates_over_the_answers_of_another_model(load: Load) -> None:
    repeat = load(pythonmodels.REPEAT, REPEAT)

    def invoke(model: str, version: str, call: Call, receive: Receive) -> None:
        repeat.stream(call, receive)

    runtime = load(
        pythonmodels.BLS_DECOUPLED,
        configuration((tensor("IN", INT32),), (tensor("SUM", INT32, (1,)),)),
        invoke=invoke,
    )
    assert runtime.run({"IN": np.array([4, 2, 1], np.int32)}, ["SUM"]) == [np.array([7])]


def test_strings(load: Load) -> None:
    runtime = load(pythonmodels.STRINGS, configuration((tensor("TEXT", BYTES),), (tensor("UPPER", BYTES),)))
    (upper,) = runtime.run({"TEXT": np.array(["grün".encode(), b"", b"a b"], object)}, ["UPPER"])
    assert upper.tolist() == ["GRÜN".encode(), b"", b"A B"]


def test_an_error_of_one_request_is_no_other_ones(load: Load) -> None:
    runtime = load(pythonmodels.ERRORS, X_TO_Y)
    replies, _ = runtime.execute([call(1), call(-1), call(3)])
    assert isinstance(replies[0], Answer)
    assert isinstance(replies[1], Invalid)
    assert replies[1].message == "no negative values"
    assert isinstance(replies[2], Answer)
    np.testing.assert_array_equal(replies[2].outputs["y"], [6])


@pytest.mark.parametrize(
    ("value", "text"),
    [(-2, "ValueError: cannot do that"), (-4, "returned 0 responses to 1 requests"), (-6, "no output 'y'")],
)
def test_what_a_model_does_wrong_fails_the_call_alone(load: Load, value: int, text: str) -> None:
    runtime = load(pythonmodels.ERRORS, X_TO_Y)
    with pytest.raises(Internal, match=text):
        runtime.run(x(value), ["y"])
    np.testing.assert_array_equal(runtime.run(x(4), ["y"])[0], [8])


def test_a_crash_costs_the_calls_in_that_process_only(load: Load) -> None:
    config = configuration(X_TO_Y.inputs, X_TO_Y.outputs, instances=2)
    runtime = load(pythonmodels.ERRORS, config)
    before = set(runtime.pool.pids)
    with pytest.raises(Unavailable, match="SIGSEGV"):
        runtime.run(x(-3), ["y"])
    np.testing.assert_array_equal(runtime.run(x(4), ["y"])[0], [8])
    assert len(before & set(runtime.pool.pids)) == 1


def test_a_model_that_hangs_does_not_hold_its_callers(load: Load) -> None:
    runtime = load(pythonmodels.ERRORS, X_TO_Y)
    for value in (-7, 1):  # the second one waits for the process
        (reply,), _ = runtime.execute([call(value, expires=0.0)])
        assert isinstance(reply, DeadlineExceeded)


def test_a_model_sees_that_its_caller_has_gone(load: Load) -> None:
    runtime = load(pythonmodels.ERRORS, X_TO_Y)
    alive = threading.Event()
    waiting = Call(inputs=x(-5), outputs=["y"], alive=lambda: not alive.is_set())
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(runtime.execute, [waiting])
        alive.set()
        pending.result(20)
    np.testing.assert_array_equal(runtime.run(x(4), ["y"])[0], [8])


def test_a_sequence_stays_with_its_instance(load: Load) -> None:
    config = configuration(
        (tensor("x", INT32, (1,)),),
        (tensor("y", INT32, (1,)),),
        max_batch=4,
        instances=2,
        sequence=SequenceBatching(idle=60, oldest=DynamicBatching()),
    )
    runtime = load(pythonmodels.COUNTER, config)
    instances: dict[int, set[object]] = {1: set(), 2: set(), 3: set()}
    for step in range(4):
        calls = [
            Call(
                inputs={"x": np.zeros((1, 1), np.int32)},
                outputs=["y"],
                correlation=number,
                starts=step == 0,
                ends=step == 3,
            )
            for number in instances
        ]
        replies, _ = runtime.execute(calls)
        for number, reply in zip(instances, replies, strict=True):
            assert isinstance(reply, Answer)
            assert reply.outputs["y"].tolist() == [[step + 1]]
            instances[number].add(reply.parameters["instance"])
    assert all(len(found) == 1 for found in instances.values())
    assert set.union(*instances.values()) == {"m_0", "m_1"}


def test_completes_its_configuration(load: Load) -> None:
    runtime = load(pythonmodels.DOUBLE)
    completed = runtime.completed
    assert (completed.max_batch, completed.dynamic) == (8, DynamicBatching())
    assert completed.inputs == (tensor("x", FP32, (2,)),)
    assert runtime.signature.input["x"].shape == (-1, 2)


def test_metrics_of_models_are_exported_until_they_are_gone(load: Load) -> None:
    registry = CollectorRegistry()
    runtime = load(pythonmodels.METRICS, X_TO_Y, metrics=CustomMetrics(registry))
    runtime.run(x(1, 2), ["y"])
    assert runtime.run(x(1, 2, 3), ["y"])[0].tolist() == [2]
    text = generate_latest(registry).decode()
    assert 'requests_seen{model="m"} 2.0' in text
    assert 'sizes_bucket{le="1.0"} 0.0' in text
    assert 'sizes_bucket{le="10.0"} 2.0' in text
    runtime.close()
    assert b"requests_seen" not in generate_latest(registry)


def test_imports_what_lies_beside_it(load: Load) -> None:
    source = pythonmodels.DOUBLE.replace("* 2 for", "* FACTOR for")
    both = "from .numbers_of_mine import FACTOR\nfrom numbers_of_mine import FACTOR as SAME\nassert SAME == FACTOR\n"
    runtime = load(both + source, beside={"numbers_of_mine.py": "FACTOR = 2\n"})
    np.testing.assert_array_equal(runtime.run({"x": np.ones((1, 2), np.float32)}, ["y"])[0], [[2, 2]])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("class Model: pass", "no class TritonPythonModel"),
        ("class TritonPythonModel: pass", "no method execute"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def (", "SyntaxError"),
        (
            "class TritonPythonModel:\n def initialize(self, args): raise RuntimeError('no weights')\n"
            " def execute(self, requests): return []",
            "no weights",
        ),
        ("import os; os.abort()", "SIGABRT while it loaded"),
    ],
)
def test_a_model_that_does_not_load_is_refused_with_the_reason(load: Load, source: str, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        load(source, X_TO_Y)


@pytest.mark.parametrize("settings", [Settings(), Settings(trusted=True), Settings(directory=Path("1"))])
def test_only_the_operators_own_models_run(settings: Settings) -> None:
    with pytest.raises(Invalid, match="operator's own repository"):
        PythonRuntime.load({"model.py": pythonmodels.DOUBLE.encode()}, settings)
