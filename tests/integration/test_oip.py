"""The Open Inference Protocol on the wire: codes and texts that clients depend on, every way to send a tensor."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto

from tests.support import onnxmodels
from tests.support.inference import Platform, Serving
from tests.support.wait import until
from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.clients.inference import InferenceClient
from tidemill.inference.protocols.oip.servicer import SERVICE
from tidemill.rpc.caller import Caller
from tidemill.rpc.methods import methods
from tidemill.tensors.dtypes import DataType

pytestmark = pytest.mark.asyncio(loop_scope="module")

KINDS = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    async with Platform(tmp_path_factory.mktemp("oip")) as platform:
        models = {"simple": onnxmodels.sums(), "shaper": onnxmodels.reshape(), "blowup": onnxmodels.blowup()}
        models |= {f"same_{name.lower()}": onnxmodels.identity(kind) for name, kind in KINDS.items()}
        for name, data in models.items():
            await platform.publish(name, data)
        await platform.registry.create_model("empty")
        async with platform.inference(max_message_bytes=1 << 20) as running:
            for name in models:
                await running.serves(name)
            await until(lambda: has_model(running, "empty"))
            yield running


async def has_model(running: Serving, name: str) -> bool:
    return f"{name}/" in await running.states()


A = np.arange(8, dtype=np.int32)
RAW = A.tobytes()


def simple(**changes: Any) -> pb.ModelInferRequest:
    """A good request to the model `simple`, with changes."""
    request: Any = pb.ModelInferRequest(model_name="simple", raw_input_contents=[RAW, RAW])
    for name in ("a", "b"):
        request.inputs.add(name=name, datatype="INT32", shape=[2, 4])
    for field, value in changes.items():
        request.ClearField(field)
        request.MergeFrom(pb.ModelInferRequest(**{field: value}))
    good: pb.ModelInferRequest = request
    return good


def tensor(name: str, datatype: str = "INT32", shape: tuple[int, ...] = (2, 4), **others: Any) -> Any:
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, **others)


def typed(**arms: Any) -> pb.InferTensorContents:
    return pb.InferTensorContents(**arms)


def parameter(name: str, **value: Any) -> dict[str, pb.InferParameter]:
    return {name: pb.InferParameter(**value)}


def output(name: str, **others: Any) -> Any:
    return pb.ModelInferRequest.InferRequestedOutputTensor(name=name, **others)


B = tensor("b")
REGION = parameter("shared_memory_region", string_param="r") | parameter("shared_memory_byte_size", int64_param=32)


async def test_good_request(serving: Serving) -> None:
    response = await serving.client.infer_message(simple(id="x" * 5, outputs=[output("difference"), output("total")]))
    assert (response.model_name, response.model_version, response.id) == ("simple", "1", "xxxxx")
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("difference", "INT32", [2, 4]),
        ("total", "INT32", [2, 4]),
    ]
    assert not any(o.HasField("contents") for o in response.outputs)
    assert list(response.raw_output_contents) == [bytes(32), (2 * A).tobytes()]


async def test_all_outputs_when_none_is_named(serving: Serving) -> None:
    response = await serving.client.infer_message(simple())
    assert [o.name for o in response.outputs] == ["total", "difference"]


async def test_inputs_may_come_in_any_order(serving: Serving) -> None:
    request = simple(inputs=[tensor("b"), tensor("a")], raw_input_contents=[bytes(32), RAW])
    response = await serving.client.infer_message(request)
    assert response.raw_output_contents[1] == RAW


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"model_name": "nope"}, errors.NotFound, "Request for unknown model: 'nope' is not found"),
        ({"model_name": ""}, errors.NotFound, "Request for unknown model: '' is not found"),
        ({"model_name": "empty"}, errors.NotFound, "Request for unknown model: 'empty' has no available versions"),
        (
            {"model_version": "99"},
            errors.NotFound,
            "Request for unknown model: 'simple' version 99 is not found",
        ),
        (
            {"model_version": "x"},
            errors.Invalid,
            "failed to get model version from specified version string 'x' (details: stol), "
            "version should be an integral value > 0",
        ),
        (
            {"inputs": [], "raw_input_contents": []},
            errors.Invalid,
            "expected 2 inputs but got 0 inputs for model 'simple'. Got input(s) [], but missing required input(s) "
            "['a','b']. Please provide all required input(s).",
        ),
        (
            {"inputs": [tensor("a"), tensor("z")]},
            errors.Invalid,
            "unexpected inference input 'z' for model 'simple'",
        ),
        ({"inputs": [tensor("a"), tensor("a")]}, errors.Invalid, "input 'a' already exists in request"),
        (
            {"inputs": [tensor("a", "FP32"), B]},
            errors.Invalid,
            "inference input 'a' data-type is 'FP32', but model 'simple' expects 'INT32'",
        ),
        (
            {"inputs": [tensor("a", shape=(1, 8)), B]},
            errors.Invalid,
            "unexpected shape for input 'a' for model 'simple'. Expected [-1,4], got [1,8]",
        ),
        (
            {"raw_input_contents": [RAW + bytes(8), RAW]},
            errors.Invalid,
            "input byte size mismatch for input 'a' for model 'simple'. Expected 32, got 40",
        ),
        (
            {"raw_input_contents": [RAW]},
            errors.Invalid,
            "expected 2 entries in raw_input_contents for model 'simple', one for each input, got 1",
        ),
        (
            {"inputs": [tensor("a", contents=typed(int_contents=A.tolist())), B]},
            errors.Invalid,
            "contents field must not be specified when using raw_input_contents for 'a' for model 'simple'",
        ),
        (
            {"inputs": [tensor("a", contents=typed(int_contents=[1] * 8)), B], "raw_input_contents": []},
            errors.Invalid,
            "input byte size mismatch for input 'b' for model 'simple'. Expected 32, got 0",
        ),
        (
            {"inputs": [tensor("a", contents=typed(fp32_contents=[1] * 8)), B], "raw_input_contents": []},
            errors.Invalid,
            "fp32_contents does not hold elements of INT32: use int_contents for input 'a' for model 'simple'",
        ),
        (
            {"inputs": [tensor("a", "FP16", contents=typed()), B], "raw_input_contents": []},
            errors.Invalid,
            "input 'a' for model 'simple': 'FP16' travels in raw_input_contents only",
        ),
        (
            {"inputs": [tensor("a", "COMPLEX64", contents=typed()), B], "raw_input_contents": []},
            errors.Invalid,
            "input 'a' for model 'simple': 'COMPLEX64' is no datatype",
        ),
        ({"outputs": [output("q")]}, errors.Invalid, "unexpected inference output 'q' for model 'simple'"),
        (
            {"outputs": [output("total"), output("total")]},
            errors.Invalid,
            "output 'total' already exists in request",
        ),
        ({"outputs": [output("total")] * 1000}, errors.Invalid, "a request may have at most 256 outputs, not 1000"),
        (
            {"inputs": [B] * 1000, "raw_input_contents": []},
            errors.Invalid,
            "a request may have at most 256 inputs, not 1000",
        ),
        (
            {"outputs": [output("total", parameters=parameter("classification", int64_param=0))]},
            errors.Invalid,
            "'classification' parameter must be at least 1 for output 'total'",
        ),
        (
            {"outputs": [output("total", parameters=parameter("classification", string_param="3"))]},
            errors.Invalid,
            "invalid value type for 'classification' parameter, expected int64_param or uint64_param.",
        ),
        (
            {"inputs": [tensor("a", parameters=REGION), B], "raw_input_contents": [RAW]},
            errors.Unimplemented,
            "shared memory is not enabled on this server: start it with --allow-client-shm",
        ),
        (
            {"inputs": [tensor("a", parameters=parameter("shared_memory_region", string_param="r")), B]},
            errors.Invalid,
            "'shared_memory_byte_size' parameter must be given for 'a'",
        ),
        (
            {"parameters": parameter("sequence_id", bool_param=True)},
            errors.Invalid,
            "invalid value type for 'sequence_id' parameter, expected int64_param, uint64_param or string_param.",
        ),
        (
            {"parameters": parameter("sequence_id", int64_param=-1)},
            errors.Invalid,
            "invalid value for 'sequence_id' parameter: must not be negative",
        ),
        (
            {"parameters": parameter("sequence_id", string_param="x" * 129)},
            errors.Invalid,
            "sequence_id: a text may have at most 128 characters",
        ),
        *(
            (
                {"parameters": parameter(name, string_param="1")},
                errors.Invalid,
                f"invalid value type for '{name}' parameter, expected bool_param.",
            )
            for name in ("sequence_start", "sequence_end", "triton_enable_empty_final_response")
        ),
        *(
            (
                {"parameters": parameter(name, double_param=1)},
                errors.Invalid,
                f"invalid value type for '{name}' parameter, expected int64_param or uint64_param.",
            )
            for name in ("priority", "timeout")
        ),
        (
            {"parameters": parameter("timeout", int64_param=-5)},
            errors.Invalid,
            "invalid value for 'timeout' parameter: must not be negative",
        ),
        (
            {"parameters": parameter("triton_future", bool_param=True)},
            errors.Invalid,
            "parameter 'triton_future': names that start with 'triton_' are reserved",
        ),
        (
            {"parameters": {"mine": pb.InferParameter()}},
            errors.Invalid,
            "invalid value type for 'mine' parameter, expected a value.",
        ),
        (
            {"parameters": {str(number): pb.InferParameter(bool_param=True) for number in range(257)}},
            errors.Invalid,
            "a request may have at most 256 parameters",
        ),
        ({"id": "x" * 1025}, errors.Invalid, "id: must have at most 1024 characters"),
    ],
)
async def test_bad_requests(
    serving: Serving, changes: dict[str, Any], kind: type[errors.TidemillError], text: str
) -> None:
    with pytest.raises(kind) as refused:
        await serving.client.infer_message(simple(**changes))
    assert refused.value.message == text


@pytest.mark.parametrize(
    "shape",
    [(16, 2**60 + 2), (-1, 4), (2**31, 2**31, 2**31), (2**62, 4), (0, 2**31, 2**31, 2**31), (1,) * 9, (2**28, 4)],
)
@pytest.mark.parametrize("way", ["raw", "typed"])
async def test_hostile_shapes(serving: Serving, shape: tuple[int, ...], way: str) -> None:
    contents = typed(int_contents=A.tolist()) if way == "typed" else None
    inputs = [tensor("a", shape=shape, contents=contents), tensor("b", contents=contents)]
    raw = [RAW, RAW] if way == "raw" else []
    with pytest.raises(errors.Invalid):
        await serving.client.infer_message(simple(inputs=inputs, raw_input_contents=raw))
    assert (await serving.client.infer_message(simple())).outputs


TYPED: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-32768, 32767]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.5, -1e30]),
    "FP64": ("fp64_contents", [0.1, -1e300]),
    "BYTES": ("bytes_contents", [b"", "grüß\0dich".encode()]),
}


@pytest.mark.parametrize("datatype", TYPED)
async def test_typed_elements_of_every_datatype(serving: Serving, datatype: str) -> None:
    arm, elements = TYPED[datatype]
    request = pb.ModelInferRequest(model_name=f"same_{datatype.lower()}")
    request.inputs.add(name="x", datatype=datatype, shape=[1, 2], contents=typed(**{arm: elements}))
    response = await serving.client.infer_message(request)
    assert response.outputs[0].datatype == datatype
    if datatype == "BYTES":
        wanted = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    else:
        wanted = np.array(elements, DataType[datatype].numpy).tobytes()
    assert list(response.raw_output_contents) == [wanted]


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "UINT8", "UINT16"])
async def test_typed_elements_out_of_range(serving: Serving, datatype: str) -> None:
    request = pb.ModelInferRequest(model_name=f"same_{datatype.lower()}")
    arm = "uint_contents" if datatype.startswith("U") else "int_contents"
    request.inputs.add(name="x", datatype=datatype, shape=[1, 2], contents=typed(**{arm: [0, 70000]}))
    with pytest.raises(errors.Invalid, match="outside of"):
        await serving.client.infer_message(request)


@pytest.mark.parametrize("datatype", KINDS)
async def test_raw_elements_of_every_datatype(serving: Serving, datatype: str) -> None:
    size = DataType[datatype].size
    raw = b"\1\0\0\0a\2\0\0\0bc" if datatype == "BYTES" else bytes([1] + [0] * (size - 1)) * 2
    request = pb.ModelInferRequest(model_name=f"same_{datatype.lower()}", raw_input_contents=[raw])
    request.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    response = await serving.client.infer_message(request)
    assert list(response.raw_output_contents) == [raw]


async def test_bytes_that_the_model_cannot_take(serving: Serving) -> None:
    request = pb.ModelInferRequest(model_name="same_bytes", raw_input_contents=[b"\1\0\0\0\xff\0\0\0\0"])
    request.inputs.add(name="x", datatype="BYTES", shape=[1, 2])
    with pytest.raises(errors.Invalid, match="UTF-8"):
        await serving.client.infer_message(request)


async def test_client_sends_and_gives_arrays(serving: Serving) -> None:
    a, b = np.full((2, 4), 7, np.int32), np.full((2, 4), 2, np.int32)
    result = await serving.client.infer("simple", {"a": a, "b": b}, outputs=["difference"], version="champion", id="q")
    assert (result.model_name, result.model_version, result.id) == ("simple", "1", "q")
    assert result.outputs.keys() == {"difference"}
    assert (result.outputs["difference"] == 5).all()
    for texts in (np.array([["grün", ""]]), np.array([["grün".encode(), b""]], dtype=object)):
        answer = await serving.client.infer("same_bytes", {"x": texts})
        assert answer.outputs["y"].tolist() == [["grün".encode(), b""]]
    with pytest.raises(errors.Invalid, match="complex128"):
        await serving.client.infer("simple", {"a": np.zeros((1, 4), complex)})


async def test_batch_without_rows(serving: Serving) -> None:
    result = await serving.client.infer("same_fp32", {"x": np.empty((0, 2), np.float32)})
    assert result.outputs["y"].shape == (0, 2)


async def test_parameters_are_tolerated(serving: Serving) -> None:
    request = simple()
    request.parameters["priority"].uint64_param = 1
    request.parameters["sequence_id"].string_param = "s"
    request.parameters["triton_enable_empty_final_response"].bool_param = False
    request.inputs[0].parameters["binary_data_size"].int64_param = 32
    request.outputs.add(name="total").parameters["binary_data"].bool_param = True
    assert len((await serving.client.infer_message(request)).raw_output_contents) == 1


async def test_model_that_fails_says_so_without_its_insides(serving: Serving) -> None:
    inputs = {"x": np.zeros(6, np.float32), "shape": np.array([4, 4])}
    with pytest.raises(errors.Internal) as failed:
        await serving.client.infer("shaper", inputs)
    assert failed.value.message == ("model 'shaper' version 1 failed on these inputs; the server's log says why")


async def test_requests_and_answers_are_bounded(serving: Serving) -> None:
    big = np.zeros((1 << 18, 2), np.float32)
    with pytest.raises(errors.Exhausted):
        await serving.client.infer("same_fp32", {"x": big})
    with pytest.raises(errors.Exhausted, match="4000000 bytes"):
        await serving.client.infer("blowup", {"shape": np.array([1_000_000])})
    half = big[: 1 << 16]
    assert (await serving.client.infer("same_fp32", {"x": half})).outputs["y"].shape == half.shape


async def test_server_and_model_questions(serving: Serving) -> None:
    client = serving.client
    assert await client.live()
    assert await client.ready()
    assert await client.model_ready("simple")
    assert await client.model_ready("simple", "champion")
    for model, version in [("nope", ""), ("simple", "2"), ("simple", "x"), ("empty", "")]:
        assert not await client.model_ready(model, version)
    server = await client.server_metadata()
    assert (server.name, server.extensions[0]) == ("tidemill", "classification")
    assert {"binary_tensor_data", "parameters", "statistics"} <= set(server.extensions)
    assert not [name for name in server.extensions if "memory" in name or "repository" in name]
    assert server.version
    metadata = await client.metadata("simple")
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("simple", ["1"], "onnxruntime_onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("a", "INT32", [-1, 4]),
        ("b", "INT32", [-1, 4]),
    ]
    assert [t.name for t in metadata.outputs] == ["total", "difference"]
    with pytest.raises(errors.NotFound, match="Request for unknown model: 'nope' is not found"):
        await client.metadata("nope")
    index = {entry.name: (entry.version, entry.state) for entry in await client.index()}
    assert index["simple"] == ("1", "READY")
    assert index["empty"] == ("", "")
    assert "empty" not in {entry.name for entry in await client.index(only_ready=True)}


async def test_every_method_is_served(serving: Serving) -> None:
    """An empty request is answered, or refused by what it says: for no method by its name."""
    refused = {}
    channel: Any
    async with grpc.aio.insecure_channel(serving.app.address) as channel:
        for method in methods(SERVICE):
            codec = {
                "request_serializer": method.request.SerializeToString,
                "response_deserializer": method.response.FromString,
            }
            try:
                if method.server_streaming:
                    stream = channel.stream_stream(method.path, **codec)()
                    await stream.done_writing()
                    assert await stream.read() is grpc.aio.EOF
                else:
                    await channel.unary_unary(method.path, **codec)(method.request())
            except grpc.aio.AioRpcError as error:
                refused[method.name] = error.code().name
    assert refused == {
        "ModelMetadata": "NOT_FOUND",
        "ModelInfer": "NOT_FOUND",
        "ModelConfig": "NOT_FOUND",
        "RepositoryModelLoad": "UNAVAILABLE",
        "RepositoryModelUnload": "UNAVAILABLE",
        "SystemSharedMemoryRegister": "UNIMPLEMENTED",
        "CudaSharedMemoryRegister": "UNIMPLEMENTED",
    }


async def test_both_ports_serve_the_same(serving: Serving) -> None:
    assert len(set(serving.addresses)) == 2
    for address in serving.addresses:
        async with InferenceClient(address) as client:
            assert (await client.infer_message(simple())).model_version == "1"
            assert len(await client.index()) == len(KINDS) + 4


async def test_health(serving: Serving) -> None:
    async with grpc.aio.insecure_channel(serving.app.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService", "triton"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests(serving: Serving, compression: grpc.Compression) -> None:
    caller = Caller(serving.app.address, [SERVICE])
    method = next(method for method in methods(SERVICE) if method.name == "ModelInfer")
    call: Any = caller.channel.unary_unary(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )
    answer: Message = await call(simple(), compression=compression)
    assert isinstance(answer, pb.ModelInferResponse)
    await caller.close()
