"""All-reduce in a ring (Patarasuk and Yuan 2009): every worker computes, then all exchange W - 1 parts, twice."""

from scripts.benchmarks.simulation.costs import Outcome, RingCosts, Run, Site
from scripts.benchmarks.simulation.engine import Process, Signal, Simulation
from scripts.benchmarks.simulation.parameterserver import cores


def seconds(workers: int, size: float, costs: RingCosts, site: Site) -> float:
    """What one all-reduce takes once everybody is there.

    Args:
        workers: in the ring.
        size: bytes that each has.
        costs: of an exchange.
        site: where they run.
    """
    if workers == 1:
        return 0.0
    part = size / workers
    longest = max(part * costs.alone, part / site.network, part * costs.worker / site.process)
    if site.host_cores is not None:
        longest = max(longest, workers * part * costs.worker / site.host_cores)
    return 2 * (workers - 1) * (costs.fixed + site.latency + longest)


def simulate(run: Run, costs: RingCosts, site: Site) -> Outcome:
    """Let it happen; the shards, the mode and the staleness of the run mean nothing here."""
    simulation = Simulation()
    cpu = cores(simulation, site)
    reduced = [Signal() for _ in range(run.steps)]
    arrived = [0] * run.steps
    taken = seconds(run.workers, run.bytes, costs, site)

    def work(rank: int) -> Process:
        for step in range(run.steps):
            computed = run.compute(rank, step)
            yield simulation.timeout(computed) if cpu is None else cpu.use(computed)
            arrived[step] += 1
            if arrived[step] == run.workers:
                simulation.after(taken, reduced[step].fire)
            yield reduced[step]

    for rank in range(run.workers):
        simulation.start(work(rank))
    simulation.run()
    moved = 2 * (run.workers - 1) * run.bytes * run.steps
    return Outcome(simulation.now, run.workers * run.steps, 1, 0.0, moved)
