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
    """The log of one job, in the file `path`: `<milliseconds> <rank>/<attempt>/<position> <text>` a line.

    The position is that of the launcher behind this line in the output of this attempt: as it is stored with the line,
    each line is there once, however often the service is killed. Lines of the service itself have only the rank.

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
        self._positions: dict[tuple[int, int], int] = {}
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
                    rank, attempt, position = _origin(raw)
                    if attempt >= 0:
                        self._positions[rank, attempt] = position
        self._full = self._is_over

    def _count(self, size: int) -> None:
        if self.lines % _STRIDE == 0:
            self._offsets.append(self._size)
        self.lines += 1
        self._size += size

    @property
    def is_whole(self) -> bool:
        """Whether it knows all that lies in its file."""
        return self._path.exists() and self._path.stat().st_size == self._size

    def position(self, rank: int, attempt: int) -> int:
        """Position behind the last line that is kept of a worker's output; 0 = none is."""
        return self._positions.get((rank, attempt), 0)

    def append(self, rank: int, text: str, *, attempt: int = -1, position: int = 0) -> None:
        """Add `text`, one entry for each of its lines; beyond the limits only the service itself is heard.

        Args:
            rank: who says it.
            text: what.
            attempt: of a worker whose output this is a line of; -1 = nobody's output.
            position: behind this line, in that output.
        """
        for part in text.split("\n"):
            if self._room(rank):
                self._write(f"{rank}/{attempt}/{position}" if attempt >= 0 else str(rank), part[:MAX_TEXT])
        for event in self._waiting:
            event.set()

    def _room(self, rank: int) -> bool:
        if not self._is_over:
            return True
        if not self._full:
            self._full = True
            self._write(str(SERVICE), "the log is full: further lines of workers are not kept")
        self._own += rank == SERVICE
        return rank == SERVICE and self._own <= _OWN_LINES

    @property
    def _is_over(self) -> bool:
        return self.lines >= self._limits.lines or self._size >= self._limits.bytes

    def _write(self, origin: str, text: str) -> None:
        if self.is_closed:
            return
        raw = f"{int(self._clock.now() * 1000)} {origin} {text}\n".encode("utf-8", "replace")
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
    origin, _, text = rest.partition(" ")
    return Line(line=number, time=int(time) / 1000, rank=int(origin.partition("/")[0]), text=text)


def _origin(raw: bytes) -> tuple[int, int, int]:
    """Rank, attempt and position of a line; attempt -1, when it is nobody's output."""
    rank, *rest = raw.split(b" ", 2)[1].split(b"/")
    attempt, position = rest or (b"-1", b"0")
    return int(rank), int(attempt), int(position)


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

    def is_current(self, uid: str, log: JobLog) -> bool:
        """Whether `log` knows all lines of a job's log: it is written to, or nobody has written since it was read."""
        return log is self._open[uid] if uid in self._open else not log.is_closed and log.is_whole

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
