"""Parameter shards in processes of their own, which are killed at chosen moments while workers push."""

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.chaos.experiment import Report
from tests.support.chaos.pushes import RATE, Half, Rest, Trial
from tests.support.chaos.servers import Process
from tests.support.ports import free_ports
from tests.support.wait import until
from tidemill import errors
from tidemill.clients.parameters import ParametersAdmin
from tidemill.clients.replicas import Arbiter

LOST, TWICE, BACK, AGAIN, HEARD, FAILED, RECOVERY = (
    "pushes that were acknowledged and lost",
    "pushes that were applied twice",
    "pulls that were behind what had been acknowledged",
    "acknowledged pushes that were taken once more when they were repeated after a death",
    "pushes of replaced workers that were taken after a death",
    "workers and readers that could not go on",
    "seconds from a kill to the next acknowledged push, 95th percentile",
)
WORKERS, ELEMENTS = 2, 64 << 10
MODES = ("asp", "bsp")
LOG_BYTES = 1 << 20
"""So few that a log is begun anew after every few steps."""
PATIENCE = 60.0


class Shards:
    """Processes, one a shard, on ports that they keep.

    Args:
        count: how many.
        work: where they keep their data.
        plant: fault that is planted in them.
        chance: chooses moments and victims.
    """

    def __init__(self, count: int, work: Path, plant: str, chance: random.Random) -> None:
        ports = free_ports(count)
        self._work = work
        self._chance = chance
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        self.processes = [self._process(number, port, plant) for number, port in enumerate(ports)]
        self.writing = 0
        """Deaths while a state was being written."""

    def _process(self, number: int, port: int, plant: str) -> Process:
        flags = {
            "shard": number,
            "port": port,
            "ops-port": 0,
            "registry-address": "",
            "log-level": "ERROR",
            "data": self._work / f"shard-{number}",
            "log-bytes": LOG_BYTES,
        }
        command = [sys.executable, "-m", "tests.support.chaos.faulty_shard", plant]
        command += [f"--{name}={value}" for name, value in flags.items()]
        return Process(command, self._work / f"shard-{number}.log")

    async def ready(self, admin: ParametersAdmin) -> None:
        """Return when all of them answer."""
        try:
            await until(lambda: self._answer(admin), PATIENCE)
        except AssertionError as error:
            raise RuntimeError("\n".join(["not all shards answer", *map(_state, self.processes)])) from error

    async def _answer(self, admin: ParametersAdmin) -> bool:
        try:
            for shard in range(len(self.processes)):
                _ = [group async for group in admin.list_groups(shard)]
        except errors.TidemillError:
            return False
        return True

    async def trial(
        self, admin: ParametersAdmin, name: str, mode: str, durability: str, arbiter: Arbiter | None = None
    ) -> Trial:
        """A new group, and its workers, which do not work yet."""
        await admin.create_group(
            name,
            [("counts", (ELEMENTS,))],
            optimizer="sgd",
            parameters={"learning_rate": RATE},
            workers=WORKERS,
            mode=mode,
            durability=durability,
        )
        durable = durability != "none"
        return await asyncio.to_thread(Trial, self.addresses, name, durable=durable, arbiter=arbiter)

    async def kill(
        self, trials: Sequence[Trial], kills: int, patience: float, *, revive: bool, forgets: bool = False
    ) -> tuple[int, float]:
        """Kill a shard; of four times once while a worker rests, once while a push to it is half sent.

        Args:
            trials: whose workers are at work.
            kills: before this one.
            patience: seconds to wait for acknowledgements.
            revive: start it again at once.
            forgets: when it comes back, it has nothing of these groups.

        Returns:
            Its number, and the seconds until a push of every group is acknowledged.
        """
        number = self._chance.randrange(len(self.processes))
        await asyncio.sleep(self._chance.uniform(0.05, 0.5))
        chosen, kind = trials[kills // 4 % len(trials)], kills % 4
        during: Half | Rest | None = chosen.pause(number) if kind == 0 else chosen.halve(number) if kind == 2 else None
        if during is not None:
            await asyncio.to_thread(during.sent.wait, PATIENCE)
            await asyncio.sleep(self._chance.uniform(0.0, 0.02))  # of half a push all may have arrived, or some
        killed = time.monotonic()
        await self.processes[number].kill()
        for trial in trials:
            trial.dead = number if forgets else -1
            trial.kills += 1
        self.writing += any(
            not log.with_suffix(".state").exists() for log in (self._work / f"shard-{number}").glob("groups/*/*.log")
        )
        if revive:
            self.processes[number].start()
        if during is not None:
            during.over.set()
        return number, await asyncio.to_thread(wait, trials, killed, patience)


def _state(process: Process) -> str:
    """Whether a process runs, and the end of what it has said."""
    return f"{process.log.name}: {'runs' if process.alive else 'has ended'}\n{process.log.read_text()[-2000:]}"


def wait(trials: Sequence[Trial], since: float, patience: float = PATIENCE) -> float:
    """Seconds until a push of every group is acknowledged after `since`."""
    return max(trial.acknowledges(since, patience) for trial in trials)


def report(trials: Sequence[Trial], seconds: Sequence[float], recovery: float) -> Report:
    """What they have found, when the time of recovery must be so short."""
    found = Report()
    seen = [trial.seen for trial in trials]
    found.none(LOST, sum(each.lost for each in seen))
    found.none(TWICE, sum(each.twice for each in seen))
    found.none(BACK, sum(each.back for each in seen))
    found.none(AGAIN, sum(each.taken_again for each in seen))
    found.none(HEARD, sum(each.heard for each in seen))
    found.none(FAILED, sum(len(each.failures) for each in seen))
    ordered = sorted(seconds)
    found.at_most(RECOVERY, ordered[max(0, -(-len(ordered) * 95 // 100) - 1)], recovery)
    found.figures = {
        "kills": len(seconds),
        "kills while a push was half sent": sum(each.halves for each in seen),
        "pushes acknowledged": sum(each.pushes for each in seen),
        "pulls checked": sum(each.pulls for each in seen),
        "pushes repeated after a death": sum(each.repeated for each in seen),
        "pushes of replaced workers after a death": sum(each.old for each in seen),
        "pulls behind what was shown before it was acknowledged": sum(each.unsure for each in seen),
        "recovery in seconds, median": round(ordered[len(ordered) // 2], 2),
        "recovery in seconds, most": round(ordered[-1], 2),
        "failures": [failure for each in seen for failure in each.failures][:10],
    }
    return found
