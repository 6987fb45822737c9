"""The simulation of training, where what must come out can be computed by hand; and what must hold in any case."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.benchmarks.simulation import ring
from scripts.benchmarks.simulation.clocks import Clocks
from scripts.benchmarks.simulation.costs import Costs, Outcome, RingCosts, Run, Site, Way
from scripts.benchmarks.simulation.engine import Process, Signal, Simulation, all_of
from scripts.benchmarks.simulation.parameterserver import ParameterServer
from scripts.benchmarks.simulation.sharing import Shared

NOTHING = Way(fixed=0, alone=0, worker=0, shard=0)
FREE = Costs(push=NOTHING, pull=NOTHING, mean=0, step=0)


def run(compute: Callable[[int, int], float] = lambda *_: 0.0, **fields: Any) -> Run:
    return Run(**{"workers": 1, "bytes": 1e6, "steps": 5, "compute": compute, **fields})


def outcome(what: Run, costs: Costs = FREE, site: Site | None = None, *, alike: bool = False) -> Outcome:
    return ParameterServer(what, costs, site or Site(), alike).simulate()


def finished(simulation: Simulation, *signals: Signal) -> list[float]:
    """When each happens."""
    times = [math.nan] * len(signals)

    def note(index: int) -> None:
        times[index] = simulation.now

    for index, signal in enumerate(signals):
        signal.then(lambda index=index: note(index))  # type: ignore[misc]
    simulation.run()
    return times


def jitter(probability: float = 0.2) -> Callable[[int, int], float]:
    return lambda worker, step: 0.02 + 0.1 * (random.Random(f"{worker} {step}").random() < probability)


def test_events_happen_in_order_of_time_and_of_planning() -> None:
    simulation, seen = Simulation(), []
    for delay, name in ((2, "c"), (1, "a"), (1, "b")):
        simulation.after(delay, lambda name=name: seen.append((simulation.now, name)))  # type: ignore[misc]
    simulation.run()
    assert seen == [(1, "a"), (1, "b"), (2, "c")]
    with pytest.raises(ValueError, match="after -1"):
        simulation.timeout(-1)


def test_a_process_goes_on_with_what_it_waits_for() -> None:
    simulation, seen = Simulation(), []

    def process() -> Process:
        yield simulation.timeout(1)
        seen.append(simulation.now)
        yield all_of([simulation.timeout(2), simulation.timeout(3)])
        seen.append(simulation.now)
        yield all_of([])
        seen.append(simulation.now)

    assert finished(simulation, simulation.start(process())) == [4]
    assert seen == [1, 4, 4]


def test_one_demand_alone_takes_bytes_over_bandwidth() -> None:
    simulation = Simulation()
    link = Shared(simulation, 125e6)
    assert finished(simulation, link.use(100e6)) == [pytest.approx(0.8)]


def test_demands_share_evenly_and_those_that_stay_get_more() -> None:
    simulation = Simulation()
    link = Shared(simulation, 10)
    # Both get 5 a second until the small one is done at 2 s; then the other one gets 10 for its last 20.
    assert finished(simulation, link.use(10), link.use(30)) == pytest.approx([2, 4])


def test_a_demand_gets_no_more_than_its_cap() -> None:
    simulation = Simulation()
    cores = Shared(simulation, 2, cap=1)
    assert finished(simulation, cores.use(1)) == [1]
    simulation = Simulation()
    cores = Shared(simulation, 2, cap=1)
    assert finished(simulation, *(cores.use(1) for _ in range(4))) == pytest.approx([2] * 4)


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 10), st.floats(0.001, 50)), min_size=1, max_size=30),
    capacity=st.floats(0.5, 20),
    cap=st.floats(0.1, 40),
)
@settings(deadline=None)
def test_nobody_gets_more_than_there_is_and_nothing_is_idle(
    arrivals: list[tuple[float, float]], capacity: float, cap: float
) -> None:
    simulation = Simulation()
    link = Shared(simulation, capacity, cap)
    ends: list[float] = []

    def arrive(amount: float) -> None:
        began = simulation.now

        def done() -> None:
            ends.append(simulation.now)
            # Never quicker than alone.
            assert simulation.now - began >= amount / min(cap, capacity) * (1 - 1e-6) - 1e-9

        link.use(amount).then(done)

    for at, amount in arrivals:
        simulation.after(at, lambda amount=amount: arrive(amount))  # type: ignore[misc]
    simulation.run()
    total = sum(amount for _, amount in arrivals)
    assert len(ends) == len(arrivals)
    assert link.served == pytest.approx(total)
    first, last = min(at for at, _ in arrivals), max(ends)
    assert last - first >= total / capacity * (1 - 1e-6) - 1e-9
    if cap >= capacity:
        # With work at hand it is never idle: it ends when a queue in order of arrival would.
        busy = 0.0
        for at, amount in sorted(arrivals):
            busy = max(busy, at) + amount / capacity
        assert last == pytest.approx(busy, rel=1e-6)


def test_clocks_say_when_the_slowest_is_there() -> None:
    clocks = Clocks(2)
    both = clocks.reach(1)
    clocks.tick(0)
    clocks.tick(0)
    assert (clocks.least, both.fired) == (0, False)
    clocks.tick(1)
    assert (clocks.least, both.fired, clocks.reach(1).fired, clocks.reach(2).fired) == (1, True, True, False)


def test_one_worker_and_one_link_take_what_a_division_says() -> None:
    costs = replace(FREE, push=replace(NOTHING, fixed=0.001), pull=replace(NOTHING, fixed=0.002), mean=1e-9, step=2e-9)
    found = outcome(run(lambda *_: 0.05), costs, Site(network=1e8, latency=0.0005))
    # Compute, two calls, a megabyte each way, and the optimizer.
    step = 0.05 + 0.003 + 2 * 0.0005 + 2 * 0.01 + 0.003
    assert found.seconds == pytest.approx(5 * step)
    assert found.rate == pytest.approx(1 / step)


def test_a_shards_link_is_shared_by_its_workers_and_more_shards_have_more_links() -> None:
    site = Site(network=1e8)
    assert outcome(run(workers=4), site=site).seconds == pytest.approx(5 * 2 * 0.04)
    assert outcome(run(workers=4, shards=4), site=site).seconds == pytest.approx(5 * 2 * 0.01)
    # More shards than workers: now the workers' own links hold them up.
    assert outcome(run(workers=2, shards=8), site=site).seconds == pytest.approx(5 * 2 * 0.01)


def test_every_call_costs_both_ends_whatever_it_carries() -> None:
    calling = replace(NOTHING, fixed=0.001, worker_call=0.001, shard_call=0.002)
    costs = replace(FREE, push=calling)
    assert outcome(run(), costs, Site(process=1)).seconds == pytest.approx(5 * 0.002)
    # Ten calls of one worker; or five workers' calls of one shard.
    assert outcome(run(shards=10), costs, Site(process=1)).seconds == pytest.approx(5 * 0.01)
    assert outcome(run(workers=5), costs, Site(process=1)).seconds == pytest.approx(5 * 0.01)


def test_crowded_cores_are_slower_than_their_number_says() -> None:
    simulation = Simulation()
    cores = Shared(simulation, 2, 1, friction=1.5)
    assert finished(simulation, cores.use(1), cores.use(1)) == pytest.approx([1, 1])
    simulation = Simulation()
    cores = Shared(simulation, 2, 1, friction=1.5)
    assert finished(simulation, *(cores.use(1) for _ in range(4))) == pytest.approx([3] * 4)


def test_processes_of_one_host_share_its_cores() -> None:
    moving = Way(fixed=0, alone=0, worker=1e-8, shard=1e-8)
    costs = replace(FREE, push=moving, pull=moving)
    # Four workers and the shard have 2 cores for 4 x 2 x 10 ms each way.
    assert outcome(run(workers=4), costs, Site(host_cores=2)).seconds == pytest.approx(5 * 2 * 0.04)
    # A shard that moves data with one core only, on a large host.
    assert outcome(run(workers=4), costs, Site(host_cores=64, process=1)).seconds == pytest.approx(5 * 2 * 0.04)
    assert outcome(run(workers=4), costs, Site(host_cores=64)).seconds == pytest.approx(5 * 2 * 0.01)
    # Three workers compute at once on two cores.
    assert outcome(run(lambda *_: 0.02, workers=3), site=Site(host_cores=2)).seconds == pytest.approx(5 * 0.03)


def test_rounds_take_as_long_as_their_slowest_worker() -> None:
    compute = jitter()
    found = outcome(run(compute, workers=4, steps=50))
    assert found.seconds == pytest.approx(sum(max(compute(w, s) for w in range(4)) for s in range(50)))
    assert (found.steps, found.widest, found.missed) == (200, 0, 0)
    again = outcome(run(compute, workers=4, steps=50, mode="ssp", staleness=0))
    assert again == found


def test_nobody_waits_without_rounds() -> None:
    compute = jitter()
    found = outcome(run(compute, workers=4, steps=50, mode="asp"))
    assert found.seconds == pytest.approx(min(sum(compute(w, s) for s in range(50)) for w in range(4)))
    assert 0 < found.missed < 3


@given(seed=st.integers(0, 1000), staleness=st.integers(0, 4), workers=st.integers(2, 5), shards=st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_the_bound_of_staleness_holds_and_less_of_it_is_slower(
    seed: int, staleness: int, workers: int, shards: int
) -> None:
    def compute(worker: int, step: int) -> float:
        return random.Random(f"{seed} {worker} {step}").expovariate(50)

    def under(**way: Any) -> Outcome:
        return outcome(run(compute, workers=workers, shards=shards, steps=20, **way))

    bound, free = under(mode="ssp", staleness=staleness), under(mode="asp")
    assert bound.widest <= staleness
    assert bound.seconds >= free.seconds * (1 - 1e-9)
    assert under(mode="ssp", staleness=1000) == free


@given(workers=st.integers(1, 6), shards=st.integers(1, 6), mode=st.sampled_from(["bsp", "ssp", "asp"]))
@settings(deadline=None, max_examples=25)
def test_every_byte_is_moved_and_shards_that_are_alike_may_be_simulated_as_one(
    workers: int, shards: int, mode: str
) -> None:
    moving = Way(fixed=0.001, worker_call=0.0005, shard_call=0.0007, alone=2e-9, worker=3e-9, shard=4e-9)
    costs = Costs(push=moving, pull=moving, mean=1e-9, step=2e-9)
    site = Site(process=2, network=5e8, latency=1e-4)
    what = run(jitter(), workers=workers, shards=shards, steps=8, mode=mode, staleness=2)
    each, one = outcome(what, costs, site), outcome(what, costs, site, alike=True)
    assert each.moved == pytest.approx(2 * workers * 8 * 1e6)
    assert one.moved == pytest.approx(each.moved)
    assert one.seconds == pytest.approx(each.seconds)
    assert one.steps == each.steps


def test_a_ring_takes_what_its_formula_says() -> None:
    costs = RingCosts(fixed=0.0001, alone=1e-9, worker=1e-9)
    assert ring.seconds(1, 1e8, costs, Site()) == 0
    assert ring.seconds(4, 1e8, costs, Site()) == pytest.approx(6 * (0.0001 + 0.025))
    assert ring.seconds(4, 1e8, costs, Site(network=5e8, latency=0.001)) == pytest.approx(6 * (0.0011 + 0.05))
    assert ring.seconds(4, 1e8, costs, Site(host_cores=2)) == pytest.approx(6 * (0.0001 + 0.05))
    compute = jitter()
    found = ring.simulate(run(compute, workers=4, steps=20, bytes=1e8), costs, Site())
    slowest = sum(max(compute(w, s) for w in range(4)) for s in range(20))
    assert found.seconds == pytest.approx(slowest + 20 * 6 * (0.0001 + 0.025))
    assert found.moved == pytest.approx(20 * 4 * 2 * 3 / 4 * 1e8)


def test_it_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="nobody can run"):
        outcome(run(mode="gossip"))
    with pytest.raises(ValueError, match="not alike"):
        outcome(run(shards=2), site=Site(host_cores=2), alike=True)
    with pytest.raises(ValueError, match="positive"):
        Shared(Simulation(), 0)
    with pytest.raises(ValueError, match="nobody can use"):
        Shared(Simulation(), 1).use(-1)
