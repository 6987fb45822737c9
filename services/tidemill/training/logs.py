"""The log of each job: numbered lines in a file, bounded, readable from any line on while it grows."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tidemill import names
from tidemill.clock import Clock

LOG = logging.getLogger(__name__)
SERVICE = -1
"""Rank under which the training service itself writes."""
MAX_TEXT = 8192
"""Longest line in characters."""
_STRIDE = 256
_OWN_LINES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a log; `time` in seconds since the epoch."""

    line: int
    time: float
    rank: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of a job's output is kept."""

    lines: int = 200_000
    bytes: int = 64 << 20


class JobLog:
    """The log of one job, in the file `path`: `<milliseconds> <rank> <text>` a line.

    A line that a killed writer has left unfinished does not count, and the next one takes its place. A disk that is
    full costs lines, never the job.
    """

    def __init__(self, path: Path, clock: Clock, limits: Limits) -> None:
        self._path = path
        self._clock = clock
        self._limits = limits
        self._offsets: list[int] = []
        """Where every `_STRIDE`th line begins."""
        self._size = 0
        self._full = False
        self._own = 0
        """Lines of the service itself since the log was full."""
        self._waiting: set[asyncio.Event] = set()
        self.lines = 0
        """Number of lines so far."""
        self._file: BinaryIO | None = None
        self.is_closed = False
        """Whether no more is written through this object."""
        if path.exists():
            self._scan()

    def _scan(self) -> None:
        with self._path.open("rb") as file:
            for raw in file:
                if raw.endswith(b"\n"):
                    self._count(len(raw))

    def _count(self, size: int) -> None:
        if self.lines % _STRIDE == 0:
            self._offsets.append(self._size)
        self.lines += 1
        self._size += size

    def append(self, rank: int, text: str) -> None:
        """Add `text`, one entry for each of its lines; beyond the limits only the service itself is heard."""
        for part in text.split("\n"):
            if self._room(rank):
                self._write(rank, part[:MAX_TEXT])
        for event in self._waiting:
            event.set()

    def _room(self, rank: int) -> bool:
        over = self.lines >= self._limits.lines or self._size >= self._limits.bytes
        if not over:
            return True
        if not self._full:
            self._full = True
            self._write(SERVICE, "the log is full: further lines of workers are not kept")
        self._own += rank == SERVICE
        return rank == SERVICE and self._own <= _OWN_LINES

    def _write(self, rank: int, text: str) -> None:
        if self.is_closed:
            return
        raw = f"{int(self._clock.now() * 1000)} {rank} {text}\n".encode("utf-8", "replace")
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = self._path.open("ab", buffering=0)
                self._file.truncate(self._size)
            if self._file.write(raw) == len(raw):
                self._count(len(raw))
            else:
                self._file.truncate(self._size)
        except OSError as error:
            LOG.warning("a line of a job's log is lost: %s", error.strerror, extra={"path": str(self._path)})

    async def read(self, first: int, most: int = 1000) -> list[Line]:
        """At most `most` lines from the line `first` on; none at the end."""
        if first >= self.lines:
            return []
        return await asyncio.to_thread(self._read, first, min(most, self.lines - first))

    def _read(self, first: int, most: int) -> list[Line]:
        found = []
        with self._path.open("rb") as file:
            file.seek(self._offsets[first // _STRIDE])
            for number in range(first - first % _STRIDE, first + most):
                raw = file.readline()
                if number >= first:
                    found.append(parse(number, raw))
        return found

    @contextmanager
    def grown(self) -> Iterator[asyncio.Event]:
        """An event of one's own that is set whenever there are new lines, and at the end."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            yield event
        finally:
            self._waiting.discard(event)

    def close(self) -> None:
        """Write no more; it can still be read."""
        self.is_closed = True
        if self._file is not None:
            self._file.close()
            self._file = None
        for event in self._waiting:
            event.set()


def parse(number: int, raw: bytes) -> Line:
    """The line of this number in a log file."""
    time, _, rest = raw.rstrip(b"\n").decode("utf-8", "replace").partition(" ")
    rank, _, text = rest.partition(" ")
    return Line(line=number, time=int(time) / 1000, rank=int(rank), text=text)


class LogDirectory:
    """The logs of all jobs, each in a file named by the job's uid."""

    def __init__(self, directory: Path, clock: Clock, limits: Limits) -> None:
        self._directory = directory
        self._clock = clock
        self._limits = limits
        self._open: dict[str, JobLog] = {}

    def path(self, uid: str) -> Path:
        """Where the log of a job lies."""
        return self._directory / f"{names.check(uid)}.log"

    async def open(self, uid: str) -> JobLog:
        """The log of a job, to write to: the same object until it is closed."""
        if uid not in self._open:
            log = await asyncio.to_thread(JobLog, self.path(uid), self._clock, self._limits)
            self._open.setdefault(uid, log)
        return self._open[uid]

    async def find(self, uid: str) -> JobLog | None:
        """The log of a job, to read, if it is kept here."""
        if uid in self._open:
            return self._open[uid]
        if not self.path(uid).exists():
            return None
        return await asyncio.to_thread(JobLog, self.path(uid), self._clock, self._limits)

    def close(self, uid: str) -> None:
        """Write no more to the log of a job."""
        log = self._open.pop(uid, None)
        if log is not None:
            log.close()

    async def delete(self, uid: str) -> None:
        """Delete the log of a job."""
        self.close(uid)
        await asyncio.to_thread(self.path(uid).unlink, missing_ok=True)

    def close_all(self) -> None:
        """Close every log."""
        for uid in list(self._open):
            self.close(uid)
