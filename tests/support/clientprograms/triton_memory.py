"""tritonclient over gRPC: tensors in shared memory, and what becomes of those who have no GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import serialize_byte_tensor, serialized_byte_size

from tests.support.clientprograms.checks import Checks, Server, same
from tests.support.clientprograms.triton import ONES, RAMP, fails, grpc_client, outputs, pair, summed

checks = Checks()


@contextmanager
def region(name: str, size: int) -> Iterator[tuple[Any, str]]:
    """A region of shared memory that this program has made, and its key."""
    key = f"/clients-{os.getpid()}-{name}"
    handle = shm.create_shared_memory_region(name, key, size)
    try:
        yield handle, key
    finally:
        shm.destroy_shared_memory_region(handle)


def shared_inputs(name: str, size: int = 64, kind: str = "INT32") -> list[Any]:
    """INPUT0 and INPUT1 of the model `simple`, one behind the other in a region."""
    made = [triton.InferInput(f"INPUT{index}", [1, 16], kind) for index in range(2)]
    made[0].set_shared_memory(name, size)
    made[1].set_shared_memory(name, size, offset=size)
    return made


@checks
def system_memory(server: Server) -> None:
    with grpc_client(server) as client, grpc_client(server) as other, region("out", 128) as (result, result_key):
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        with region("in", 128) as (given, given_key):
            shm.set_shared_memory_region(given, [RAMP, ONES])
            client.register_system_shared_memory("in", given_key, 128)
            client.register_system_shared_memory("out", result_key, 128)
            status = other.get_system_shared_memory_status("in").regions["in"]
            same([status.key, status.offset, status.byte_size], [given_key, 0, 128])
            same(sorted(other.get_system_shared_memory_status().regions), ["in", "out"])
            wanted = outputs(triton)
            for index, output in enumerate(wanted):
                output.set_shared_memory("out", 64, offset=64 * index)
            for one in (client, other):
                shm.set_shared_memory_region(result, [np.zeros(32, np.int32)])
                answer = one.infer("simple", shared_inputs("in"), outputs=wanted)
                same(list(answer.get_response().raw_output_contents), [b"", b""])
                described = answer.get_output("OUTPUT1")
                same([described.datatype, list(described.shape)], ["INT32", [1, 16]])
                same(shm.get_contents_as_numpy(result, np.int32, [1, 16]).tolist(), (RAMP + ONES).tolist())
                same(shm.get_contents_as_numpy(result, np.int32, [1, 16], offset=64).tolist(), (RAMP - ONES).tolist())
            summed(client.infer("simple", shared_inputs("in")))
            mixed = [shared_inputs("in")[0], pair(triton)[1]]
            summed(client.infer("simple", mixed, outputs=outputs(triton)))
            client.unregister_system_shared_memory("in")
            same(sorted(other.get_system_shared_memory_status().regions), ["out"])
        client.unregister_system_shared_memory()
        same(len(other.get_system_shared_memory_status().regions), 0)


@checks
def texts_in_memory(server: Server) -> None:
    words = np.array([[str(number).encode() for number in range(16)]], dtype=np.object_)
    size = serialized_byte_size(serialize_byte_tensor(words))
    with grpc_client(server) as client, region("texts", 2 * size) as (handle, key):
        shm.set_shared_memory_region(handle, [serialize_byte_tensor(words), serialize_byte_tensor(words)])
        client.register_system_shared_memory("texts", key, 2 * size)
        result = client.infer("simple_string", shared_inputs("texts", size, "BYTES"))
        same([int(text) for text in result.as_numpy("OUTPUT0")[0]], [2 * number for number in range(16)])
        client.unregister_system_shared_memory("texts")


@checks
def wrong_memory(server: Server) -> None:
    with grpc_client(server) as client, region("small", 128) as (_, key):
        fails("INVALID_ARGUMENT", "", lambda: client.register_system_shared_memory("small", key, 10_000))
        fails("INVALID_ARGUMENT", "", lambda: client.register_system_shared_memory("small", key, 100, offset=64))
        fails("INVALID_ARGUMENT", "", lambda: client.register_system_shared_memory("small", "/nobody-made-this", 128))
        client.register_system_shared_memory("small", key, 128)
        fails(
            "ALREADY_EXISTS",
            "shared memory region 'small' already in manager",
            lambda: client.register_system_shared_memory("small", key, 128),
        )
        size = "input byte size mismatch for input 'INPUT0' for model 'simple'. Expected 64, got 60"
        fails("INVALID_ARGUMENT", size, lambda: client.infer("simple", shared_inputs("small", 60)))
        beyond = shared_inputs("small")
        beyond[1].set_shared_memory("small", 64, offset=100)
        fails("INVALID_ARGUMENT", "", lambda: client.infer("simple", beyond))
        little = outputs(triton, "OUTPUT0")
        little[0].set_shared_memory("small", 32)
        fails("INVALID_ARGUMENT", "", lambda: client.infer("simple", pair(triton), outputs=little))
        client.unregister_system_shared_memory("small")
        missing = "Unable to find shared memory region: 'small'"
        fails("NOT_FOUND", missing, lambda: client.infer("simple", shared_inputs("small")))
        unknown = "Unable to find system shared memory region: 'small'"
        fails("NOT_FOUND", unknown, lambda: client.get_system_shared_memory_status("small"))
        client.unregister_system_shared_memory("small")


@checks
def cuda_memory(server: Server) -> None:
    with grpc_client(server) as client:
        client.unregister_cuda_shared_memory()
        client.unregister_cuda_shared_memory("nobody")
        same(len(client.get_cuda_shared_memory_status().regions), 0)
        fails("NOT_FOUND", "nobody", lambda: client.get_cuda_shared_memory_status("nobody"))
        fails("", "", lambda: _not_cuda(client))


def _not_cuda(client: Any) -> None:
    """A handle that is none fails in one way or another, with or without a GPU."""
    try:
        client.register_cuda_shared_memory("c", b"A" * 88, 0, 64)
    except triton.InferenceServerException as error:
        if error.status() in ("StatusCode.INTERNAL", "StatusCode.UNKNOWN"):
            raise
        raise triton.InferenceServerException("", "") from error
