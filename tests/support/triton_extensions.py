"""A script for the tritonclient environment: the protocol's optional parts, as that client's own examples use them."""

import asyncio
import json
import os
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException


def tensors(module: Any, value: int = 1) -> list[Any]:
    """Inputs of the model `simple`."""
    made = [module.InferInput(name, [1, 4], "INT32") for name in ("a", "b")]
    for tensor in made:
        tensor.set_data_from_numpy(np.full((1, 4), value, np.int32))
    return made


def failure(call: Any) -> list[str]:
    """Status and text of a call that fails."""
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["OK", ""]


def streams(client: Any) -> list[Any]:
    """Values that a stream brings for good requests, and the error of a bad one."""
    found: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: found.put(error or result))
    for value in range(20):
        client.async_stream_infer("simple", tensors(triton, value), request_id=str(value))
    client.async_stream_infer("nope", tensors(triton), request_id="bad")
    client.async_stream_infer("simple", tensors(triton, 99), request_id="last")
    seen: list[Any] = []
    for _ in range(22):
        one = found.get(timeout=20)
        if isinstance(one, InferenceServerException):
            seen.append(str(one.message()))
        else:
            seen.append([one.get_response().id, int(one.as_numpy("total")[0, 0])])
    client.stop_stream()
    return seen


def shared(client: Any) -> dict[str, Any]:
    """The way of the shared memory example."""
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    ins = shm.create_shared_memory_region("input_data", f"/oiptest-{os.getpid()}-in", 32)
    outs = shm.create_shared_memory_region("output_data", f"/oiptest-{os.getpid()}-out", 32)
    seen: dict[str, Any] = {}
    try:
        shm.set_shared_memory_region(ins, [np.full((1, 4), 5, np.int32), np.full((1, 4), 2, np.int32)])
        client.register_system_shared_memory("input_data", f"/oiptest-{os.getpid()}-in", 32)
        client.register_system_shared_memory("output_data", f"/oiptest-{os.getpid()}-out", 32)
        seen["twice"] = failure(
            lambda: client.register_system_shared_memory("input_data", f"/oiptest-{os.getpid()}-in", 32)
        )
        inputs = [triton.InferInput(name, [1, 4], "INT32") for name in ("a", "b")]
        outputs = [triton.InferRequestedOutput(name) for name in ("total", "difference")]
        for index, (source, target) in enumerate(zip(inputs, outputs, strict=True)):
            source.set_shared_memory("input_data", 16, offset=16 * index)
            target.set_shared_memory("output_data", 16, offset=16 * index)
        result = client.infer("simple", inputs, outputs=outputs)
        seen["told"] = [result.get_output(name).parameters["shared_memory_region"].string_param for name in ("total",)]
        seen["values"] = [
            shm.get_contents_as_numpy(outs, np.int32, [1, 4], offset=offset).tolist() for offset in (0, 16)
        ]
        seen["regions"] = sorted(client.get_system_shared_memory_status().regions)
        inputs[0].set_shared_memory("input_data", 20)
        seen["beyond"] = failure(lambda: client.infer("simple", inputs))
        client.unregister_system_shared_memory("input_data")
        seen["gone"] = failure(lambda: client.infer("simple", inputs))
        seen["status"] = failure(lambda: client.get_system_shared_memory_status("input_data"))
        client.unregister_system_shared_memory()
        seen["left"] = sorted(client.get_system_shared_memory_status().regions)
        seen["cuda"] = sorted(client.get_cuda_shared_memory_status().regions)
    finally:
        shm.destroy_shared_memory_region(ins)
        shm.destroy_shared_memory_region(outs)
    return seen


def session(address: str) -> dict[str, Any]:
    """What a synchronous client sees."""
    seen: dict[str, Any] = {}
    with triton.InferenceServerClient(address) as client:
        seen["stream"] = streams(client)
        outputs = [triton.InferRequestedOutput("y", class_count=2)]
        scores = triton.InferInput("x", [1, 2], "FP32")
        scores.set_data_from_numpy(np.array([[0.25, 0.5]], np.float32))
        found = client.infer("scores", [scores], outputs=outputs).as_numpy("y")
        seen["classes"] = [list(found.shape), [one.decode() for one in found.ravel()]]
        for how in ("gzip", "deflate"):
            result = client.infer("simple", tensors(triton, 3), compression_algorithm=how)
            seen[how] = result.as_numpy("total").tolist()
        own = client.infer("simple", tensors(triton), priority=1, timeout=5_000_000, parameters={"mine": "x"})
        seen["parameters"] = own.as_numpy("total").tolist()
        (stats,) = client.get_inference_statistics("simple", "1").model_stats
        seen["statistics"] = [stats.name, stats.version, stats.inference_stats.success.count == stats.execution_count]
        seen["trace"] = client.update_trace_settings(
            "simple", {"trace_rate": "5", "trace_level": ["TIMESTAMPS"]}, as_json=True
        )
        seen["trace again"] = client.get_trace_settings("simple", as_json=True) == seen["trace"]
        seen["trace file"] = failure(lambda: client.update_trace_settings("simple", {"trace_file": "x"}))
        client.update_trace_settings("simple", {"trace_rate": None, "trace_level": None})
        seen["log"] = client.update_log_settings({"log_verbose_level": 1, "log_info": True}, as_json=True)
        seen["log file"] = failure(lambda: client.update_log_settings({"log_file": "x"}))
        client.update_log_settings({"log_verbose_level": 0})
        seen["load"] = failure(lambda: client.load_model("simple"))
        seen["unload"] = failure(lambda: client.unload_model("simple"))
        seen["shared"] = shared(client)
    return seen


async def aio_session(address: str) -> list[Any]:
    """What a stream of the asyncio client brings."""

    async def requests() -> Any:
        for value in range(5):
            yield {"model_name": "simple", "inputs": tensors(triton_aio, value), "request_id": str(value)}

    async with triton_aio.InferenceServerClient(address) as client:
        return [
            [result.get_response().id, int(result.as_numpy("total")[0, 0])]
            async for result, error in client.stream_infer(requests())
            if error is None
        ]


def main() -> None:
    """Prints one JSON object."""
    address = sys.argv[1]
    json.dump({"sync": session(address), "aio": asyncio.run(aio_session(address))}, sys.stdout)


if __name__ == "__main__":
    main()
