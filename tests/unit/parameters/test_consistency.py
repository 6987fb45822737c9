"""Ten thousand steps of workers in random order: nobody ever reads what is too old, and everybody gets on."""

import random
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace

from tests.support.clock import ManualClock
from tidemill.parameters.catalogue import check
from tidemill.parameters.consistency.base import Consistency, Wish
from tidemill.parameters.definition import Definition, Tensor, Way
from tidemill.parameters.durability.none import Nothing
from tidemill.parameters.group import Group
from tidemill.parameters.groups import way_of
from tidemill.parameters.rounds import Header
from tidemill.slots import Slots
from tidemill.tensors.blocks import Array, Block

WORKERS = 4
STEPS = 10_000
"""Pulls and pushes together, of a bound; a fifth of them where there is none, or it was shown otherwise."""
BLOCKS = tuple(Block(index, 2 * WORKERS * index, 2 * WORKERS) for index in range(3))
ELEMENTS = sum(block.elements for block in BLOCKS)


class World:
    """A group whose workers write how many steps they have made, each into elements of its own."""

    def __init__(self, way: Way) -> None:
        definition = Definition(
            name="groups/g",
            tensors=(Tensor("w", (ELEMENTS,)),),
            blocks=BLOCKS,
            optimizer=check("sgd", {"learning_rate": 1.0}),
            workers=WORKERS,
            shard=0,
            shards=1,
            consistency=way,
        )
        made = way_of(definition)
        self.way: Consistency = made
        self.group = Group(
            definition,
            made,
            Nothing(definition, None),
            clock=ManualClock(),
            waiting=Slots(8, "pulls", "FULL"),
            tracer=trace.NoOpTracer(),
            closed=lambda _: None,
        )
        self.group.load([(block.index, bytes(4 * block.elements)) for block in BLOCKS])

    def waits(self, rank: int, clock: int) -> bool:
        return bool(self.way.waits_for(Wish(version=clock, worker=rank)))

    def pull(self, rank: int, clock: int) -> Array:
        with self.group.reading(Wish(version=clock, worker=rank), lambda: False) as reading:
            return np.concatenate([values for _, values, _ in reading.blocks])

    def push(self, rank: int, clock: int) -> bool:
        gradient = np.zeros(ELEMENTS, np.float32)
        # In rounds the mean is taken, so that each must weigh as much as all of them.
        gradient[rank::WORKERS] = -WORKERS if self.group.definition.consistency.rounds else -1
        blocks = [(block.index, gradient[block.slice].tobytes()) for block in BLOCKS]
        return self.group.push(Header(worker=rank, step=clock, attempt=0, samples=1), blocks).duplicate


@pytest.mark.parametrize(
    ("way", "bound"),
    [
        (Way(mode="bsp"), 0),
        (Way(mode="bsp", arrival_order=True), 0),
        (Way(mode="ssp", staleness=0), 0),
        (Way(mode="ssp", staleness=1), 1),
        (Way(mode="ssp", staleness=3), 3),
        (Way(mode="ssp", staleness=2**20), STEPS),
        (Way(mode="asp"), STEPS),
    ],
    ids=str,
)
def test_what_is_read_is_never_older_than_the_bound(way: Way, bound: int) -> None:
    world = World(way)
    chance = random.Random(7)
    pulled = [False] * WORKERS
    clocks = [0] * WORKERS
    widest = 0
    for _ in range(STEPS if way.mode == "ssp" and bound < STEPS else STEPS // 5):
        # One of them is slow most of the time, so that the others meet the bound.
        ready = [rank for rank in range(WORKERS) if pulled[rank] or not world.waits(rank, clocks[rank])]
        assert ready, "all wait for each other"
        rank = chance.choices(ready, weights=[1 if one == 0 else 4 for one in ready])[0]
        if pulled[rank]:
            # Some are sent again: they count once.
            for again in range(chance.choice((1, 1, 1, 2, 3))):
                assert world.push(rank, clocks[rank]) == bool(again)
            clocks[rank] += 1
            pulled[rank] = False
            continue
        values = world.pull(rank, clocks[rank])
        seen = [set(values[other::WORKERS].tolist()) for other in range(WORKERS)]
        assert all(len(of) == 1 for of in seen)
        made = [int(of.pop()) for of in seen]
        assert min(made) >= clocks[rank] - bound
        assert made[rank] == clocks[rank]
        if not way.rounds:
            assert made == clocks
        widest = max(widest, clocks[rank] - min(made))
        pulled[rank] = True
    # The bound is made use of, but for the ones that are no bound.
    assert widest == bound or (bound == STEPS and widest > 50)
    assert [world.way.clock(rank) for rank in range(WORKERS)] == clocks


def test_the_group_tells_who_waits_for_whom() -> None:
    world = World(Way(mode="ssp", staleness=1))
    for clock in range(2):
        world.push(3, clock)
    told: Any = world.way.waits_for(Wish(version=2, worker=3))
    assert told == "step 1 of workers 0 (at 0), 1 (at 0), 2 (at 0)"
    assert world.way.waits_for(Wish(version=3, worker=3)) == "its own push for step 2"
    world = World(Way())
    world.push(1, 0)
    assert world.way.waits_for(Wish(version=1, worker=1)) == "version 1, for which workers 0, 2, 3 must push"
    assert world.way.waits_for(Wish(version=0, worker=1)) == ""
