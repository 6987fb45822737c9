"""Connections that open streams only to reset them, or never end their headers: they hurt nobody else."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.support import onnxmodels
from tests.support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Connection,
    call,
    fields,
    frame,
    reset,
)
from tests.support.modelfolders import Folder
from tests.support.watched import Watched, watched
from tidemill.api.compat.inference import service_pb2 as ipb
from tidemill.api.compat.inference import service_pb2_grpc as ipg
from tidemill.api.registry.v1 import registry_pb2 as rpb
from tidemill.api.registry.v1 import registry_pb2_grpc as rpg

MIB = 1 << 20
RESETS = 5000
BATCH = 50
METHODS = {
    "inference": "/inference.GRPCInferenceService/ModelInfer",
    "registry": "/tidemill.api.registry.v1.RegistryService/ListModels",
}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    def prepare(made: Watched) -> None:
        Folder(made.models).version("m", 1, onnxmodels.scale(2))

    with watched(tmp_path_factory.mktemp("watched"), "registry", "inference", prepare=prepare) as running:
        yield running


class Client:
    """Somebody who only wants to be served."""

    def __init__(self, process: Watched, name: str) -> None:
        self._channel = grpc.insecure_channel(process.address(name))
        self._name = name
        self._inference: Any = ipg.GRPCInferenceServiceStub(self._channel)
        self._registry: Any = rpg.RegistryServiceStub(self._channel)

    def call(self) -> float:
        """Seconds that one call takes, which succeeds."""
        begun = time.monotonic()
        if self._name == "inference":
            request: Any = ipb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(8)])
            request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
            self._inference.ModelInfer(request, timeout=20)
        else:
            self._registry.ListModels(rpb.ListModelsRequest(), timeout=20)
        return time.monotonic() - begun

    def close(self) -> None:
        self._channel.close()


def rapid(port: int, path: str, count: int) -> bool:
    """Open and reset so many streams on one connection; whether it is still open then."""
    with Connection(port) as connection:
        for first in range(1, 2 * count, 2 * BATCH):
            streams = range(first, first + 2 * BATCH, 2)
            if not connection.send(b"".join(call(stream, path) + reset(stream) for stream in streams)):
                return False
        return connection.alive()


@pytest.mark.parametrize("name", METHODS)
def test_calls_by_hand_are_calls(process: Watched, name: str) -> None:
    """Else the server would only see connections that are broken at once."""
    with Connection(process.ports[name]) as connection:
        connection.send(call(1, METHODS[name]) + frame(DATA, END_STREAM, 1, bytes(5)))
        answered = next(stream for kind, _, stream, _ in connection.frames() if kind == HEADERS)
        assert answered == 1
        assert connection.alive()


@pytest.mark.parametrize("name", METHODS)
def test_streams_that_are_reset_at_once(process: Watched, name: str) -> None:
    client = Client(process, name)
    port = process.ports[name]
    rapid(port, METHODS[name], 500)  # what every server keeps once it has served anybody
    for _ in range(20):
        client.call()
    before = process.reset_peak()
    done = threading.Event()
    open_at_the_end = []

    def attack() -> None:
        try:
            open_at_the_end.append(rapid(port, METHODS[name], RESETS))
        finally:
            done.set()

    attacker = threading.Thread(target=attack)
    attacker.start()
    served = 0
    while not done.is_set() or not served:
        client.call()
        served += 1
    attacker.join()
    assert open_at_the_end
    client.call()
    client.close()
    assert process.peak() - before < 32 * MIB
    assert process.alive


@pytest.mark.parametrize("name", METHODS)
def test_headers_without_an_end(process: Watched, name: str) -> None:
    """A mebibyte in one field, or in frames without end: the connection or the stream is ended, and nothing is kept."""
    client = Client(process, name)
    client.call()
    before = process.reset_peak()
    for size, frames in ((16_000, 64), (1, 20_000), (0, 20_000)):
        with Connection(process.ports[name]) as connection:
            start = fields({":method": "POST", ":scheme": "http", ":path": METHODS[name], ":authority": "x"})
            connection.send(frame(HEADERS, 0, 1, start))
            more = frame(CONTINUATION, 0, 1, fields({"a": "x" * (size - 6)}) if size > 6 else b"\x82" * size)
            for _ in range(0, frames, 64):
                if not connection.send(more * 64):
                    break
            else:
                connection.send(frame(CONTINUATION, END_HEADERS, 1))
                connection.alive()
        client.call()
    client.close()
    assert process.peak() - before < 32 * MIB
    assert process.alive


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("count", [1, 1000])
def test_a_mebibyte_of_metadata(process: Watched, name: str, count: int) -> None:
    client = Client(process, name)
    client.call()
    before = process.reset_peak()
    with grpc.insecure_channel(process.address(name), options=[("grpc.max_metadata_size", 4 * MIB)]) as channel:
        stub: Any = channel.unary_unary(METHODS[name])
        metadata = [(f"x{number}", "x" * (MIB // count)) for number in range(count)]
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as raised:
                stub(b"", metadata=metadata, timeout=20)
            error: Any = raised.value
            assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT), error
            client.call()
    client.close()
    assert process.peak() - before < 32 * MIB
