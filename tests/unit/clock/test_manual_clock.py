"""The clock of the tests keeps its promises."""

import asyncio

from tests.support.clock import ManualClock
from tidemill.clock import Clock


async def test_sleepers_wake_in_order_and_see_their_own_time() -> None:
    clock = ManualClock(start=100.0)
    seen: list[tuple[str, float]] = []

    async def tick(name: str, period: float, times: int, timer: Clock) -> None:
        for _ in range(times):
            await timer.sleep(period)
            seen.append((name, timer.monotonic()))

    tasks = [asyncio.create_task(tick("slow", 3, 2, clock)), asyncio.create_task(tick("fast", 2, 3, clock))]
    await clock.until_sleeping(2)
    await clock.advance(6)
    await asyncio.gather(*tasks)
    assert seen == [("fast", 2), ("slow", 3), ("fast", 4), ("slow", 6), ("fast", 6)]
    assert clock.now() == 106.0


async def test_a_jump_wakes_who_is_due_and_nobody_else() -> None:
    clock = ManualClock()
    early = asyncio.create_task(clock.sleep(1))
    late = asyncio.create_task(clock.sleep(10))
    await clock.until_sleeping(2)
    clock.jump(5)
    await early
    assert not late.done()
    assert clock.sleeping == 1
    late.cancel()
