"""A write-ahead log on the shard's disk."""

import logging
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.errors import DataLoss, FailedPrecondition
from tidemill.parameters import frames
from tidemill.parameters.consistency.base import Consistency, Record
from tidemill.parameters.definition import Definition
from tidemill.parameters.durability.base import Beginning, Journal, Place
from tidemill.parameters.rounds import Entry
from tidemill.parameters.saved import Position, Saved
from tidemill.tensors.blocks import Array

LOG = logging.getLogger(__name__)
ITEM = np.dtype("<f4").itemsize


class Wal(Journal):
    """Every step is written, with the gradient that it is made with, before anybody can see it.

    Generation `n` begins with the whole state (`n.state`), after which come steps (`n.log`). When these have become
    long, the next one begins: its state is written beside the work, and steps go to its log at once. The generation
    before is kept as well: so the version before the latest is always there after a recovery, for workers that have not
    seen the latest; and a damaged state is no loss.

    A step reaches the operating system before it is acknowledged, and so outlives the process; with `fsync`, the disk,
    and so outlives the machine. Then steps that end meanwhile share one wait (group commit).
    """

    late = True

    def __init__(self, definition: Definition, place: Place | None) -> None:
        if place is None:
            raise FailedPrecondition(
                "this shard has no data directory: it cannot keep a log", reason="NO_DATA_DIRECTORY"
            )
        self._fsync = definition.durability.fsync
        self._folder = place.folder
        self._limit = max(place.limit, 4 * ITEM * definition.elements)
        self._log: frames.Writer | None = None
        self._writing: threading.Thread | None = None
        self._syncing = threading.Condition()
        self._ended = 0
        """Steps that were recorded."""
        self._synced = 0
        self._busy = False

    def begin(self, beginning: Beginning) -> None:
        """Write the first generation."""
        generation = beginning.saved.position.version
        _write_state(self._path(generation, "state"), beginning)
        self._log = frames.Writer(self._path(generation, "log"))

    @contextmanager
    def record(self, entries: Sequence[Entry], version: int, elements: int) -> Iterator[Record]:
        """Append a step to the log."""
        log = self._log
        if not entries or log is None:
            yield lambda _: None
            return
        steps = [(entry.worker, entry.attempt, entry.samples) for entry in entries]
        length = elements * ITEM if any(entry.samples for entry in entries) else 0
        log.begin({"version": version, "entries": steps}, length)
        yield lambda gradient: log.add(gradient.data.cast("B"))
        log.end()
        with self._syncing:
            self._ended += 1

    def sync(self) -> None:
        """Wait for the disk, if asked to; whoever comes first does so for all who have come."""
        if not self._fsync:
            return
        with self._syncing:
            wanted = self._ended
            while self._synced < wanted:
                if self._busy:
                    self._syncing.wait()
                    continue
                self._busy, reached, log = True, self._ended, self._log
                self._syncing.release()
                done = False
                try:
                    assert log is not None
                    log.sync()
                    done = True
                finally:
                    self._syncing.acquire()
                    self._busy = False
                    if done:
                        self._synced = max(self._synced, reached)
                    self._syncing.notify_all()

    def roll(self, now: Callable[[], Beginning]) -> None:
        """Begin a new generation when the log is long."""
        log = self._log
        if log is None or log.size < self._limit or (self._writing is not None and self._writing.is_alive()):
            return
        beginning = now()
        generation = beginning.saved.position.version
        if self._fsync:
            log.sync()  # the next log's first step must not be there when this one's last is not
        with self._syncing:
            while self._busy:
                self._syncing.wait()
            self._log = frames.Writer(self._path(generation, "log"))
            if self._fsync:
                self._synced = self._ended
        log.close()
        self._writing = threading.Thread(
            target=self._write, args=(generation, beginning), name="generation", daemon=True
        )
        self._writing.start()

    def _write(self, generation: int, beginning: Beginning) -> None:
        try:
            _write_state(self._path(generation, "state"), beginning)
            self._forget()
        except FileNotFoundError:
            return  # the group was deleted
        except OSError as error:
            # The generation before and both logs hold everything; the next roll tries again.
            LOG.error("the state of %s could not be written: %s", self._folder.name, error.strerror)

    def _forget(self) -> None:
        """Remove what is older than the last two generations."""
        kept = sorted(self._generations("state"))[-2:]
        for kind in ("state", "log"):
            for old in self._generations(kind):
                if old < kept[0]:
                    self._path(old, kind).unlink()

    def recover(self, way: Consistency) -> bytes | None:
        """Take the newest state that leaves a step to make, and make the steps after it."""
        for unfinished in self._folder.glob("*.new"):
            unfinished.unlink()
        states = sorted(self._generations("state"))
        if not states:
            return None
        found: tuple[Beginning, list[int]] | None = None
        for generation in reversed(states):
            try:
                beginning = _read_state(self._path(generation, "state"))
            except DataLoss as error:
                LOG.error("%s of %s: the one before is taken", error.message, self._folder.name)
                path = self._path(generation, "state")
                path.rename(path.with_suffix(".damaged"))
                continue
            found = beginning, [log for log in sorted(self._generations("log")) if log >= generation]
            if any(True for log in found[1] for _ in frames.read(self._path(log, "log"))):
                break
        if found is None:
            raise DataLoss(f"no state of {self._folder.name} is whole", reason="DAMAGED")
        self._replay(way, *found)
        self._forget()
        return found[0].digest

    def _replay(self, way: Consistency, beginning: Beginning, logs: Sequence[int]) -> None:
        position = beginning.saved.position
        way.restore(beginning.saved)
        self.samples = position.samples
        attempts = list(position.attempts or (0,) * way.definition.workers)
        last, end = position.version, 0
        for log in logs:
            end = 0
            for frame in frames.read(self._path(log, "log")):
                if frame.facts["version"] != way.version:
                    raise DataLoss(
                        f"the log goes from version {way.version} to {frame.facts['version']}", reason="DAMAGED"
                    )
                entries = [Entry(*entry) for entry in frame.facts["entries"]]
                way.replay(entries, frame.body if frame.body.size else None)
                self.samples += sum(entry.samples for entry in entries)
                for entry in entries:
                    attempts[entry.worker] = max(attempts[entry.worker], entry.attempt)
                end = frame.end
            last = log
        self.attempts = tuple(attempts)
        self._log = frames.Writer(self._path(last, "log"), end)

    def delete(self) -> None:
        """Remove the folder, at once: another group of this name may be made."""
        gone = self._folder.with_name(f".{self._folder.name}.{secrets.token_hex(8)}")
        self._folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def close(self) -> None:
        """Wait for a state that is being written."""
        if self._writing is not None:
            self._writing.join()
        with self._syncing:
            log, self._log = self._log, None
            while self._busy:
                self._syncing.wait()
        if log is not None:
            log.close()

    def _path(self, generation: int, kind: str) -> Path:
        return self._folder / f"{generation:015d}.{kind}"

    def _generations(self, kind: str) -> list[int]:
        return [int(path.stem) for path in self._folder.glob(f"*.{kind}")]


