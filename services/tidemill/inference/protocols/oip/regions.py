"""Registering shared memory by request."""

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Invalid
from tidemill.inference.inputs import shown
from tidemill.inference.protocols.oip.memory import unserved
from tidemill.inference.sharedmemory.regions import Regions
from tidemill.inference.sharedmemory.system import SystemMemory, SystemRegion


class SharedMemory:
    """What clients register and ask. Memory of GPUs is not offered: nothing of it is ever registered.

    Args:
        regions: all of them; None = clients share no memory with this server.
    """

    def __init__(self, regions: Regions | None) -> None:
        self.regions = regions
        self._system = None if regions is None else SystemMemory(regions)

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
        """Refuse. Raises Invalid."""
        raise Invalid(
            f"failed to register CUDA shared memory region: '{shown(request.name)}', GPUs not supported",
            reason="NO_GPU",
        )

    def cuda_status(self, name: str) -> pb.CudaSharedMemoryStatusResponse:
        """Nothing. Raises NotFound when a region is named."""
        self._found().find("cuda", name)
        return pb.CudaSharedMemoryStatusResponse()

    def unregister(self, kind: str, name: str) -> None:
        """Let go of a region, or of all of a kind; it is no error if there is none."""
        self._found().remove(kind, name)

    def _found(self) -> Regions:
        return self.regions or Regions()
