"""The data directory of a service process: its version, and its one owner."""

import fcntl
import os
from pathlib import Path

from tidemill import errors


class DataDirectory:
    """A directory that holds the file `FORMAT` and is locked while a process uses it.

    Args:
        path: where it is; made when it is opened.
        version: of what this code writes there; counted up when older code could not read it.
    """

    def __init__(self, path: Path, version: int) -> None:
        self.path = path
        self._version = version
        self._lock: int | None = None

    def open(self) -> None:
        """Make the directory if it is not there, and lock it.

        Raises:
            FailedPrecondition: with reason DATA_VERSION_NEWER, DATA_VERSION_UNKNOWN or DATA_IN_USE.
            Unavailable: with reason DATA_UNREACHABLE.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take()
            self._check_format()
        except OSError as error:
            self.close()
            raise errors.Unavailable(
                f"the data directory {self.path} cannot be used: {error.strerror}", reason="DATA_UNREACHABLE"
            ) from error
        except errors.TidemillError:
            self.close()
            raise

    def _take(self) -> None:
        self._lock = os.open(self.path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.FailedPrecondition(
                f"another process uses the data directory {self.path}", reason="DATA_IN_USE"
            ) from error

    def _check_format(self) -> None:
        path = self.path / "FORMAT"
        try:
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            temporary = path.with_suffix(".new")
            temporary.write_text(f"{self._version}\n", encoding="ascii")
            temporary.replace(path)
            return
        except UnicodeDecodeError:
            text = "?"
        if not text.isascii() or not text.isdigit():
            raise errors.FailedPrecondition(
                f"{path} does not hold a number: is this a data directory?", reason="DATA_VERSION_UNKNOWN"
            )
        if int(text) > self._version:
            raise errors.FailedPrecondition(
                f"{self.path} has data version {text}, this release knows up to {self._version}: use a newer one",
                reason="DATA_VERSION_NEWER",
                metadata={"version": text, "supported": str(self._version)},
            )

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
