"""Streams of requests: order, errors, decoupled models, cancellation, clients that do not read."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.oipmodels import Function, Talker, configuration, tensor
from tests.support.oipserver import OipServer, oip_server
from tests.support.wait import until
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.inference.calls import Answer, Call, Receive
from tidemill.inference.configuration import Configuration
from tidemill.inference.executor import Executor
from tidemill.inference.protocols.oip.stream import Exchange, Outbox
from tidemill.inference.scheduling.base import Scheduler
from tidemill.tensors.dtypes import DataType

INT = DataType.INT32


def eventually(condition: Callable[[], bool], what: str) -> None:
    asyncio.run(until(condition, what=what))


class Hoarder(Scheduler):
    """Keeps calls until there are `size` of them, and then answers the last one first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held: list[tuple[Call, Receive]] = []

    def submit(self, call: Call, receive: Receive) -> None:
        self.held.append((call, receive))
        if len(self.held) == self.size:
            for kept, back in reversed(self.held):
                back(Answer(outputs={"y": kept.inputs["n"]}), True)
            self.held.clear()


def choose(found: Configuration, executor: Executor) -> Scheduler | None:
    return Hoarder(3) if found.name == "hoard" else None


@pytest.fixture
def talker() -> Talker:
    return Talker()


@pytest.fixture
def server(talker: Talker) -> Iterator[OipServer]:
    inputs, outputs = [tensor("n", INT)], [tensor("y", INT)]
    versions = {
        ("talk", 1): (configuration("talk", inputs, outputs, decoupled=True), talker),
        ("echo", 1): (configuration("echo", inputs, outputs), Function(lambda n: {"y": n})),
        ("hoard", 1): (configuration("hoard", inputs, outputs), Function(dict)),
    }
    with oip_server(versions, choices=(choose,), threads=8, streams=3) as running:
        yield running


def request(model: str, id: str, n: int = 1, **own: Any) -> Any:
    sent: Any = pb.ModelInferRequest(model_name=model, id=id, raw_input_contents=[np.int32(n).tobytes()])
    sent.inputs.add(name="n", datatype="INT32", shape=[1])
    for name, value in own.items():
        setattr(sent.parameters[name], "bool_param" if isinstance(value, bool) else "string_param", value)
    return sent


def told(reply: Any) -> tuple[str, int | str | None, bool | None]:
    """Id, value or error, and the mark of the last answer."""
    answer = reply.infer_response
    marks = answer.parameters
    mark = marks["triton_final_response"].bool_param if "triton_final_response" in marks else None
    if reply.error_message:
        return answer.id, reply.error_message, mark
    raw = answer.raw_output_contents
    return answer.id, int(np.frombuffer(raw[0], np.int32)[0]) if raw else None, mark


def exchange(server: OipServer, *requests: Any) -> list[tuple[str, int | str | None, bool | None]]:
    return [told(reply) for reply in server.stub.ModelStreamInfer(iter(requests), timeout=20)]


def test_answers_come_as_requests_did(server: OipServer) -> None:
    found = exchange(server, *(request("echo", str(n), n) for n in range(200)))
    assert found == [(str(n), n, True) for n in range(200)]
    assert server.unused


def test_requests_do_not_wait_for_earlier_answers(server: OipServer) -> None:
    found = exchange(server, *(request("hoard", str(n), n) for n in range(6)))
    assert [id for id, _, _ in found] == ["2", "1", "0", "5", "4", "3"]


def test_errors_leave_the_stream_open(server: OipServer) -> None:
    unknown = "Request for unknown model: 'nope' is not found"
    found = exchange(
        server, request("nope", "a"), request("echo", "b", 7), pb.ModelInferRequest(), request("echo", "c")
    )
    assert found == [
        ("a", unknown, None),
        ("b", 7, True),
        ("", "Request for unknown model: '' is not found", None),
        ("c", 1, True),
    ]


def test_errors_end_the_stream_where_that_is_asked_for(server: OipServer) -> None:
    requests = iter([request("echo", "a"), request("nope", "b"), request("echo", "c")])
    stream = server.stub.ModelStreamInfer(requests, metadata=[("triton_grpc_error", "true")], timeout=20)
    assert told(next(stream)) == ("a", 1, True)
    with pytest.raises(grpc.RpcError):
        next(stream)
    assert (stream.code(), stream.details()) == (
        grpc.StatusCode.NOT_FOUND,
        "Request for unknown model: 'nope' is not found",
    )
    eventually(lambda: server.unused, what="nothing is in use")


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({}, [(0, False), (1, False), (2, True)]),
        ({"end": "after"}, [(0, False), (1, False), (2, False)]),
        (
            {"end": "after", "triton_enable_empty_final_response": True},
            [(0, False), (1, False), (2, False), (None, True)],
        ),
    ],
)
def test_decoupled_models_answer_any_number_of_times(
    server: OipServer, own: dict[str, Any], found: list[tuple[int | None, bool]]
) -> None:
    assert exchange(server, request("talk", "q", 3, **own)) == [("q", value, mark) for value, mark in found]


