"""Stands in for CUDA where there is no GPU: see `cudastandin.c`. Needs nothing but a C compiler and Python."""

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".c")
RUNTIME, DRIVER = "libcudart.so.12", "libcuda.so.1"
TO_DEVICE, TO_HOST = 1, 2


def compile_standin(folder: Path) -> Path:
    """A folder for the loader's path in which both libraries of CUDA are the stand-in. Fails without a compiler."""
    folder.mkdir()
    warnings = ("-Wall", "-Wextra", "-Werror")
    target = ("-o", str(folder / RUNTIME))
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", *warnings, *target, str(SOURCE), "-pthread", "-lrt"], check=True, timeout=60
    )
    (folder / DRIVER).symlink_to(RUNTIME)
    return folder


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 64)]


class DeviceMemory:
    """An allocation of this process on a device.

    Args:
        library: the stand-in, loaded.
        size: bytes.
        device: its number.
    """

    def __init__(self, library: Any, size: int, device: int) -> None:
        self._library = library
        self._size = size
        self.device = device
        self._address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(self._address), ctypes.c_size_t(size))

    @property
    def handle(self) -> bytes:
        """What other processes open it by."""
        handle = Handle()
        self._call("cudaIpcGetMemHandle", ctypes.byref(handle), self._address)
        return bytes(handle)

    def put(self, data: bytes) -> None:
        """Fill its beginning."""
        self._call("cudaMemcpy", self._address, data, ctypes.c_size_t(len(data)), TO_DEVICE)
        self._call("cudaStreamSynchronize", None)

    def get(self) -> bytes:
        """All of it."""
        data = ctypes.create_string_buffer(self._size)
        self._call("cudaMemcpy", data, self._address, ctypes.c_size_t(self._size), TO_HOST)
        return data.raw

    def free(self) -> None:
        """Give it back."""
        self._call("cudaFree", self._address)

    def _call(self, name: str, *arguments: Any) -> None:
        for function, given in (("cudaSetDevice", (self.device,)), (name, arguments)):
            assert getattr(self._library, function)(*given) == 0, name


@contextmanager
def device_memory(folder: Path, size: int, device: int = 0) -> Iterator[DeviceMemory]:
    """An allocation on a device of the stand-in in `folder`."""
    made = DeviceMemory(ctypes.CDLL(str(folder / RUNTIME)), size, device)
    try:
        yield made
    finally:
        made.free()


def opened(process: int) -> int:
    """How often a process has allocations of the stand-in in its memory: its own, and those that it has opened."""
    maps = Path(f"/proc/{process}/maps").read_text()
    return maps.count("/cuda-standin-")
