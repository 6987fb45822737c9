"""Workers that push to shards and pull from them."""

from scripts.benchmarks.simulation.clocks import Clocks
from scripts.benchmarks.simulation.costs import Costs, Outcome, Run, Site, Way
from scripts.benchmarks.simulation.engine import Process, Signal, Simulation, all_of
from scripts.benchmarks.simulation.sharing import Shared


def cores(simulation: Simulation, site: Site) -> Shared | None:
    """The cores of the one host, if there is one: a thread gets one at most."""
    return None if site.host_cores is None else Shared(simulation, site.host_cores, 1.0, site.friction)


class Port:
    """A process and its end of the network.

    Args:
        simulation: whose time it is.
        site: where it runs.
        streams: that one demand on it stands for.
    """

    def __init__(self, simulation: Simulation, site: Site, streams: int) -> None:
        self.threads = Shared(simulation, site.process, min(site.process, streams))
        self.inward = Shared(simulation, site.network)
        self.outward = Shared(simulation, site.network)


class ParameterServer:
    """All processes of one run.

    Args:
        run: what they do.
        costs: of moving and applying bytes.
        site: where they run.
        alike: simulate one shard for all. They all do the same at the same time where every process has a machine of
            its own: then the outcome is the same.

    Raises:
        ValueError: there is no such mode; or shards are taken as alike on one host, where they are not.
    """

    def __init__(self, run: Run, costs: Costs, site: Site, alike: bool = False) -> None:
        if run.mode not in ("bsp", "ssp", "asp") or run.workers < 1 or run.shards < 1 or run.steps < 1:
            raise ValueError(f"nobody can run {run}")
        if alike and site.host_cores is not None:
            raise ValueError("shards that share cores are not alike")
        self._run, self._costs, self._site = run, costs, site
        self._simulation = Simulation()
        self._each = run.shards if alike else 1
        self._bytes = run.bytes / run.shards
        count = run.shards // self._each
        self._cpu = cores(self._simulation, site)
        self._workers = [Port(self._simulation, site, self._each) for _ in range(run.workers)]
        self._shards = [Port(self._simulation, site, 1) for _ in range(count)]
        self._steppers = [Shared(self._simulation, 1.0) for _ in range(count)]
        self._clocks = Clocks(run.workers)
        self._arrived = [0] * count
        self._closed: list[dict[int, Signal]] = [{} for _ in range(count)]
        self._updates = self._missed = self._widest = self._made = 0
        self._rounds = run.mode == "bsp" or (run.mode == "ssp" and not run.staleness)
        self._ended: tuple[float, int] | None = None

    def simulate(self) -> Outcome:
        """Let it happen."""
        for rank in range(self._run.workers):
            self._simulation.start(self._work(rank))
        self._simulation.run()
        if self._ended is None or self._made != self._run.workers * self._run.steps:
            raise RuntimeError("workers wait for each other for ever")
        served = sum(port.inward.served + port.outward.served for port in self._shards)
        return Outcome(*self._ended, self._widest, self._missed / self._made / self._run.workers, served * self._each)

    def _work(self, rank: int) -> Process:
        run, simulation = self._run, self._simulation
        seen = 0
        for step in range(run.steps):
            yield self._compute(run.compute(rank, step))
            yield all_of(simulation.start(self._push(rank, shard, step)) for shard in range(len(self._shards)))
            self._missed += 0 if self._rounds else self._updates - seen
            self._updates += 1
            self._made += 1
            self._clocks.tick(rank)
            yield self._granted(step + 1)
            seen = self._updates
            self._widest = max(self._widest, step + 1 - self._clocks.least)
            yield all_of(simulation.start(self._pull(rank, shard)) for shard in range(len(self._shards)))
        if self._ended is None:
            self._ended = simulation.now, self._made

    def _granted(self, clock: int) -> Signal:
        """Happens when a worker at a clock may read."""
        if self._rounds:
            return all_of(closed.setdefault(clock, Signal()) for closed in self._closed)
        return self._clocks.reach(clock - self._run.staleness if self._run.mode == "ssp" else 0)

    def _compute(self, seconds: float) -> Signal:
        return self._simulation.timeout(seconds) if self._cpu is None else self._cpu.use(seconds)

    def _push(self, rank: int, shard: int, step: int) -> Process:
        way, costs, run = self._costs.push, self._costs, self._run
        worker, there = self._workers[rank], self._shards[shard]
        yield self._called(way, worker, there)
        yield self._moved(way, worker, there, worker.outward, there.inward)
        if not self._rounds:
            yield self._applied(shard, (costs.mean + costs.step) * self._bytes)
            return
        self._arrived[shard] += 1
        if self._arrived[shard] == run.workers:
            self._arrived[shard] = 0
            yield self._applied(shard, (run.workers * costs.mean + costs.step) * self._bytes)
            # Whoever closed the round has its answer before others go on.
            self._simulation.after(0, self._closed[shard].setdefault(step + 1, Signal()).fire)

    def _pull(self, rank: int, shard: int) -> Process:
        way = self._costs.pull
        worker, there = self._workers[rank], self._shards[shard]
        yield self._called(way, worker, there)
        yield self._moved(way, worker, there, worker.inward, there.outward)

    def _called(self, way: Way, worker: Port, shard: Port) -> Signal:
        """Happens when a call has begun, and its end is paid for as well."""
        alone, through = way.fixed + self._site.latency, [shard.threads.use(way.shard_call)]
        if len(self._shards) == 1:
            alone = max(alone, worker.threads.alone(self._each * way.worker_call))
        else:
            through.append(worker.threads.use(way.worker_call))
        if self._cpu is not None:
            through += [self._cpu.use(way.worker_call), self._cpu.use(way.shard_call)]
        return all_of([self._simulation.timeout(alone), *through])

    def _moved(self, way: Way, worker: Port, shard: Port, near: Shared, far: Shared) -> Signal:
        """Happens when a stream is through: when the slowest of all that it goes through has had it."""
        size = self._bytes
        alone, through = size * way.alone, [shard.threads.use(size * way.shard), far.use(size)]
        if len(self._shards) == 1:
            # The worker has no other stream: its end is nobody else's, and takes as long as a division says.
            alone = max(alone, worker.threads.alone(size * self._each * way.worker), near.alone(size * self._each))
        else:
            through += [worker.threads.use(size * way.worker), near.use(size)]
        demands = [self._simulation.timeout(alone), *through]
        if self._cpu is not None:
            demands += [self._cpu.use(size * way.worker), self._cpu.use(size * way.shard)]
        return all_of(demands)

    def _applied(self, shard: int, seconds: float) -> Signal:
        """Happens when a shard has computed so long: one update after the other."""
        demands = [self._steppers[shard].use(seconds)]
        if self._cpu is not None:
            demands.append(self._cpu.use(seconds))
        return all_of(demands)