def test_decoupled_models_may_not_answer(server: OipServer) -> None:
    assert exchange(server, request("talk", "q", 0)) == []
    assert exchange(server, request("talk", "q", 0, triton_enable_empty_final_response=True)) == [("q", None, True)]


def test_decoupled_models_may_fail_late(server: OipServer) -> None:
    found = exchange(server, request("talk", "q", -2), request("talk", "r", 1))
    assert [one for one in found if one[0] == "q"] == [
        ("q", 0, False),
        ("q", 1, False),
        ("q", "no more to say", True),
    ]
    assert ("r", 0, True) in found
    assert server.unused


def test_cancelling_the_stream_cancels_its_calls(server: OipServer, talker: Talker) -> None:
    requests: Queue[Any] = Queue()
    stream = server.stub.ModelStreamInfer(iter(requests.get, None))
    requests.put(request("talk", "q", 1000, wait=True))
    assert talker.asked.wait(20)
    assert talker.calls[0].wanted
    stream.cancel()
    eventually(lambda: not talker.calls[0].wanted, what="the call is cancelled")
    talker.go.set()
    eventually(lambda: server.unused, what="nothing is in use")
    assert talker.given == 0
    requests.put(None)


def test_clients_that_do_not_read_stop_the_model(server: OipServer, talker: Talker) -> None:
    requests: Queue[Any] = Queue()
    stream = server.stub.ModelStreamInfer(iter(requests.get, None))
    requests.put(request("talk", "q", 1_000_000, width="100000"))
    assert told(next(stream)) == ("q", 0, False)
    seen: list[int] = []

    def stands_still() -> bool:
        seen.append(talker.given)
        return len(seen) >= 10 and seen[-10] == seen[-1]

    eventually(stands_still, what="the model waits")
    assert talker.given < 500
    assert told(next(stream)) == ("q", 1, False)
    stream.cancel()
    eventually(lambda: server.unused, what="nothing is in use")
    requests.put(None)


def test_streams_are_bounded_and_leave_room_for_other_calls(server: OipServer) -> None:
    queues: list[Queue[Any]] = [Queue() for _ in range(3)]
    streams = [server.stub.ModelStreamInfer(iter(queue.get, None)) for queue in queues]
    for queue, stream in zip(queues, streams, strict=True):
        queue.put(request("echo", "a"))
        assert told(next(stream)) == ("a", 1, True)
    with pytest.raises(grpc.RpcError) as refused:
        exchange(server, request("echo", "b"))
    error: Any = refused.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.stub.ModelInfer(request("echo", "c"), timeout=20).id == "c"
    for queue, stream in zip(queues, streams, strict=True):
        queue.put(None)
        assert list(stream) == []
    assert exchange(server, request("echo", "b")) == [("b", 1, True)]


def test_each_request_of_a_recorded_stream_is_recorded(server: OipServer) -> None:
    exchange(server, request("echo", "a"), request("echo", "b"))
    names = [span.name for span in server.spans.get_finished_spans()]
    assert names.count("inference.execute") == 2


def used(server: OipServer) -> Exchange:
    """A request to a decoupled model, in work."""
    made = Exchange("q")
    loaded = server.loaded["talk", 1]
    assert loaded.acquire()
    made.use(loaded)
    return made


def test_an_outbox_gives_a_client_up_that_never_reads(server: OipServer) -> None:
    outbox = Outbox(1 << 20, answers=2, patience=0.01)
    outbox.begin()
    talk = used(server)
    answer = Answer(outputs={"y": np.zeros(1, np.int32)})
    for _ in range(3):
        outbox.put(talk, answer, False)
    assert not outbox.is_open()
    assert not outbox.room()
    with pytest.raises(Exception, match="the client does not read its answers"):
        outbox.take()
    outbox.put(talk, None, True)
    outbox.close()
    assert server.unused


def test_an_outbox_bounds_what_is_in_work(server: OipServer) -> None:
    outbox = Outbox(8, in_work=1)
    assert outbox.room()
    outbox.begin()
    went_on = threading.Event()

    def wait() -> None:
        if outbox.room():
            went_on.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    one = used(server)
    outbox.put(one, Answer(outputs={"y": np.zeros(4, np.int32)}), True)
    reply = outbox.take()
    assert reply is not None
    assert not went_on.is_set()
    outbox.sent()
    assert went_on.wait(20)
    waiting.join(20)
    outbox.finish()
    assert outbox.take() is None
    assert server.unused


def test_what_waits_when_the_client_goes_is_let_go_of(server: OipServer) -> None:
    outbox = Outbox(1 << 20)
    sent, waiting, coming = used(server), used(server), used(server)
    for _ in (sent, waiting, coming):
        outbox.begin()
    outbox.put(sent, Answer(outputs={}), True)
    outbox.put(waiting, Answer(outputs={}), True)
    assert outbox.take() is not None
    outbox.close()
    outbox.put(coming, Answer(outputs={}), True)
    assert server.loaded["talk", 1]._users == 1
    outbox.sent()
    assert server.unused
