"""tritonclient over gRPC with asyncio."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from tests.support.clientprograms.checks import Checks, Server, same
from tests.support.clientprograms.triton import one, pair, summed

checks = Checks()


@checks
async def aio_infer(server: Server) -> None:
    async with triton.InferenceServerClient(server.grpc) as client:
        same([await client.is_server_live(), await client.is_server_ready()], [True, True])
        same((await client.get_server_metadata()).name, "triton")
        for result in await asyncio.gather(
            *(client.infer("simple", pair(triton), request_id=str(number)) for number in range(30))
        ):
            summed(result)
        summed(await client.infer("simple", pair(triton), compression_algorithm="deflate", client_timeout=20))


@checks
async def aio_control(server: Server) -> None:
    async with triton.InferenceServerClient(server.grpc) as client:
        await client.load_model("late")
        same(await client.is_model_ready("late"), True)
        same((await client.get_model_config("late")).config.name, "late")
        same(len((await client.get_inference_statistics("late")).model_stats), 1)
        await client.unload_model("late")
        same(await client.is_model_ready("late"), False)
        index = {model.name: model.state for model in (await client.get_model_repository_index()).models}
        same([index["simple"], index["late"]], ["READY", "UNAVAILABLE"])
        same(len((await client.get_system_shared_memory_status()).regions), 0)
        same(len((await client.get_cuda_shared_memory_status()).regions), 0)
        await client.unregister_cuda_shared_memory()
        same((await client.get_log_settings()).settings["log_info"].bool_param, True)
        same(len((await client.get_trace_settings("simple")).settings) > 3, True)


@checks
async def aio_failures(server: Server) -> None:
    async with triton.InferenceServerClient(server.grpc) as client:
        seconds = [one(triton, "SECONDS", np.array([5], np.float32), "FP32")]
        for call, status in (
            (client.infer("nope", pair(triton)), "NOT_FOUND"),
            (client.infer("simple", pair(triton)[:1]), "INVALID_ARGUMENT"),
            (client.infer("patience", seconds, client_timeout=0.2), "DEADLINE_EXCEEDED"),
        ):
            try:
                await call
            except InferenceServerException as error:
                same(error.status(), f"StatusCode.{status}")
            else:
                raise AssertionError(f"not {status}")
        waiting = asyncio.create_task(client.infer("patience", seconds))
        await asyncio.sleep(0.1)
        waiting.cancel()
        outcomes: Any = await asyncio.gather(waiting, return_exceptions=True)
        same(isinstance(outcomes[0], asyncio.CancelledError | InferenceServerException), True)


@checks
async def aio_sequences(server: Server) -> None:
    """Two sequences in one stream, turn by turn."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for position in range(6):
            for sign, sequence in ((1, 3001), (-1, "3002")):
                yield {
                    "model_name": "simple_sequence",
                    "inputs": [one(triton, "INPUT", np.array([[sign * position]], np.int32), "INT32")],
                    "request_id": f"{sequence}_{position}",
                    "sequence_id": sequence,
                    "sequence_start": position == 0,
                    "sequence_end": position == 5,
                }

    sums: dict[str, int] = {}
    async with triton.InferenceServerClient(server.grpc) as client:
        async for result, error in client.stream_infer(requests(), stream_timeout=20):
            if error is not None:
                raise error
            sums[result.get_response().id] = int(result.as_numpy("OUTPUT")[0, 0])
    for sign, sequence in ((1, 3001), (-1, 3002)):
        same([sums[f"{sequence}_{at}"] for at in range(6)], [sign * value for value in (0, 1, 3, 6, 10, 15)])


@checks
async def aio_decoupled(server: Server) -> None:
    values = np.array([3, 1, 2], np.int32)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": "repeat_int32",
            "inputs": [
                one(triton, "IN", values, "INT32"),
                one(triton, "DELAY", np.zeros(3, np.uint32), "UINT32"),
                one(triton, "WAIT", np.zeros(1, np.uint32), "UINT32"),
            ],
        }

    async with triton.InferenceServerClient(server.grpc) as client:
        found: list[Any] = [result async for result, error in client.stream_infer(requests()) if error is None]
    same([int(result.as_numpy("OUT")[0]) for result in found], [3, 1, 2])
