"""Shared memory of GPUs over gRPC, with a stand-in for CUDA."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.cudastandin import DRIVER, RUNTIME, DeviceMemory, compile_standin, device_memory, opened
from tests.support.oipmodels import Function, configuration, tensor
from tests.support.oipserver import OipServer, oip_server
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.inference.sharedmemory.cudart import Cuda, find
from tidemill.tensors.dtypes import DataType

Code = grpc.StatusCode
INT = DataType.INT32
RAMP = np.arange(4, dtype=np.int32)


class Gate:
    """Holds a model's runs while it is closed."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_standin(tmp_path_factory.mktemp("cuda") / "libraries")


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def server(libraries: Path, gate: Gate) -> Iterator[OipServer]:
    def held(x: Any) -> Any:
        gate.reached.set()
        gate.open.wait(20)
        return {"y": 2 * x}

    inputs, results = [tensor("x", INT, (4,))], [tensor("y", INT, (4,))]
    versions = {
        ("double", 1): (configuration("double", inputs, results), Function(lambda x: {"y": 2 * x})),
        ("held", 1): (configuration("held", inputs, results), Function(held)),
    }
    cuda = Cuda(str(libraries / RUNTIME), str(libraries / DRIVER))
    with oip_server(versions, share=True, cuda=lambda: cuda) as running:
        yield running


@pytest.fixture(params=[0, 1], ids=["first device", "second device"])
def memory(request: pytest.FixtureRequest, server: OipServer, libraries: Path) -> Iterator[DeviceMemory]:
    """64 bytes of a device: registered as `g` but for the last 16."""
    with device_memory(libraries, 64, request.param) as made:
        made.put(RAMP.tobytes() + b"\xff" * 48)
        register(server, "g", made, 48)
        yield made
        server.stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())


def register(server: OipServer, name: str, memory: DeviceMemory, size: int) -> None:
    server.stub.CudaSharedMemoryRegister(
        pb.CudaSharedMemoryRegisterRequest(name=name, raw_handle=memory.handle, device_id=memory.device, byte_size=size)
    )


def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    found: Any = error.value
    return found.code(), found.details()


def place(tensor: Any, region: str, size: int, offset: int = 0) -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    tensor.parameters["shared_memory_offset"].int64_param = offset


def request(model: str, given: tuple[str, int, int], wanted: tuple[str, int, int]) -> Any:
    sent: Any = pb.ModelInferRequest(model_name=model)
    place(sent.inputs.add(name="x", datatype="INT32", shape=[4]), *given)
    place(sent.outputs.add(name="y"), *wanted)
    return sent


def regions(server: OipServer, name: str = "") -> dict[str, tuple[int, int]]:
    found = server.stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(name=name)).regions
    assert [one.name for one in found.values()] == list(found)
    return {name: (one.device_id, one.byte_size) for name, one in found.items()}


def test_tensors_are_read_there_and_written_there(server: OipServer, memory: DeviceMemory) -> None:
    answer = server.stub.ModelInfer(request("double", ("g", 16, 0), ("g", 20, 24)))
    assert memory.get() == RAMP.tobytes() + b"\xff" * 8 + (2 * RAMP).tobytes() + b"\xff" * 24
    assert list(answer.raw_output_contents) == [b""]
    assert answer.outputs[0].parameters["shared_memory_region"].string_param == "g"
    assert answer.outputs[0].parameters["shared_memory_byte_size"].int64_param == 16


def test_memory_of_a_gpu_and_of_the_system_in_one_request(server: OipServer, memory: DeviceMemory) -> None:
    path = Path(f"/dev/shm/oiptest-{os.getpid()}-both")
    path.write_bytes(bytes(16))
    try:
        server.stub.SystemSharedMemoryRegister(
            pb.SystemSharedMemoryRegisterRequest(name="s", key=path.name, byte_size=16)
        )
        server.stub.ModelInfer(request("double", ("g", 16, 0), ("s", 16, 0)))
        assert path.read_bytes() == (2 * RAMP).tobytes()
        server.stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
        assert set(server.stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()).regions) == {"s"}
        assert refused(lambda: register(server, "s", memory, 8))[0] is Code.ALREADY_EXISTS
    finally:
        server.stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
        path.unlink()


