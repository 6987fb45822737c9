"""Watches the worker processes of this machine: who has which rank of which job."""

import re
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_KEEPER = re.compile(rb"/scratch/([^/\0]+)/keeper-(\d+)\.(\d+)\0")


class Ranks:
    """Looks at all processes again and again, for as long as a block runs.

    Args:
        folder: data directory of the training service whose workers are meant.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder).encode()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ranks")
        self.twice: set[tuple[str, int]] = set()
        """Job and rank of those that had two live processes at once."""
        self.looks = 0

    def now(self) -> list[tuple[str, int, int, int]]:
        """Job, rank, attempt and process id of every worker that runs now."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (keeper := self._keeper(entry)):
                job, rank, attempt = keeper
                children = _read(entry / "task" / entry.name / "children").split()
                found += [(job, rank, attempt, int(child)) for child in children if _lives(int(child))]
        return found

    def _keeper(self, entry: Path) -> tuple[str, int, int] | None:
        command = _read(entry / "cmdline")
        if self._folder not in command or not (matched := _KEEPER.search(command)):
            return None
        return matched[1].decode(), int(matched[2]), int(matched[3])

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            seen: set[tuple[str, int]] = set()
            for job, rank, _, _ in self.now():
                if (job, rank) in seen:
                    self.twice.add((job, rank))
                seen.add((job, rank))
            self.looks += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _lives(pid: int) -> bool:
    status = _read(Path(f"/proc/{pid}/status"))
    return bool(status) and b"\nState:\tZ" not in status
