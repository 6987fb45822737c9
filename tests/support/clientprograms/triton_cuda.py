"""tritonclient over gRPC and HTTP: tensors in memory of a GPU, which a stand-in for CUDA makes."""

import base64
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from tests.support.clientprograms.checks import Checks, Server, same
from tests.support.clientprograms.triton import ONES, RAMP, fails, outputs
from tests.support.cudastandin import DeviceMemory, device_memory

checks = Checks()
LIBRARIES = Path(os.environ["CUDA_STANDIN_LIBRARIES"])


def _told(status: Any) -> dict[str, tuple[int, int]]:
    """Device and size of each region, of what either client's method gives."""
    found = status if isinstance(status, list) else status.regions.values()
    read = [one if isinstance(one, dict) else {name.name: value for name, value in one.ListFields()} for one in found]
    return {one["name"]: (one.get("device_id", 0), one["byte_size"]) for one in read}


def _session(module: Any, address: str, status: Any) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(module.InferenceServerClient(address))
        given, result = (stack.enter_context(device_memory(LIBRARIES, 128, device)) for device in (0, 1))
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        same("cuda_shared_memory" in str(client.get_server_metadata()), True)
        given.put(RAMP.tobytes() + ONES.tobytes())
        for name, memory in (("given", given), ("result", result)):
            client.register_cuda_shared_memory(name, _handle(memory), memory.device, 128)
        same(_told(client.get_cuda_shared_memory_status()), {"given": (0, 128), "result": (1, 128)})
        same(_told(client.get_cuda_shared_memory_status("result")), {"result": (1, 128)})
        inputs = [module.InferInput(f"INPUT{index}", [1, 16], "INT32") for index in range(2)]
        wanted = outputs(module)
        for index in range(2):
            inputs[index].set_shared_memory("given", 64, offset=64 * index)
            wanted[index].set_shared_memory("result", 64, offset=64 * index)
        client.infer("simple", inputs, outputs=wanted)
        found = np.frombuffer(result.get(), np.int32).reshape(2, 16)
        same(found.tolist(), [*(RAMP + ONES).tolist(), *(RAMP - ONES).tolist()])
        taken = "shared memory region 'given' already in manager"
        fails(
            status("ALREADY_EXISTS"), taken, lambda: client.register_cuda_shared_memory("given", _handle(given), 0, 8)
        )
        for handle, device, size in (
            (_handle(given), 0, 129),
            (_handle(given), 1, 128),
            (_handle(given), 7, 128),
            (base64.b64encode(bytes(64)), 0, 128),
            (base64.b64encode(given.handle[:60]), 0, 128),
        ):
            fails(
                status("INVALID_ARGUMENT"),
                "failed to register shared memory region 'new': invalid args",
                lambda handle=handle, device=device, size=size: client.register_cuda_shared_memory(  # type: ignore[misc]
                    "new", handle, device, size
                ),
            )
        inputs[1].set_shared_memory("given", 64, offset=65)
        beyond = "Invalid offset + byte size for shared memory region: 'given'"
        fails(status("INVALID_ARGUMENT"), beyond, lambda: client.infer("simple", inputs))
        client.unregister_cuda_shared_memory("given")
        gone = "Unable to find shared memory region: 'given'"
        fails(status("NOT_FOUND"), gone, lambda: client.infer("simple", inputs))
        fails(status("NOT_FOUND"), "given", lambda: client.get_cuda_shared_memory_status("given"))
        client.unregister_cuda_shared_memory("given")
        client.unregister_cuda_shared_memory()
        same(_told(client.get_cuda_shared_memory_status()), {})


def _handle(memory: DeviceMemory) -> bytes:
    """As the client's own helper gives it, to be handed on to either client."""
    return base64.b64encode(memory.handle)


@checks
def over_grpc(server: Server) -> None:
    _session(tritonclient.grpc, server.grpc, str)


@checks
def over_http(server: Server) -> None:
    codes = {"ALREADY_EXISTS": "400", "INVALID_ARGUMENT": "400", "NOT_FOUND": "404"}
    _session(tritonclient.http, server.http, codes.__getitem__)


if __name__ == "__main__":
    checks.main()