def test_status(server: OipServer, memory: DeviceMemory) -> None:
    register(server, "h", memory, 64)
    assert regions(server) == {"g": (memory.device, 48), "h": (memory.device, 64)}
    assert regions(server, "h") == {"h": (memory.device, 64)}
    missing = "Unable to find cuda shared memory region: 'nope'"
    assert refused(lambda: regions(server, "nope")) == (Code.NOT_FOUND, missing)
    assert not server.stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()).regions
    named = set(server.stub.ServerMetadata(pb.ServerMetadataRequest()).extensions)
    assert {"system_shared_memory", "cuda_shared_memory"} <= named


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"raw_handle": bytes(63)}, "raw_handle must have 64 bytes, not 63"),
        ({"raw_handle": bytes(65)}, "raw_handle must have 64 bytes, not 65"),
        ({"raw_handle": b""}, "raw_handle must have 64 bytes, not 0"),
        ({"raw_handle": bytes(64)}, "the handle cannot be opened on this device"),
        ({"raw_handle": b"\xff" * 64}, "the handle cannot be opened on this device"),
        ({"device_id": 2}, "there is no device 2"),
        ({"device_id": -1}, "there is no device -1"),
        ({"device_id": 2**63 - 1}, f"there is no device {2**63 - 1}"),
        ({"byte_size": 0}, "byte_size must be at least 1"),
        ({"byte_size": 65}, "the allocation is not known to have 65 bytes"),
        ({"byte_size": 2**64 - 1}, f"the allocation is not known to have {2**64 - 1} bytes"),
    ],
)
def test_what_cannot_be_registered(server: OipServer, memory: DeviceMemory, changes: Any, text: str) -> None:
    before = opened(os.getpid())
    asked = {"raw_handle": memory.handle, "device_id": memory.device, "byte_size": 64, **changes}
    sent = pb.CudaSharedMemoryRegisterRequest(name="new", **asked)
    assert refused(lambda: server.stub.CudaSharedMemoryRegister(sent)) == (
        Code.INVALID_ARGUMENT,
        f"failed to register shared memory region 'new': invalid args: {text}",
    )
    assert set(regions(server)) == {"g"}
    assert opened(os.getpid()) == before


def test_an_allocation_of_the_other_device(server: OipServer, memory: DeviceMemory) -> None:
    sent = pb.CudaSharedMemoryRegisterRequest(
        name="new", raw_handle=memory.handle, device_id=1 - memory.device, byte_size=8
    )
    code, text = refused(lambda: server.stub.CudaSharedMemoryRegister(sent))
    assert (code, "cannot be opened" in text) == (Code.INVALID_ARGUMENT, True)


def test_names_are_taken_once_and_bounded(server: OipServer, memory: DeviceMemory) -> None:
    assert refused(lambda: register(server, "g", memory, 8)) == (
        Code.ALREADY_EXISTS,
        "shared memory region 'g' already in manager",
    )
    for name in ("", "x" * 257, "a\nb"):
        assert refused(lambda name=name: register(server, name, memory, 8))[0] is Code.INVALID_ARGUMENT
    assert regions(server) == {"g": (memory.device, 48)}


