"""Which blocks of a gradient may leave, and in which order."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tidemill import errors
from tidemill.clients.fanout import Calls
from tidemill.clients.outgoing import Cut, Departures, Readiness
from tidemill.tensors.blocks import Block, assign, cut

ELEMENTS = 10_000
BLOCKS = cut(ELEMENTS)
"""Eight of 2048 elements or fewer."""


def readiness(shards: int = 1) -> Readiness:
    return Readiness(Cut(assign(BLOCKS, shards)))


def told(there: Readiness, *blocks: int) -> None:
    for index in blocks:
        there.ready(BLOCKS[index].offset, BLOCKS[index].offset + BLOCKS[index].elements)


def test_of_the_blocks_that_are_there_the_front_ones_leave_first() -> None:
    there = readiness()
    leaving = iter(Departures(there, 0))
    told(there, 4, 2, 3)
    assert [next(leaving).index, next(leaving).index] == [2, 3]
    told(there, 0, 1)
    assert [next(leaving).index for _ in range(3)] == [0, 1, 4]


def test_a_block_leaves_when_all_of_its_tensors_are_there() -> None:
    there = readiness()
    leaving = iter(Departures(there, 0))
    start, size = BLOCKS[1].offset, BLOCKS[1].elements
    there.ready(start + 10, start + size + 5)  # into the next block
    there.ready(start - 5, start + 9)
    told(there, 3)
    assert next(leaving).index == 3
    there.ready(start + 9, start + 10)
    assert next(leaving).index == 1


def test_a_stream_ends_when_the_gradient_is_complete_and_has_each_block_once() -> None:
    there = readiness(2)

    def sent(shard: int) -> list[int]:
        return [block.index for block in Departures(there, shard)]

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(sent, shard) for shard in range(2)]
        told(there, *reversed(range(2, len(BLOCKS))))  # the first two are of parameters without gradients
        assert not any(one.done() for one in found)
        there.complete()
        there.ready(0, ELEMENTS)  # comes too late to matter
        assert sorted(index for one in found for index in one.result(30)) == list(range(len(BLOCKS)))


def test_only_the_first_attempt_sends_what_is_there() -> None:
    there = readiness()
    calls = Calls()
    told(there, 3)
    with there.leaving(0, 0, calls, early=True) as leaving:
        assert next(iter(leaving)).index == 3
    again = threading.Event()

    def repeat() -> list[Block]:
        with there.leaving(0, 0, calls, early=True) as leaving:
            again.set()
            return list(leaving)

    with ThreadPoolExecutor(1) as pool:
        repeated = pool.submit(repeat)
        told(there, 4)
        assert not again.is_set()
        there.complete()
        assert [block.index for block in repeated.result(30)] == list(range(len(BLOCKS)))


def test_who_waits_for_a_first_block_ends_with_the_operation() -> None:
    there, calls = readiness(), Calls()

    def wait() -> None:
        with there.leaving(0, 0, calls, early=True):
            raise AssertionError("nothing is there")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        calls.end()
        with pytest.raises(errors.Cancelled):
            waiting.result(30)


def test_who_waits_for_another_block_ends_with_the_call() -> None:
    there = readiness()
    told(there, 0)
    departures = Departures(there, 0)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(lambda: [block.index for block in departures])
        departures.close()
        assert sent.result(30) in ([], [0])
