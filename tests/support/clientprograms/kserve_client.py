"""The KServe SDK's own clients, over gRPC and REST: `kserve_client host:port host:port repository [check...]`."""

from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.protocol.infer_type import RequestedOutput

from tests.support.clientprograms.checks import Checks, Server, same

checks = Checks()
RAMP = np.arange(16, dtype=np.int32).reshape(1, 16)
ONES = np.ones((1, 16), np.int32)


def simple(binary: bool, **more: Any) -> Any:
    """A request for the model `simple`: raw, or with typed elements."""
    inputs = []
    for name, array in (("INPUT0", RAMP), ("INPUT1", ONES)):
        tensor = InferInput(name, list(array.shape), "INT32")
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return InferRequest(model_name="simple", infer_inputs=inputs, request_id="17", **more)


def summed(response: Any) -> None:
    """Raises AssertionError unless a response has the sum and the difference."""
    found = {output.name: output.as_numpy() for output in response.outputs}
    same(found["OUTPUT0"].tolist(), (RAMP + ONES).tolist())
    same(found["OUTPUT1"].tolist(), (RAMP - ONES).tolist())
    same([response.id, response.model_name], ["17", "simple"])


@checks
async def grpc_health(server: Server) -> None:
    async with InferenceGRPCClient(server.grpc) as client:
        same([await client.is_server_live(), await client.is_server_ready()], [True, True])
        same([await client.is_model_ready(name) for name in ("simple", "late", "nope")], [True, False, False])


@checks
async def grpc_raw(server: Server) -> None:
    async with InferenceGRPCClient(server.grpc) as client:
        summed(await client.infer(simple(binary=True)))
        summed(await client.infer(simple(binary=True), timeout=20, headers=(("x-own", "1"),)))


@checks
async def grpc_typed(server: Server) -> None:
    async with InferenceGRPCClient(server.grpc) as client:
        summed(await client.infer(simple(binary=False)))


@checks
async def grpc_typed_texts(server: Server) -> None:
    words = np.array([["ab", "grün", ""]], dtype=np.object_)
    async with InferenceGRPCClient(server.grpc) as client:
        for binary in (True, False):
            tensor = InferInput("INPUT0", [1, 3], "BYTES")
            tensor.set_data_from_numpy(words, binary_data=binary)
            response = await client.infer(InferRequest("simple_identity", [tensor]))
            found = [
                text.decode() if isinstance(text, bytes) else text
                for text in np.asarray(response.outputs[0].as_numpy()).ravel()
            ]
            same(found, words[0].tolist())


@checks
async def grpc_failures(server: Server) -> None:
    async with InferenceGRPCClient(server.grpc) as client:
        request = simple(binary=True)
        request.model_name = "nope"
        try:
            await client.infer(request)
        except grpc.RpcError as error:
            same([error.code().name, error.details()], ["NOT_FOUND", "Request for unknown model: 'nope' is not found"])
        else:
            raise AssertionError("no error")


@checks
async def grpc_stubs(server: Server) -> None:
    """What the client has no method for, through the SDK's own messages."""
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        same((await stub.ServerMetadata(pb.ServerMetadataRequest())).name, "triton")
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="simple"))
        same(next([t.name, t.datatype, list(t.shape)] for t in metadata.inputs), ["INPUT0", "INT32", [-1, 16]])
        loaded = await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="late"))
        same([loaded.model_name, loaded.isLoaded], ["late", True])
        same((await stub.ModelReady(pb.ModelReadyRequest(name="late"))).ready, True)
        unloaded = await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="late"))
        same([unloaded.model_name, unloaded.isUnloaded], ["late", True])
        same((await stub.ModelReady(pb.ModelReadyRequest(name="late"))).ready, False)


def rest() -> Any:
    """A client over REST."""
    return InferenceRESTClient(RESTConfig(protocol="v2", retries=1))


@checks
async def rest_health(server: Server) -> None:
    base = f"http://{server.http}"
    async with rest() as client:
        same([await client.is_server_live(base), await client.is_server_ready(base)], [True, True])
        same([await client.is_model_ready(base, name) for name in ("simple", "late", "nope")], [True, False, False])


@checks
async def rest_infer(server: Server) -> None:
    """Elements as JSON and as bytes, there and back."""
    async with rest() as client:
        for binary in (True, False):
            for parameters in (None, {"binary_data_output": True}):
                request = simple(binary=binary, parameters=parameters)
                summed(await client.infer(f"http://{server.http}", request, model_name="simple", headers={}))
        some = simple(binary=True, request_outputs=[RequestedOutput("OUTPUT1", {"binary_data": True})])
        response = await client.infer(f"http://{server.http}", some, model_name="simple", headers={})
        same([output.name for output in response.outputs], ["OUTPUT1"])
        same(response.outputs[0].as_numpy().tolist(), (RAMP - ONES).tolist())
        plain = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}]}
        response = await client.infer(f"http://{server.http}", plain, model_name="colours")
        same(response.outputs[0].as_numpy().tolist(), [[0.5] * 3])


@checks
async def rest_failures(server: Server) -> None:
    async with rest() as client:
        try:
            await client.infer(f"http://{server.http}", simple(binary=True), model_name="nope", headers={})
        except httpx.HTTPStatusError as error:
            same(error.response.status_code, 404)
            same("Request for unknown model: 'nope' is not found" in str(error), True)
        else:
            raise AssertionError("no error")


if __name__ == "__main__":
    checks.main()