def test_an_allocation_whose_size_nobody_tells_is_refused(
    server: OipServer, memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_STANDIN_BLIND", "1")
    code, text = refused(lambda: register(server, "new", memory, 1))
    assert (code, "is not known to have 1 bytes" in text) == (Code.INVALID_ARGUMENT, True)


@pytest.mark.parametrize(
    ("given", "wanted", "code", "text"),
    [
        (("g", 16, 48), ("g", 16, 0), Code.INVALID_ARGUMENT, "Invalid offset for shared memory region: 'g'"),
        (
            ("g", 16, 33),
            ("g", 16, 0),
            Code.INVALID_ARGUMENT,
            "Invalid offset + byte size for shared memory region: 'g'",
        ),
        (("nope", 16, 0), ("g", 16, 0), Code.NOT_FOUND, "Unable to find shared memory region: 'nope'"),
        (
            ("g", 20, 0),
            ("g", 16, 0),
            Code.INVALID_ARGUMENT,
            "input byte size mismatch for input 'x' for model 'double'. Expected 16, got 20",
        ),
        (
            ("g", 16, 0),
            ("g", 49, 0),
            Code.INVALID_ARGUMENT,
            "Invalid offset + byte size for shared memory region: 'g'",
        ),
        (
            ("g", 16, 0),
            ("g", 15, 16),
            Code.INVALID_ARGUMENT,
            "shared memory size specified with the request for output 'y' (15 bytes) should be at least 16 bytes to "
            "hold the results",
        ),
    ],
)
def test_wrong_uses(
    server: OipServer, memory: DeviceMemory, given: Any, wanted: Any, code: grpc.StatusCode, text: str
) -> None:
    before = memory.get()
    assert refused(lambda: server.stub.ModelInfer(request("double", given, wanted))) == (code, text)
    assert memory.get() == before
    assert not any(region._users for region in server.regions.find("cuda"))
    assert server.unused


def test_a_region_that_is_unregistered_in_use_is_closed_after_it(
    server: OipServer, memory: DeviceMemory, gate: Gate
) -> None:
    gate.reached.clear()
    gate.open.clear()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.stub.ModelInfer, request("held", ("g", 16, 0), ("g", 16, 32)))
        assert gate.reached.wait(20)
        server.stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name="g"))
        assert regions(server) == {}
        assert refused(lambda: server.stub.ModelInfer(request("double", ("g", 16, 0), ("g", 16, 0)))) == (
            Code.NOT_FOUND,
            "Unable to find shared memory region: 'g'",
        )
        assert opened(os.getpid()) == 2
        gate.open.set()
        running.result(20)
    assert opened(os.getpid()) == 1
    assert memory.get()[32:48] == (2 * RAMP).tobytes()
    register(server, "g", memory, 64)
    assert regions(server) == {"g": (memory.device, 64)}


def test_the_library_and_its_devices(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(str(libraries / RUNTIME), str(libraries / DRIVER))
    assert cuda.devices == 2
    monkeypatch.setenv("CUDA_STANDIN_DEVICES", "0")
    assert cuda.devices == 0
    with pytest.raises(OSError, match="nowhere"):
        Cuda(str(libraries / RUNTIME), "libnowhere.so.1")
    with pytest.raises(AttributeError):
        Cuda("libc.so.6")


def test_memory_that_is_open_no_more_is_an_error_and_is_let_go(libraries: Path) -> None:
    cuda = Cuda(str(libraries / RUNTIME), str(libraries / DRIVER))
    with device_memory(libraries, 64) as memory:
        address = cuda.open(memory.handle, 0)
        again = cuda.open(memory.handle, 0)
        assert (again, cuda.extent(address, 0), cuda.extent(address + 60, 0)) == (address, 64, 4)
        assert cuda.read(address, 64, 0) == bytes(64)
        assert cuda.read(address, 65, 0) is None
        assert not cuda.write(address, bytes(65), 0)
        assert cuda.read(address, 0, 0) == b""
        for _ in range(2):
            cuda.close(address, 0)
        cuda.close(address, 0)
        assert (cuda.read(address, 1, 0), cuda.extent(address, 0)) == (None, 0)
        assert not cuda.write(address, b"x", 0)


def test_without_a_gpu_nothing_is_found() -> None:
    """No machine that runs this has the stand-in on its loader's path; one with a GPU finds that."""
    found = find()
    assert found is None or found.devices > 0
