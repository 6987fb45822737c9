"""tritonclient over gRPC: streams, sequences, decoupled models, keepalive."""

import queue
from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.support.clientprograms.checks import Checks, Server, same
from tests.support.clientprograms.triton import fails, grpc_client, one, pair, summed

checks = Checks()


def take(found: "queue.Queue[Any]", count: int) -> list[Any]:
    """So many replies of a stream."""
    return [found.get(timeout=20) for _ in range(count)]


def given(value: int) -> list[Any]:
    """The input of the models of sequences."""
    return [one(triton, "INPUT", np.array([[value]], np.int32), "INT32")]


@checks
def stream(server: Server) -> None:
    """Errors travel in the stream, which stays open."""
    found: queue.Queue[Any] = queue.Queue()
    with grpc_client(server) as client:
        client.start_stream(lambda result, error: found.put(error or result))
        for number in range(20):
            client.async_stream_infer("simple", pair(triton), request_id=str(number))
        client.async_stream_infer("nope", pair(triton), request_id="bad")
        client.async_stream_infer("simple_ensemble", pair(triton), request_id="last")
        replies = take(found, 22)
        client.stop_stream()
    bad = [reply.message() for reply in replies if isinstance(reply, InferenceServerException)]
    same(bad, ["Request for unknown model: 'nope' is not found"])
    good = [reply for reply in replies if not isinstance(reply, InferenceServerException)]
    same({reply.get_response().id for reply in good}, {*(str(number) for number in range(20)), "last"})
    for reply in good:
        if reply.get_response().id != "last":
            summed(reply)


@checks
def sequences_of_a_stream(server: Server) -> None:
    """Two sequences, turn by turn, with numbers and with texts for ids."""
    values = [11, 7, 5, 3, 2, 0, 1]
    for ids in ((1001, 1002), ("first", "second")):
        found: queue.Queue[Any] = queue.Queue()
        with grpc_client(server) as client:
            client.start_stream(lambda result, error, found=found: found.put(error or result))
            for position, value in enumerate(values):
                for sign, sequence in zip((1, -1), ids, strict=True):
                    client.async_stream_infer(
                        "simple_sequence",
                        given(sign * value),
                        request_id=f"{sequence}_{position}",
                        sequence_id=sequence,
                        sequence_start=position == 0,
                        sequence_end=position == len(values) - 1,
                    )
            sums = _by_id(take(found, 2 * len(values)))
            client.stop_stream()
        for sign, sequence in zip((1, -1), ids, strict=True):
            same([sums[f"{sequence}_{at}"] for at in range(7)], (sign * np.cumsum(values)).tolist())


def _by_id(replies: Sequence[Any]) -> dict[str, int]:
    for reply in replies:
        if isinstance(reply, InferenceServerException):
            raise reply
    return {reply.get_response().id: int(reply.as_numpy("OUTPUT")[0, 0]) for reply in replies}


@checks
def sequences_of_single_requests(server: Server) -> None:
    """Over two connections, which may end in two processes of the server."""
    with grpc_client(server) as first, grpc_client(server) as second:
        for at, sequence in enumerate((2001, "2002")):
            found = [
                int(
                    client.infer(
                        "simple_sequence",
                        given(value + at),
                        sequence_id=sequence,
                        sequence_start=value == 1,
                        sequence_end=value == 4,
                    ).as_numpy("OUTPUT")[0, 0]
                )
                for value, client in ((1, first), (2, second), (3, first), (4, second))
            ]
            same(found, np.cumsum(np.arange(1, 5) + at).tolist())
        told = [
            first.infer("simple_told", given(5), sequence_id=7, sequence_start=start, sequence_end=end)
            .as_numpy("OUTPUT")[0]
            .tolist()
            for start, end in ((True, False), (False, False), (False, True))
        ]
        same(told, [[5, 1, 0], [5, 0, 0], [5, 0, 1]])
        fails(
            "INVALID_ARGUMENT",
            "inference request for sequence 99 to model 'simple_sequence' must specify the START flag on the first "
            "request of the sequence",
            lambda: first.infer("simple_sequence", given(1), sequence_id=99),
        )
        fails(
            "INVALID_ARGUMENT",
            "inference request to model 'simple_sequence' must specify a non-zero or non-empty correlation ID",
            lambda: first.infer("simple_sequence", given(1)),
        )


