"""A script for the tritonclient environment: uses a server at an address as its users do, and tells what it saw."""

import asyncio
import json
import sys
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException


def tensors(module: Any) -> list[Any]:
    """Inputs of the model `simple`."""
    a, b = module.InferInput("a", [1, 4], "INT32"), module.InferInput("b", [1, 4], "INT32")
    a.set_data_from_numpy(np.array([[1, 2, 3, 4]], np.int32))
    b.set_data_from_numpy(np.array([[1, 1, 1, 1]], np.int32))
    return [a, b]


def typed() -> Any:
    """The same as a request with typed elements."""
    request = triton.service_pb2.ModelInferRequest(model_name="simple")
    for name, elements in (("a", [1, 2, 3, 4]), ("b", [1, 1, 1, 1])):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=[1, 4])
        tensor.contents.int_contents.extend(elements)
    return request


def failure(call: Any) -> list[str]:
    """Status and text of a call that fails."""
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["OK", ""]


def session(address: str) -> dict[str, Any]:
    """What a synchronous client sees."""
    seen: dict[str, Any] = {}
    with triton.InferenceServerClient(address) as client:
        seen["live"], seen["ready"] = client.is_server_live(), client.is_server_ready()
        seen["models_ready"] = [
            client.is_model_ready(*asked) for asked in (("simple",), ("simple", "1"), ("simple", "9"), ("nope",))
        ]
        seen["server"] = client.get_server_metadata(as_json=True)["name"]
        metadata = client.get_model_metadata("simple")
        seen["metadata"] = [metadata.platform, [[t.name, t.datatype, list(t.shape)] for t in metadata.inputs]]
        outputs = [triton.InferRequestedOutput("difference"), triton.InferRequestedOutput("total")]
        result = client.infer("simple", tensors(triton), request_id="42", outputs=outputs, client_timeout=20)
        answer = result.get_response()
        seen["infer"] = [answer.id, answer.model_version, [o.name for o in answer.outputs]]
        seen["total"] = result.as_numpy("total").tolist()
        seen["alias"] = client.infer("simple", tensors(triton), "champion").get_response().model_version
        compressed = client.infer("simple", tensors(triton), compression_algorithm="gzip")
        seen["compressed"] = compressed.as_numpy("total").tolist()
        seen["typed"] = triton.InferResult(client._client_stub.ModelInfer(typed())).as_numpy("total").tolist()
        texts = triton.InferInput("x", [1, 2], "BYTES")
        texts.set_data_from_numpy(np.array([["grün".encode(), b""]], dtype=np.object_))
        seen["bytes"] = [element.decode() for element in client.infer("text", [texts]).as_numpy("y").ravel()]
        flags = triton.InferInput("x", [1, 2], "BOOL")
        flags.set_data_from_numpy(np.array([[True, False]]))
        seen["bool"] = client.infer("flags", [flags]).as_numpy("y").tolist()
        halves = triton.InferInput("x", [1, 2], "BF16")
        halves.set_data_from_numpy(np.array([[1.5, -2.0]], ml_dtypes.bfloat16))
        seen["bf16"] = client.infer("halves", [halves]).as_numpy("y").astype(np.float32).tolist()
        index = client.get_model_repository_index()
        seen["index"] = sorted([model.name, model.version, model.state] for model in index.models)
        seen["unknown"] = failure(lambda: client.infer("nope", tensors(triton)))
        seen["missing"] = failure(lambda: client.infer("simple", tensors(triton)[:1]))
        config = client.get_model_config("simple").config
        seen["config"] = [config.name, config.backend, [[t.name, t.data_type, list(t.dims)] for t in config.input]]
        seen["callback"] = callback(client)
    return seen


def callback(client: Any) -> list[list[int]]:
    """What `async_infer` brings."""
    done: asyncio.Future[Any] = asyncio.Future(loop=(loop := asyncio.new_event_loop()))
    client.async_infer(
        "simple",
        tensors(triton),
        callback=lambda result, error: loop.call_soon_threadsafe(done.set_result, error or result),
    )
    result = loop.run_until_complete(asyncio.wait_for(done, 20))
    loop.close()
    total: list[list[int]] = result.as_numpy("total").tolist()
    return total


async def aio_session(address: str) -> dict[str, Any]:
    """What an asyncio client sees."""
    async with triton_aio.InferenceServerClient(address) as client:
        results = await asyncio.gather(*(client.infer("simple", tensors(triton_aio)) for _ in range(20)))
        return {
            "ready": await client.is_model_ready("simple"),
            "metadata": (await client.get_model_metadata("simple")).name,
            "totals": {str(result.as_numpy("total").tolist()) for result in results}.pop(),
        }


def main() -> None:
    """Prints one JSON object."""
    address = sys.argv[1]
    json.dump({"sync": session(address), "aio": asyncio.run(aio_session(address))}, sys.stdout)


if __name__ == "__main__":
    main()
