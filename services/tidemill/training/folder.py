"""The data directory of a training service: its version, and its one owner."""

import fcntl
import os
from pathlib import Path

from tidemill.errors import FailedPrecondition, TidemillError, Unavailable

FORMAT = 1
"""Version of what lies in the directory; counted up when older code could not read it."""


class Folder:
    """A directory with the file `FORMAT`, locked while a process uses it: its scratch files are its own.

    Args:
        path: where it is; made when it is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.scratch = path / "scratch"
        self._lock = -1

    async def open(self) -> None:
        """Make it, lock it, and look at its version.

        Raises:
            FailedPrecondition: reason DATA_IN_USE, DATA_VERSION_UNKNOWN or DATA_VERSION_NEWER.
            Unavailable: reason DATA_UNREACHABLE.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_format()
        except BlockingIOError as error:
            await self.close()
            raise FailedPrecondition(
                f"another process uses the data directory {self.path}", reason="DATA_IN_USE"
            ) from error
        except OSError as error:
            await self.close()
            raise Unavailable(
                f"the data directory {self.path} cannot be used: {error.strerror}", reason="DATA_UNREACHABLE"
            ) from error
        except TidemillError:
            await self.close()
            raise

    async def close(self) -> None:
        """Give the lock back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _check_format(self) -> None:
        path = self.path / "FORMAT"
        if not path.exists():
            temporary = path.with_suffix(".new")
            temporary.write_text(f"{FORMAT}\n", encoding="ascii")
            temporary.replace(path)
            return
        text = path.read_text(encoding="ascii", errors="replace").strip()
        if not (text.isascii() and text.isdecimal()):
            raise FailedPrecondition(
                f"{path} does not hold a number: is this a data directory?", reason="DATA_VERSION_UNKNOWN"
            )
        if int(text) > FORMAT:
            raise FailedPrecondition(
                f"{self.path} has data version {text}, this release knows up to {FORMAT}: use a newer one",
                reason="DATA_VERSION_NEWER",
                metadata={"version": text, "supported": str(FORMAT)},
            )
