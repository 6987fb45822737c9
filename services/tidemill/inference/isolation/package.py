"""The files of a model, on their way to its processes."""

import os
from collections.abc import Mapping


class Package:
    """Files in memory that has no name and is not mapped here: every process, also one started later, gets it.

    Args:
        files: by path.

    Raises:
        OSError: there is no memory.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.descriptor = os.memfd_create("tidemill-model", os.MFD_CLOEXEC)
        self.entries: list[tuple[str, int, int]] = []
        position = 0
        for path, data in files.items():
            self.entries.append((path, position, len(data)))
            left = memoryview(data)
            while left:
                left = left[os.write(self.descriptor, left) :]
            position += len(data)

    def close(self) -> None:
        """Free the memory, once no process has it any more."""
        os.close(self.descriptor)


def unpack(descriptor: int, entries: list[list[str | int]]) -> dict[str, bytes]:
    """The files in a package; closes the descriptor."""
    files = {}
    with os.fdopen(descriptor, "rb") as stream:
        for path, offset, size in entries:
            stream.seek(int(offset))
            files[str(path)] = stream.read(int(size))
    return files
