"""A log file that never grows beyond a limit."""

from pathlib import Path
from typing import IO


class LogFile:
    """Lines of text in `path`; when it is full it is renamed to `path.1`, over the one before.

    Args:
        path: the file, continued when it exists.
        limit: most bytes of each of the two files; a longer line is cut.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._file: IO[bytes] = path.open("ab", buffering=0)

    def write(self, line: str) -> None:
        """Append a line.

        Raises:
            OSError: the disk is full, or the directory is gone.
        """
        raw = line.encode(errors="replace")[: self._limit - 1] + b"\n"
        if self._file.tell() + len(raw) > self._limit:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = self._path.open("ab", buffering=0)
        self._file.write(raw)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
