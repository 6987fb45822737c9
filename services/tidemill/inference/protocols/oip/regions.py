"""Registering shared memory by request."""

from collections.abc import Callable

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.inference.protocols.oip.memory import unserved
from tidemill.inference.sharedmemory.cuda import CudaMemory, CudaRegion
from tidemill.inference.sharedmemory.cudart import Cuda, find
from tidemill.inference.sharedmemory.regions import Regions
from tidemill.inference.sharedmemory.system import SystemMemory, SystemRegion


class SharedMemory:
    """What clients register and ask.

    Args:
        regions: all of them; None = clients share no memory with this server.
        cuda: finds CUDA, where clients share memory and one asks for it.
    """

    def __init__(self, regions: Regions | None, cuda: Callable[[], Cuda | None] = find) -> None:
        self._regions = regions
        self._system = None if regions is None else SystemMemory(regions)
        self._cuda = None if regions is None else CudaMemory(regions, cuda)

    @property
    def extensions(self) -> tuple[str, ...]:
        """What of it works here, by the protocol's names."""
        if self._cuda is None:
            return ()
        return ("system_shared_memory", *(("cuda_shared_memory",) if self._cuda.cuda else ()))

    def register_system(self, request: pb.SystemSharedMemoryRegisterRequest) -> None:
        """Register a region. Raises TidemillError."""
        if self._system is None:
            raise unserved()
        self._system.register(request.name, request.key, request.offset, request.byte_size)

    def system_status(self, name: str) -> pb.SystemSharedMemoryStatusResponse:
        """The regions of the system. Raises NotFound when one is named that is not there."""
        response = pb.SystemSharedMemoryStatusResponse()
        for region in self._found().find("system", name):
            made = response.regions[region.name]
            made.name, made.byte_size = region.name, region.size
            if isinstance(region, SystemRegion):
                made.key, made.offset = region.key, region.offset
        return response

    def register_cuda(self, request: pb.CudaSharedMemoryRegisterRequest) -> None:
        """Register a region of a GPU. Raises TidemillError."""
        if self._cuda is None:
            raise unserved()
        self._cuda.register(request.name, request.raw_handle, request.device_id, request.byte_size)

    def cuda_status(self, name: str) -> pb.CudaSharedMemoryStatusResponse:
        """The regions of GPUs. Raises NotFound when one is named that is not there."""
        response = pb.CudaSharedMemoryStatusResponse()
        for region in self._found().find("cuda", name):
            made = response.regions[region.name]
            made.name, made.byte_size = region.name, region.size
            if isinstance(region, CudaRegion):
                made.device_id = region.device
        return response

    def unregister(self, kind: str, name: str) -> None:
        """Let go of a region, or of all of a kind; it is no error if there is none."""
        self._found().remove(kind, name)

    def _found(self) -> Regions:
        return self._regions or Regions()