def repeat(values: Sequence[int], delay: int = 0) -> list[Any]:
    """Inputs of the model that answers once for each value."""
    count = len(values)
    return [
        one(triton, "IN", np.array(values, np.int32), "INT32"),
        one(triton, "DELAY", np.full(count, delay, np.uint32), "UINT32"),
        one(triton, "WAIT", np.zeros(1, np.uint32), "UINT32"),
    ]


@checks
def decoupled(server: Server) -> None:
    """Several requests at a time, each with as many answers as it has values; the last of them says so, if asked to."""
    wanted = {"a": [4, 2, 0, 1], "b": [], "c": [7]}
    for empty in (False, True):
        found: queue.Queue[Any] = queue.Queue()
        with grpc_client(server) as client:
            client.start_stream(lambda result, error, found=found: found.put(error or result))
            for name, values in wanted.items():
                client.async_stream_infer(
                    "repeat_int32", repeat(values), request_id=name, enable_empty_final_response=empty
                )
            answers: dict[str, list[int]] = {name: [] for name in wanted}
            finals: list[str] = []
            for result in take(found, 5 + 3 * empty):
                response = result.get_response()
                if result.as_numpy("OUT") is not None:
                    same(int(result.as_numpy("IDX")[0]), len(answers[response.id]))
                    answers[response.id].append(int(result.as_numpy("OUT")[0]))
                if response.parameters["triton_final_response"].bool_param:
                    finals.append(response.id)
            client.stop_stream()
        same(answers, wanted)
        if empty:
            same(sorted(finals), ["a", "b", "c"])


@checks
def a_cancelled_stream(server: Server) -> None:
    found: queue.Queue[Any] = queue.Queue()
    with grpc_client(server) as client:
        client.start_stream(lambda result, error: found.put(error or result))
        client.async_stream_infer("repeat_int32", repeat(range(1000), delay=20))
        take(found, 1)
        client.stop_stream(cancel_requests=True)
        replies: list[Any] = []
        while not replies or not isinstance(replies[-1], InferenceServerException):
            replies += take(found, 1)
        same(replies[-1].status(), "StatusCode.CANCELLED")
        client.start_stream(lambda result, error: found.put(error or result))
        client.async_stream_infer("repeat_int32", repeat([5]))
        same(int(take(found, 1)[0].as_numpy("OUT")[0]), 5)
        client.stop_stream()


@checks
def a_stream_with_a_deadline(server: Server) -> None:
    found: queue.Queue[Any] = queue.Queue()
    with grpc_client(server) as client:
        client.start_stream(lambda result, error: found.put(error or result), stream_timeout=0.3)
        client.async_stream_infer("repeat_int32", repeat(range(1000), delay=20))
        replies = take(found, 1)
        while not isinstance(replies[-1], InferenceServerException):
            replies += take(found, 1)
        same(replies[-1].status(), "StatusCode.DEADLINE_EXCEEDED")
        client.stop_stream()


@checks
def errors_that_end_the_stream(server: Server) -> None:
    """With the header `triton_grpc_error` the first error is the stream's own status."""
    found: queue.Queue[Any] = queue.Queue()
    with grpc_client(server) as client:
        client.start_stream(lambda result, error: found.put(error or result), headers={"triton_grpc_error": "true"})
        client.async_stream_infer("nope", pair(triton))
        (error,) = take(found, 1)
        same(error.status(), "StatusCode.NOT_FOUND")
        client.stop_stream()


@checks
def compressed_stream(server: Server) -> None:
    found: queue.Queue[Any] = queue.Queue()
    with grpc_client(server) as client:
        client.start_stream(lambda result, error: found.put(error or result), compression_algorithm="gzip")
        client.async_stream_infer("simple", pair(triton))
        summed(take(found, 1)[0])
        client.stop_stream()


@checks.aside
def keepalive(server: Server) -> None:
    """Pings without any call, as often as gRPC's own library lets a client send them, end no connection."""
    every = 1000
    options = triton.KeepAliveOptions(
        keepalive_time_ms=every,
        keepalive_timeout_ms=10000,
        keepalive_permit_without_calls=True,
        http2_max_pings_without_data=0,
    )
    with grpc_client(server, keepalive_options=options) as client:
        same(client.is_server_live(), True)
        states: queue.Queue[str] = queue.Queue()
        client._channel.subscribe(lambda state: states.put(state.name))
        same(states.get(timeout=20), "READY")
        try:
            state = states.get(timeout=5.5 * every / 1000)
        except queue.Empty:
            same(client.is_server_live(), True)
        else:
            raise AssertionError(f"the connection is {state}")