def _write_state(path: Path, beginning: Beginning) -> None:
    """Write a state so that it is there whole or not at all, whatever ends meanwhile."""
    saved = beginning.saved
    arrays: list[tuple[str, int, Array]] = [("", 0, saved.values)]
    for name, blocks in saved.state.items():
        arrays += [(name, at, array) for at, array in enumerate(blocks) if array is not None]
    facts = {
        "position": asdict(saved.position),
        "digest": beginning.digest.hex(),
        "states": {name: len(blocks) for name, blocks in saved.state.items()},
        "arrays": [(name, at, array.size) for name, at, array in arrays],
    }
    temporary = path.with_suffix(".new")
    writer = frames.Writer(temporary)
    try:
        writer.begin(facts, sum(array.nbytes for _, _, array in arrays))
        for _, _, array in arrays:
            if array.size:
                writer.add(np.ascontiguousarray(array, "<f4").data.cast("B"))
        writer.end()
        writer.sync()
    finally:
        writer.close()
    temporary.replace(path)


def _read_state(path: Path) -> Beginning:
    frame = next(iter(frames.read(path)), None)
    if frame is None:
        raise DataLoss(f"{path.name} is not whole", reason="DAMAGED")
    facts: Mapping[str, Any] = frame.facts
    state: dict[str, list[Array | None]] = {name: [None] * count for name, count in facts["states"].items()}
    values: Array = frame.body[:0]
    start = 0
    for name, at, size in facts["arrays"]:
        array = frame.body[start : start + size].copy()
        start += size
        if name:
            state[name][at] = array
        else:
            values = array
    position: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in facts["position"].items()
    }
    return Beginning(
        saved=Saved(position=Position(**position), values=values, state=state), digest=bytes.fromhex(facts["digest"])
    )
