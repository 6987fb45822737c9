"""What is small on the wire stays small in memory, by gRPC and by REST, however often it comes."""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from onnx import TensorProto

from tests.support import bombs, onnxmodels
from tests.support.hostilenames import MODULES
from tests.support.modelfolders import Folder
from tests.support.watched import Watched, watched
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg

MIB = bombs.MIB
MOST = 64 * MIB
"""By which the peak may grow."""
TIMES = 3
Code = grpc.StatusCode
REFUSED = {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED}
SERVICES = ("registry", "artifacts", "parameters", "training", "inference", "gateway")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    def prepare(made: Watched) -> None:
        Folder(made.models).version("m", 1, onnxmodels.scale(2))
        Folder(made.models).version("text", 1, onnxmodels.identity(TensorProto.STRING))

    with watched(tmp_path_factory.mktemp("watched"), *SERVICES, prepare=prepare) as running:
        good(running)
        yield running


def good(process: Watched) -> None:
    """The servers still answer as they should."""
    answer = httpx.post(f"{rest(process)}/v2/models/m/infer", json=GOOD, timeout=20, trust_env=False)
    assert answer.json()["outputs"][0]["data"] == [2, 4], answer.text
    for path in ("models", "artifacts", "jobs"):
        assert httpx.get(f"{rest(process)}/api/v1/{path}", timeout=20, trust_env=False).status_code == 200


GOOD = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


def rest(process: Watched) -> str:
    return f"http://127.0.0.1:{process.ports['management']}"


def code(call: Any) -> Any:
    """Code of a call, and of a stream that of its first answer."""
    try:
        answer = call()
        first = next(answer, None) if hasattr(answer, "__next__") else answer
        return Code.INVALID_ARGUMENT if getattr(first, "error_message", "") else Code.OK
    except grpc.RpcError as raised:
        error: Any = raised
        return error.code()


@pytest.mark.parametrize("service", ["registry", "artifacts", "parameters", "training", "inference"])
def test_a_million_parts_in_any_request(process: Watched, service: str) -> None:
    names = {module.DESCRIPTOR.name: name for module, name in MODULES.items()}
    before = process.reset_peak()
    bad, count = [], 0
    with grpc.insecure_channel(process.address(service)) as channel:
        for method, field, data in bombs.floods():
            if names[method.containing_service.file.name] != service:
                continue
            count += 1
            shape = (
                f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
            )
            stub: Any = getattr(channel, shape)(
                f"/{method.containing_service.full_name}/{method.name}",
                response_deserializer=pb.ModelStreamInferResponse.FromString if "Infer" in method.name else None,
            )
            found = code(lambda: stub(iter([data]) if method.client_streaming else data, timeout=20))  # noqa: B023
            if found not in REFUSED:
                bad.append((method.name, field, found))
    assert not bad
    assert count
    assert process.peak() - before < MOST
    good(process)


@pytest.mark.parametrize("name", bombs.lies())
def test_requests_that_lie(process: Watched, name: str) -> None:
    request = bombs.lies()[name]
    before = process.reset_peak()
    with grpc.insecure_channel(process.address("inference")) as channel:
        stub: Any = pg.GRPCInferenceServiceStub(channel)
        for _ in range(TIMES):
            assert code(lambda: stub.ModelInfer(request, timeout=20)) in REFUSED
            assert code(lambda: stub.ModelStreamInfer(iter([request]), timeout=20)) in REFUSED
    assert process.peak() - before < MOST
    assert process.alive


@pytest.mark.parametrize("service", ["registry", "parameters"])
@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_messages_that_grow(process: Watched, service: str, compression: grpc.Compression) -> None:
    """Compressed, many zeros are small enough to be taken: on asyncio, and on threads."""
    before = process.reset_peak()
    method = {
        "registry": "/tidemill.api.registry.v1.RegistryService/GetModel",
        "parameters": "/tidemill.api.parameters.v1.ParameterService/GetGroup",
    }[service]
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(process.address(service), options=options, compression=compression) as channel:
        stub: Any = channel.unary_unary(method)
        assert code(lambda: stub(bytes(128 * MIB), timeout=30)) is Code.RESOURCE_EXHAUSTED
    assert process.peak() - before < MOST
    good(process)


BODIES = bombs.bodies()


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_grow(process: Watched, name: str) -> None:
    headers, body = BODIES[name]
    before = process.reset_peak()
    with httpx.Client(base_url=rest(process), timeout=30, trust_env=False) as http:
        for _ in range(TIMES):
            answer = http.post(
                "/v2/models/m/infer", content=body, headers={"Content-Type": "application/json", **headers}
            )
            assert 400 <= answer.status_code < 500, answer.text
            assert len(answer.content) < 2048
    assert process.peak() - before < MOST
    assert process.alive


@pytest.mark.parametrize("count", [1, 1000])
def test_a_mebibyte_of_headers(process: Watched, count: int) -> None:
    before = process.reset_peak()
    headers = [(f"X-{number}", "x" * (MIB // count)) for number in range(count)]
    for _ in range(TIMES):
        try:
            answer = httpx.get(f"{rest(process)}/api/v1/models", headers=headers, timeout=20, trust_env=False)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            continue  # the door was shut before all was said
        assert answer.status_code in (400, 431)
    assert process.peak() - before < MOST
    good(process)
