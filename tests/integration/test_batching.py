"""Batching on a real server: each caller gets its rows, and is told what the protocol's clients know."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.batching import POISON, Marking, configuration, marked, until
from tests.support.oipserver import OipServer, oip_server
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Exhausted, TidemillError, Unavailable
from tidemill.inference.configuration import DynamicBatching, QueuePolicy
from tidemill.inference.scheduling import dynamic
from tidemill.rpc.status import from_rpc_error

CALLERS = 24


@pytest.fixture
def model() -> Marking:
    return Marking(hold=True)


@pytest.fixture
def server(model: Marking) -> Iterator[OipServer]:
    versions = {
        ("free", 1): (configuration(name="free", max_batch=64), Marking()),
        ("held", 1): (configuration(name="held"), model),
        (
            "strict",
            1,
        ): (
            configuration(name="strict", dynamic=DynamicBatching(policy=QueuePolicy(allow_override=True, size=1))),
            model,
        ),
    }
    with oip_server(versions, choices=(choose_for,), threads=CALLERS) as running:
        yield running


def choose_for(configuration: Any, executor: Any) -> Any:
    """The server's own bound is 2, but for the model that is free."""
    return dynamic.choose(configuration, executor, bound=1024 if configuration.name == "free" else 2)


def request(name: str, *rows: int, width: int = 2, **parameters: int) -> pb.ModelInferRequest:
    """A request with these rows, each of which is its number `width` times."""
    x = np.repeat(np.array(rows, np.int64)[:, None], width, axis=1)
    made = pb.ModelInferRequest(model_name=name, raw_input_contents=[x.tobytes()])
    made.inputs.add(name="x", datatype="INT64", shape=x.shape)
    made.outputs.add(name="y")
    for key, value in parameters.items():
        made.parameters[key].int64_param = value
    return made


def answered(request: pb.ModelInferRequest, response: pb.ModelInferResponse) -> bool:
    """Whether this is the answer to just this request."""
    x = np.frombuffer(request.raw_input_contents[0], np.int64)
    return response.raw_output_contents[0] == marked(x).tobytes() and (
        list(response.outputs[0].shape) == list(request.inputs[0].shape)
    )


def failure(call: Any) -> TidemillError:
    with pytest.raises(grpc.RpcError) as raised:
        call.result(timeout=20)
    return from_rpc_error(raised.value)


def test_each_caller_gets_its_rows(server: OipServer) -> None:
    wrong: list[str] = []

    def work(thread: int) -> None:
        for index in range(40):
            first = thread * 100_000 + index * 10 + 1
            rows = [first + row for row in range(1 + (thread + index) % 3)]
            poisoned = (thread + index) % 37 == 0
            sent = request("free", *rows, *([POISON] if poisoned else []), width=1 + index % 2)
            try:
                fine = answered(sent, server.stub.ModelInfer(sent, timeout=20)) and not poisoned
            except grpc.RpcError as error:
                fine = poisoned and error.code() is grpc.StatusCode.INTERNAL
            if not fine:
                wrong.append(f"{rows} {poisoned}")

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(CALLERS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
    books = server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="free")).model_stats[0]
    figures = books.inference_stats
    assert figures.success.count + figures.fail.count == CALLERS * 40
    assert figures.queue.count == figures.compute_infer.count == figures.success.count
    assert books.execution_count < figures.success.count
    assert books.inference_count == sum(batch.batch_size * batch.compute_infer.count for batch in books.batch_stats)
    spent = (figures.queue, figures.compute_input, figures.compute_infer, figures.compute_output)
    assert sum(part.ns for part in spent) <= figures.success.ns


def test_full_queues(server: OipServer, model: Marking) -> None:
    first = server.stub.ModelInfer.future(request("held", 1))
    model.began()
    waiting = [server.stub.ModelInfer.future(request("held", number)) for number in (2, 3, 4)]
    refused = next(failure(call) for call in _done(waiting))
    assert isinstance(refused, Exhausted)
    assert "Exceeds maximum queue size" in refused.message
    assert refused.retry_after
    model.let(2)
    assert first.result(timeout=20)
    assert sum(1 for call in waiting if call.exception(timeout=20) is None) == 2


def test_what_the_models_owner_limits_is_told_as_clients_know_it(server: OipServer, model: Marking) -> None:
    first = server.stub.ModelInfer.future(request("strict", 1))
    model.began()
    waiting = [server.stub.ModelInfer.future(request("strict", number)) for number in (2, 3)]
    refused = next(failure(call) for call in _done(waiting))
    assert isinstance(refused, Unavailable)
    assert refused.message == "Exceeds maximum queue size"
    model.let(2)
    assert first.result(timeout=20)
    assert sum(1 for call in waiting if call.exception(timeout=20) is None) == 1


def test_request_names_the_time_that_it_waits(server: OipServer, model: Marking) -> None:
    first = server.stub.ModelInfer.future(request("strict", 1))
    model.began()
    refused = failure(server.stub.ModelInfer.future(request("strict", 2, timeout=20_000)))
    assert isinstance(refused, Unavailable)
    assert refused.message == "Request timeout expired"
    model.let()
    assert first.result(timeout=20)
    assert model.seen == [1]


def test_cancelled_and_expired_requests_never_run(server: OipServer, model: Marking) -> None:
    first = server.stub.ModelInfer.future(request("held", 1))
    model.began()
    scheduler = server.loaded["held", 1].scheduler
    cancelled = server.stub.ModelInfer.future(request("held", 2))
    until(lambda: scheduler.pending == 1)
    cancelled.cancel()
    with pytest.raises(grpc.RpcError) as raised:
        server.stub.ModelInfer(request("held", 3), timeout=0.1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: scheduler.pending == 1)
    model.let()
    assert first.result(timeout=20)
    last = server.stub.ModelInfer.future(request("held", 4))
    model.let()
    assert last.result(timeout=20)
    assert model.seen == [1, 4]


def _done(calls: list[Any]) -> Iterator[Any]:
    """Those of the calls that have ended, when there is one."""
    ended = threading.Event()
    for call in calls:
        call.add_done_callback(lambda _: ended.set())
    assert ended.wait(20)
    return (call for call in calls if call.done())
