"""Memory of GPUs that clients on this host share.

Bytes are copied through the host's memory, as all tensors of requests are there.
"""

import threading
from collections.abc import Callable

from tidemill.errors import Invalid
from tidemill.inference.inputs import shown
from tidemill.inference.sharedmemory.cudart import HANDLE_BYTES, Cuda, find
from tidemill.inference.sharedmemory.regions import Region, Regions


class CudaRegion(Region):
    """The beginning of an allocation of a GPU.

    Args:
        name, size: see `Region`.
        device: number of the GPU.
        address: where the allocation is here; closed with the region.
        cuda: has opened it.
    """

    kind = "cuda"

    def __init__(self, name: str, size: int, device: int, address: int, cuda: Cuda) -> None:
        super().__init__(name, size)
        self.device = device
        self._address = address
        self._cuda = cuda

    def read(self, offset: int, size: int) -> bytes:
        """A copy of these bytes. Raises Invalid."""
        found = self._cuda.read(self._address + offset, size, self.device)
        if found is None:
            raise self._gone("read")
        return found

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` there. Raises Invalid."""
        if not self._cuda.write(self._address + offset, data, self.device):
            raise self._gone("written")

    def close(self) -> None:
        """Let go of the allocation."""
        self._cuda.close(self._address, self.device)

    def _gone(self, what: str) -> Invalid:
        return Invalid(f"shared memory region '{self.name}' cannot be {what}", reason="REGION_GONE")


class CudaMemory:
    """Registers regions of GPUs. Safe to use from any thread.

    Args:
        regions: where they are kept.
        search: finds CUDA; asked once, when it is first needed.
    """

    def __init__(self, regions: Regions, search: Callable[[], Cuda | None] = find) -> None:
        self._regions = regions
        self._search = search
        self._lock = threading.Lock()
        self._found: Cuda | None = None
        self._sought = False

    @property
    def cuda(self) -> Cuda | None:
        """CUDA; None where there is no GPU."""
        with self._lock:
            if not self._sought:
                self._found, self._sought = self._search(), True
            return self._found

    def register(self, name: str, handle: bytes, device: int, size: int) -> None:
        """Register the first `size` bytes of an allocation of another process under `name`.

        Raises:
            Invalid: there is no GPU, or not this one; the handle is wrong, or the allocation has not as many bytes.
            AlreadyExists: the name is taken.
            Exhausted: there are too many regions.
        """
        cuda = self.cuda
        if cuda is None:
            raise no_gpu(name)
        self._regions.check_new(name, 0, size)
        if not 0 <= device < cuda.devices:
            raise _refused(name, f"there is no device {device}")
        if len(handle) != HANDLE_BYTES:
            raise _refused(name, f"raw_handle must have {HANDLE_BYTES} bytes, not {len(handle)}")
        if not size:
            raise _refused(name, "byte_size must be at least 1")
        try:
            address = cuda.open(handle, device)
        except Invalid as error:
            raise _refused(name, error.message) from error
        region = CudaRegion(name, size, device, address, cuda)
        try:
            if size > cuda.extent(address, device):
                raise _refused(name, f"the allocation is not known to have {size} bytes")
            self._regions.add(region)
        except BaseException:
            region.close()
            raise


def no_gpu(name: str) -> Invalid:
    """What clients are told where there is no GPU."""
    return Invalid(
        f"failed to register CUDA shared memory region: '{shown(name)}', GPUs not supported", reason="NO_GPU"
    )


def _refused(name: str, why: str) -> Invalid:
    return Invalid(f"failed to register shared memory region '{name}': invalid args: {why}", reason="INVALID_REGION")
