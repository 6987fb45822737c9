"""POSIX shared memory of clients on this host.

Memory is never mapped: a client that shortens an object would so end the server with a signal when it is next touched.
Bytes are copied through the file descriptor, which only comes back short.
"""

import os
import re
import stat

from tidemill.errors import Invalid
from tidemill.inference.inputs import shown
from tidemill.inference.sharedmemory.regions import Region, Regions

FOLDER = "/dev/shm"
OWN = "tidemill"
"""Beginning of the keys of this server's own objects, which no client may name."""
_KEY = re.compile(r"/?[A-Za-z0-9_.-]{1,254}")


class SystemRegion(Region):
    """A part of a POSIX shared memory object.

    Args:
        name, size: see `Region`.
        key: name of the object.
        offset: where the region begins in it.
        descriptor: of the object; closed with the region.
    """

    kind = "system"

    def __init__(self, name: str, size: int, key: str, offset: int, descriptor: int) -> None:
        super().__init__(name, size)
        self.key = key
        self.offset = offset
        self._descriptor = descriptor

    def read(self, offset: int, size: int) -> bytes:
        """A copy of these bytes. Raises Invalid."""
        self._check_there(offset + size)
        parts: list[bytes] = []
        while (left := size - sum(map(len, parts))) > 0:
            part = os.pread(self._descriptor, left, self.offset + offset + size - left)
            if not part:
                raise self._gone()
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` there. Raises Invalid."""
        self._check_there(offset + len(data))
        view = memoryview(data)
        try:
            while len(view):
                view = view[os.pwrite(self._descriptor, view, self.offset + offset + len(data) - len(view)) :]
        except OSError as error:
            raise self._gone() from error

    def close(self) -> None:
        """Let go of the object."""
        os.close(self._descriptor)

    def _check_there(self, end: int) -> None:
        if os.fstat(self._descriptor).st_size < self.offset + end:
            raise self._gone()

    def _gone(self) -> Invalid:
        return Invalid(
            f"shared memory region '{self.name}' is shorter than it was when it was registered", reason="REGION_GONE"
        )


class SystemMemory:
    """Registers regions of POSIX shared memory.

    Args:
        regions: where they are kept.
        folder: where the system keeps such objects.
    """

    def __init__(self, regions: Regions, folder: str = FOLDER) -> None:
        self._regions = regions
        self._folder = folder

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Register `size` bytes from `offset` on of the object `key` under `name`.

        Raises:
            Invalid: the key is wrong, there is no such object, or it has not as many bytes.
            AlreadyExists: the name is taken.
            Exhausted: there are too many regions.
        """
        self._regions.check_new(name, offset, size)
        plain = key.removeprefix("/")
        if not _KEY.fullmatch(key) or ".." in plain or plain == ".":
            raise Invalid(
                f"Unable to open shared memory region: '{shown(key)}': a key is one name of at most 254 letters, "
                "digits, '_', '.' and '-', behind one '/' or none",
                reason="INVALID_KEY",
            )
        if plain.lower().startswith(OWN):
            raise Invalid(
                f"cannot register shared memory region '{name}': keys that begin with '{OWN}' are reserved",
                reason="INVALID_KEY",
            )
        descriptor = self._open(plain, key)
        region = SystemRegion(name, size, key, offset, descriptor)
        try:
            if not size or offset + size > os.fstat(descriptor).st_size:
                raise Invalid(
                    f"failed to register shared memory region '{name}': invalid args: the object does not have "
                    f"{size} bytes from {offset} on",
                    reason="INVALID_REGION",
                )
            self._regions.add(region)
        except BaseException:
            region.close()
            raise

    def _open(self, plain: str, key: str) -> int:
        problem = Invalid(f"Unable to open shared memory region: '{key}'", reason="OBJECT_NOT_FOUND")
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # Not blocking: a pipe of this name would be waited for.
                flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
                descriptor = os.open(plain, flags, dir_fd=folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise problem from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise problem
        return descriptor
