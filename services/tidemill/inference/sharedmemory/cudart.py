"""CUDA's runtime library, by the few of its functions that shared memory needs.

Nothing of it is needed to install or to start: it is looked for when a client first asks, and a host without it, or
without a GPU, is no error.
"""

import ctypes
import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tidemill.errors import Invalid

LOG = logging.getLogger(__name__)
HANDLE_BYTES = 64
"""Length of a `cudaIpcMemHandle_t`."""
DRIVER = "libcuda.so.1"
_NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
"""The runtime library on the loader's path, the newest first."""
_PACKAGES = (("nvidia", "*/lib/libcudart.so*"), ("torch", "lib/libcudart*.so*"))
"""Python packages that bring it, and where in them."""
_LAZY_PEER_ACCESS = 1
_TO_DEVICE, _TO_HOST = 1, 2


class Handle(ctypes.Structure):
    """A `cudaIpcMemHandle_t`, which is passed by value."""

    _fields_ = [("reserved", ctypes.c_char * HANDLE_BYTES)]


_Address = ctypes.c_void_p
_FUNCTIONS: dict[str, list[Any]] = {
    "cudaGetDeviceCount": [ctypes.POINTER(ctypes.c_int)],
    "cudaSetDevice": [ctypes.c_int],
    "cudaIpcOpenMemHandle": [ctypes.POINTER(_Address), Handle, ctypes.c_uint],
    "cudaIpcCloseMemHandle": [_Address],
    "cudaMemcpy": [_Address, _Address, ctypes.c_size_t, ctypes.c_int],
    "cudaStreamSynchronize": [_Address],
    "cudaGetLastError": [],
}
_RANGE = [ctypes.POINTER(_Address), ctypes.POINTER(ctypes.c_size_t), _Address]


class Cuda:
    """The GPUs of this host. Safe to use from any thread.

    Each call names its device first, as CUDA keeps the current one for each thread.

    Args:
        runtime: name or path of the runtime library.
        driver: the same of the driver's.

    Raises:
        OSError: one of them cannot be loaded.
        AttributeError: one lacks a function.
    """

    def __init__(self, runtime: str, driver: str = DRIVER) -> None:
        library = ctypes.CDLL(runtime)
        self._calls = {name: _function(library, name, arguments) for name, arguments in _FUNCTIONS.items()}
        self._text = library.cudaGetErrorString
        self._text.argtypes, self._text.restype = [ctypes.c_int], ctypes.c_char_p
        # The runtime does not tell how large an allocation is; the driver does.
        self._range = _function(ctypes.CDLL(driver), "cuMemGetAddressRange_v2", _RANGE)

    @property
    def devices(self) -> int:
        """How many GPUs there are; 0 also when the driver does not work."""
        count = ctypes.c_int()
        return count.value if self._done("cudaGetDeviceCount", ctypes.byref(count)) else 0

    def open(self, handle: bytes, device: int) -> int:
        """The address here of another process's allocation.

        Args:
            handle: `HANDLE_BYTES` bytes.
            device: number of the GPU.

        Raises:
            Invalid: it cannot be opened.
        """
        address = _Address()
        opened = self._done("cudaSetDevice", device) and self._done(
            "cudaIpcOpenMemHandle", ctypes.byref(address), Handle.from_buffer_copy(handle), _LAZY_PEER_ACCESS
        )
        if not opened or not address.value:
            raise Invalid("the handle cannot be opened on this device", reason="INVALID_HANDLE")
        return address.value

    def extent(self, address: int, device: int) -> int:
        """How many bytes the allocation has from an address on; 0 when that is not to be found out."""
        base, size = _Address(), ctypes.c_size_t()
        if not self._done("cudaSetDevice", device):
            return 0
        error = self._range(ctypes.byref(base), ctypes.byref(size), address)
        if error:
            LOG.info("cuMemGetAddressRange failed", extra={"error": error})
            return 0
        return max(0, (base.value or 0) + size.value - address)

    def read(self, address: int, size: int, device: int) -> bytes | None:
        """A copy of bytes of the GPU; None when they cannot be read."""
        data = bytearray(size)
        here = (ctypes.c_char * size).from_buffer(data) if size else None
        done = self._done("cudaSetDevice", device) and self._done("cudaMemcpy", here, address, size, _TO_HOST)
        return bytes(data) if done else None

    def write(self, address: int, data: bytes, device: int) -> bool:
        """Copy bytes to the GPU; whether they are there.

        A copy from ordinary memory returns when the bytes are on their way: other processes see them once the stream
        is done.
        """
        return (
            self._done("cudaSetDevice", device)
            and self._done("cudaMemcpy", address, data, len(data), _TO_DEVICE)
            and self._done("cudaStreamSynchronize", None)
        )

    def close(self, address: int, device: int) -> None:
        """Let go of an opened allocation."""
        if self._done("cudaSetDevice", device):
            self._done("cudaIpcCloseMemHandle", address)

    def _done(self, name: str, *arguments: Any) -> bool:
        error = self._calls[name](*arguments)
        if error:
            # Else the next to look for an error on this thread, a runtime of models perhaps, would find this one.
            self._calls["cudaGetLastError"]()
            LOG.info("%s failed", name, extra={"error": self._text(error).decode("utf-8", "replace")})
        return not error


def find() -> Cuda | None:
    """CUDA where there is a GPU; None elsewhere."""
    for library in _libraries():
        try:
            found = Cuda(library)
        except (OSError, AttributeError):
            continue
        if found.devices:  # a library that is too new for the driver finds none
            return found
    return None


def _libraries() -> Iterator[str]:
    yield from _NAMES
    for package, pattern in _PACKAGES:
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield from map(str, sorted(Path(folder).glob(pattern), reverse=True))


def _function(library: ctypes.CDLL, name: str, arguments: list[Any]) -> Callable[..., int]:
    function = library[name]
    function.argtypes, function.restype = arguments, ctypes.c_int
    return function
