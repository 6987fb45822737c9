"""Groups with a log: whatever moment their shard ends at, what was acknowledged is there again, once."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from opentelemetry import trace

from tests.support.clock import ManualClock
from tests.support.wait import until
from tidemill import errors
from tidemill.parameters import convert
from tidemill.parameters.catalogue import check
from tidemill.parameters.consistency.base import Wish
from tidemill.parameters.definition import Definition, Durability, Tensor, Way
from tidemill.parameters.group import Group
from tidemill.parameters.groups import Groups, Limits
from tidemill.parameters.rounds import Header
from tidemill.parameters.store import Code, Store
from tidemill.tensors.blocks import Array, Block

ELEMENTS = 12
BLOCKS = (Block(0, 0, 5), Block(1, 5, 7))
RECORD = 200
"""About the size of a step in the log, in bytes."""


def definition(
    way: Way | None = None, *, workers: int = 2, optimizer: str = "adam", fsync: bool = False, mode: str = "wal"
) -> Definition:
    made = Definition(
        name="groups/g",
        tensors=(Tensor("w", (ELEMENTS,)),),
        blocks=BLOCKS,
        optimizer=check(optimizer, {}),
        workers=workers,
        shard=0,
        shards=1,
        consistency=way or Way(),
        durability=Durability(mode=mode, fsync=fsync),
    )
    return convert.decode(convert.encode(made))


class Shard:
    """The groups of one shard, which can end as by SIGKILL: nothing is finished, and the disk has all that is left."""

    def __init__(self, folder: Path, limit: int = 1 << 20) -> None:
        self._folder = folder
        self._limit = limit
        self._stores: list[Store] = []
        self.groups: Groups
        self.start()

    def start(self) -> None:
        store = Store(self._folder, Code(encode=convert.encode, decode=convert.decode), self._limit)
        store.open()
        self._stores.append(store)
        limits = Limits(bytes=1 << 30, groups=4, waiting=8, optimizer_threads=1)
        self.groups = Groups(limits, clock=ManualClock(), tracer=trace.NoOpTracer(), closed=lambda _: None, store=store)
        self.groups.recover()

    def kill(self, cut: int = 0) -> None:
        """End; of what the last step has written, the last bytes may be missing."""
        self._stores[-1].close()
        old = self.groups
        kept = self._folder.with_name("kept")
        self._folder.rename(kept)  # at this moment, whatever is being written
        old.stop()
        kept.rename(self._folder)
        if cut:
            log = sorted(self._folder.glob("groups/g/*.log"))[-1]
            os.truncate(log, max(log.stat().st_size - cut, 0))
        self.start()

    @property
    def group(self) -> Group:
        return self.groups.get("groups/g")

    def end(self) -> None:
        self.groups.stop()
        self._stores[-1].close()

    def files(self, kind: str) -> list[Path]:
        return sorted(self._folder.glob(f"groups/g/*.{kind}"))


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    made = Shard(tmp_path / "shard", 5 * RECORD)
    yield made
    made.end()


def gradient(worker: int, step: int) -> Array:
    return np.random.default_rng((worker, step)).standard_normal(ELEMENTS, dtype=np.float32)


def blocks(values: Array) -> list[tuple[int, bytes]]:
    return [(block.index, values[block.slice].tobytes()) for block in BLOCKS]


def push(group: Group, worker: int, step: int, attempt: int = 0, samples: int = 1) -> bool:
    """Whether it was a repetition."""
    header = Header(worker=worker, step=step, attempt=attempt, samples=samples)
    return group.push(header, blocks(gradient(worker, step)) if samples else []).duplicate


def values(group: Group, version: int = -1) -> Array:
    with group.reading(Wish(version=version), lambda: False) as reading:
        return np.concatenate([part.copy() for _, part, _ in reading.blocks])


def begin(shard: Shard, made: Definition) -> Group:
    group = shard.groups.create(made)
    group.load(blocks(np.arange(ELEMENTS, dtype=np.float32)))
    return group


def everything(group: Group) -> tuple[object, ...]:
    with group.state(parameters=True) as saved:
        state = {name: [None if a is None else a.tolist() for a in arrays] for name, arrays in saved.state.items()}
        return saved.position, saved.values.tolist(), state


@pytest.mark.parametrize("way", [Way(mode="asp"), Way(mode="ssp", staleness=3)], ids=str)
@pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
def test_whatever_was_acknowledged_is_there_after_any_end(shard: Shard, way: Way, optimizer: str) -> None:
    chance = random.Random(3)
    group = begin(shard, definition(way, optimizer=optimizer))
    clocks, before = [0, 0], everything(group)
    for _ in range(120):
        worker = min((0, 1), key=lambda one: clocks[one]) if chance.random() < 0.3 else chance.randrange(2)
        if clocks[worker] - min(clocks) >= 3:
            continue
        before = everything(group)
        assert not push(group, worker, clocks[worker], samples=chance.choice((0, 1, 3)))
        clocks[worker] += 1
        if chance.random() < 0.25:
            after = everything(group)
            cut = chance.choice((0, 0, 1, 30))
            shard.kill(cut)
            group = shard.group
            if cut and everything(group) != after:
                # The last step was not finished when the shard ended, and so not acknowledged: it is as if never begun.
                assert everything(group) == before
                clocks[worker] -= 1
                continue
            assert everything(group) == after
            assert push(group, worker, clocks[worker] - 1), "applied twice"
            assert everything(group) == after
    assert len(shard.files("state")) <= 3, "states are never forgotten"


@pytest.mark.parametrize("arrival_order", [False, True])
def test_rounds_survive_with_the_version_before_the_latest(shard: Shard, arrival_order: bool) -> None:
    group = begin(shard, definition(Way(arrival_order=arrival_order), workers=1))
    twin = Shard(shard._folder.with_name("twin"))
    other = begin(twin, definition(Way(), workers=1, mode="none"))
    last = values(other)
    for step in range(30):
        assert not push(group, 0, step, samples=step % 4)
        previous, _ = last, push(other, 0, step, samples=step % 4)
        last = values(other)
        shard.kill()
        group = shard.group
        np.testing.assert_array_equal(values(group, step + 1), last)
        np.testing.assert_array_equal(values(group, step), previous)
        assert push(group, 0, step)
    assert group.status().samples == sum(step % 4 for step in range(30))
    twin.end()


def test_a_push_that_waits_for_others_is_acknowledged_when_its_round_has_closed(shard: Shard) -> None:
    group = begin(shard, definition())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(push, group, 0, 0)
        wait(lambda: group.status().arrived == (0,))
        again = pool.submit(push, group, 0, 0)
        wait(lambda: group.status().members[0].waits_for != "")
        assert not any(one.done() for one in (first, again))
        assert not push(group, 1, 0)
        assert (first.result(10), again.result(10)) == (False, True)


def test_a_push_that_nobody_waits_for_any_more_ends(shard: Shard) -> None:
    group = begin(shard, definition())
    gone = threading.Event()
    header = Header(worker=0, step=0, attempt=0, samples=1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(group.push, header, blocks(gradient(0, 0)), lambda: not gone.is_set())
        wait(lambda: group.status().arrived == (0,))
        gone.set()
        group.wake()
        with pytest.raises(errors.Cancelled):
            first.result(10)
    assert not push(group, 1, 0), "it counts all the same"
    assert group.status().version == 1


def test_a_worker_that_was_replaced_ends_its_wait_and_stays_fenced(shard: Shard) -> None:
    group = begin(shard, definition())
    with ThreadPoolExecutor(2) as pool:
        old = pool.submit(push, group, 0, 0)
        wait(lambda: group.status().arrived == (0,))
        new = pool.submit(push, group, 0, 0, 1)
        with pytest.raises(errors.Stale):
            old.result(10)
        push(group, 1, 0)
        assert not new.result(10)
    shard.kill()
    with pytest.raises(errors.Stale):
        push(shard.group, 0, 1, attempt=0)


def test_a_group_without_values_survives(shard: Shard) -> None:
    shard.groups.create(definition())
    shard.kill()
    assert not shard.group.status().ready
    begin(shard, definition())
    shard.kill()
    shard.group.load(blocks(np.arange(ELEMENTS, dtype=np.float32)))
    with pytest.raises(errors.FailedPrecondition):
        shard.group.load(blocks(np.zeros(ELEMENTS, np.float32)))


def test_a_deleted_group_is_gone_and_can_be_made_anew(shard: Shard) -> None:
    group = begin(shard, definition(workers=1))
    push(group, 0, 0)
    shard.groups.delete("groups/g")
    assert values(begin(shard, definition(workers=1))).tolist() == list(range(ELEMENTS))
    shard.groups.delete("groups/g")
    shard.kill()
    with pytest.raises(errors.NotFound):
        shard.groups.get("groups/g")
    assert list((shard._folder / "groups").iterdir()) == []


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_damaged_log_is_refused_and_said_so(shard: Shard, at: float) -> None:
    group = begin(shard, definition(workers=1))
    for step in range(4):
        push(group, 0, step)
    (log,) = shard.files("log")
    data = bytearray(log.read_bytes())
    data[int(at * len(data))] ^= 8
    log.write_bytes(data)
    shard.kill()
    with pytest.raises(errors.DataLoss, match="damaged"):
        push(shard.group, 0, 4)
    with pytest.raises(errors.DataLoss):
        values(shard.group)
    shard.groups.delete("groups/g")
    assert not begin(shard, definition(workers=1)).status().version


def test_a_damaged_state_is_replaced_by_the_one_before(shard: Shard) -> None:
    group = begin(shard, definition(workers=1))
    for step in range(20):
        push(group, 0, step)
    wait(lambda: len(shard.files("state")) == 2)
    before = everything(group)
    newest = shard.files("state")[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    shard.kill()
    assert everything(shard.group) == before


def test_steps_wait_for_the_disk_together(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = 6
    group = begin(shard, definition(Way(mode="asp"), workers=workers, fsync=True))
    go, waits = threading.Event(), []

    def slow(file: int) -> None:
        waits.append(file)
        go.wait(10)

    monkeypatch.setattr(os, "fdatasync", slow)
    with ThreadPoolExecutor(workers) as pool:
        pushes = [pool.submit(push, group, worker, 0) for worker in range(workers)]
        wait(lambda: len(waits) == 1 and everything(group)[0].version == workers)  # type: ignore[attr-defined]
        assert not any(one.done() for one in pushes), "acknowledged before the disk had it"
        go.set()
        assert [one.result(10) for one in pushes] == [False] * workers
    assert len(waits) == 2


def test_a_disk_that_fails_ends_the_group_and_loses_nothing(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    group = begin(shard, definition(workers=1))
    push(group, 0, 0)
    after = everything(group)
    write: Callable[..., int] = os.pwrite
    full = OSError(28, "No space left on device")

    def failing(file: int, data: bytes, at: int) -> int:
        if len(data) >= 4 * BLOCKS[1].elements:
            raise full
        return write(file, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        with pytest.raises(OSError, match="No space"):
            push(group, 0, 1)
    with pytest.raises(errors.Internal):
        push(group, 0, 1)
    shard.kill()
    assert everything(shard.group) == after


def test_without_a_data_directory_there_is_no_log() -> None:
    limits = Limits(bytes=1 << 30, groups=4, waiting=8, optimizer_threads=1)
    groups = Groups(limits, clock=ManualClock(), tracer=trace.NoOpTracer(), closed=lambda _: None)
    with pytest.raises(errors.FailedPrecondition) as refused:
        groups.create(definition())
    assert refused.value.reason == "NO_DATA_DIRECTORY"


def wait(condition: Callable[[], bool]) -> None:
    import asyncio

    asyncio.run(until(condition, what="something happens"))
