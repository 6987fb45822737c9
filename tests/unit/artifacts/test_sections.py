"""Critical sections exclude each other per name, and run to their end once they have begun."""

import asyncio

import pytest

from tidemill import errors
from tidemill.artifacts.sections import Sections
from tidemill.rpc import deadline


class Work:
    """Work that waits for the test, and notes what it did."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.done = False

    async def __call__(self) -> str:
        self.begun.set()
        await self.go_on.wait()
        self.done = True
        return "result"


async def test_one_at_a_time_for_a_name_and_others_beside_it() -> None:
    sections, first, second, other = Sections(), Work(), Work(), Work()
    tasks = [
        asyncio.create_task(sections.run(names, work))
        for names, work in ((["a", "b"], first), (["b", "c"], second), (["d"], other))
    ]
    await first.begun.wait()
    await other.begun.wait()
    assert not second.begun.is_set()
    first.go_on.set()
    await second.begun.wait()
    assert first.done
    for work in (second, other):
        work.go_on.set()
    assert await asyncio.gather(*tasks) == ["result"] * 3


async def test_names_in_any_order_do_not_block_each_other() -> None:
    sections = Sections()

    async def nothing() -> None:
        await asyncio.sleep(0)

    names = [["a", "b", "c"], ["c", "b", "a"], ["b", "a"], ["c", "a", "c"]]
    async with asyncio.timeout(10):
        await asyncio.gather(*(sections.run(names[n % 4], nothing) for n in range(200)))


async def test_work_goes_on_when_its_caller_is_cancelled() -> None:
    sections, work, later = Sections(), Work(), Work()
    caller = asyncio.create_task(sections.run(["a"], work))
    await work.begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    waiting = asyncio.create_task(sections.run(["a"], later))
    await asyncio.sleep(0)
    assert not later.begun.is_set(), "the name must stay held"
    work.go_on.set()
    later.go_on.set()
    assert await waiting == "result"
    assert work.done
    await sections.drain()


async def test_a_caller_that_is_cancelled_while_it_waits_does_nothing() -> None:
    sections, first, second, third = Sections(), Work(), Work(), Work()
    running = asyncio.create_task(sections.run(["a"], first))
    await first.begun.wait()
    waiting = asyncio.create_task(sections.run(["0", "a"], second))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    first.go_on.set()
    third.go_on.set()
    await running
    assert await sections.run(["0", "a"], third) == "result"
    assert not second.begun.is_set()


async def test_deadline_ends_the_waiting_but_not_the_work() -> None:
    sections, work, late = Sections(), Work(), Work()

    async def hurried(each: Work) -> str:
        deadline.start(0.2)
        return await sections.run(["a"], each)

    with pytest.raises(errors.Unavailable):
        await asyncio.create_task(hurried(work))
    with pytest.raises(errors.Unavailable):
        await asyncio.create_task(hurried(late))
    assert not late.begun.is_set()
    work.go_on.set()
    await sections.drain()
    assert work.done


async def test_errors_of_the_work_reach_the_caller_and_free_the_name() -> None:
    sections = Sections()

    async def fail() -> None:
        raise errors.NotFound("gone")

    async def succeed() -> int:
        return 1

    with pytest.raises(errors.NotFound):
        await sections.run(["a"], fail)
    assert await sections.run(["a"], succeed) == 1
