"""Finding parameter shards for a job: it waits until enough of them are live, but not for ever."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from tidemill.clock import Clock
from tidemill.errors import Invalid, TidemillError
from tidemill.training.jobs import Job
from tidemill.training.ledger import Ledger
from tidemill.training.patience import is_passing
from tidemill.training.peers import Shards
from tidemill.training.spec import Component

INTERVAL = 1.0
"""Seconds between two looks at what is live."""
SETTLING = 15.0
"""Seconds in which a shard that was lost may come back before a job goes on with fewer."""


class JobFailed(Exception):
    """The job cannot go on; its text says why.

    Args:
        text: why.
        traceback: where the code of the worker was that made it fail, if it was a fault of code.
    """

    def __init__(self, text: str, traceback: str = "") -> None:
        super().__init__(text)
        self.traceback = traceback


class ParametersLost(JobFailed):
    """Shards have lost the parameters of a job that keeps checkpoints of them: it goes on from the last one."""


class Placement:
    """Chooses the shards of a job's parameter group.

    Args:
        shards: the parameter servers.
        clock: what deadlines go by.
        patience: seconds to wait for enough live shards.
    """

    def __init__(self, shards: Shards, clock: Clock, patience: float) -> None:
        self._shards = shards
        self._clock = clock
        self._patience = patience
        self._load: Mapping[str, int] = {}

    def note(self, jobs: Iterable[Job]) -> None:
        """These jobs are active: the shards that hold their groups are loaded."""
        self._load = Counter(address for job in jobs for address in job.shards)

    async def place(self, ledger: Ledger, tell: Callable[[str], None], *, again: bool = False) -> None:
        """Store the chosen shards, the least loaded ones, and the optimizer with all its hyperparameters.

        Args:
            ledger: the job.
            tell: takes what its log should say.
            again: whether shards may be gone for good: then it goes on with fewer, if it must.

        Raises:
            JobFailed: there were not enough shards in time, or they do not know the optimizer.
            Fenced, CancelAsked: from the ledger.
        """
        if not ledger.job.spec.shards:
            tell("parameters are held by the workers themselves")
            return
        if ledger.job.shards:  # chosen before a restart: its group may be there already
            return
        begun = self._clock.monotonic()
        deadline = begun + self._patience
        while True:
            chosen, parameters, problem = await self._look(ledger.job)
            if not problem or (again and chosen and self._clock.monotonic() >= begun + min(SETTLING, self._patience)):
                break
            if self._clock.monotonic() >= deadline:
                raise JobFailed(f"{problem}, {self._patience:g} s long")
            if ledger.job.waiting != problem:
                tell(problem)
                await ledger.change(partial(_waits, problem))
            await self._clock.sleep(INTERVAL)
        optimizer = Component(name=ledger.job.spec.optimizer.name, parameters=parameters)
        await ledger.change(
            lambda job: replace(job, shards=chosen, waiting="", spec=replace(job.spec, optimizer=optimizer))
        )
        tell(f"parameters go to {', '.join(chosen)}")

    async def scout(self, ledger: Ledger, tell: Callable[[str], None]) -> None:
        """Store where the group of a job goes that is to have other workers and shards; or that it keeps those it has.

        Shards that it has now are taken first: a group goes to as few new places as it can.

        Args:
            ledger: the job.
            tell: takes what its log should say.

        Raises:
            Fenced, CancelAsked, PauseAsked: from the ledger.
        """
        deadline = self._clock.monotonic() + self._patience
        while (resize := ledger.job.resize) is not None and not resize.is_ready:
            wanted = replace(ledger.job, spec=replace(ledger.job.spec, shards=resize.shards))
            try:
                chosen, _, problem = await self._look(wanted, first=ledger.job.shards)
            except JobFailed as refusal:
                chosen, problem = (), str(refusal)
                deadline = self._clock.monotonic()
            if not problem:
                await ledger.change(partial(_goes_to, chosen))
                return
            if self._clock.monotonic() >= deadline:
                tell(f"its workers and shards stay as they are: {problem}")
                await ledger.change(lambda job: replace(job, resize=None, waiting=""))
                return
            if ledger.job.waiting != problem:
                tell(problem)
                await ledger.change(partial(_waits, problem))
            await self._clock.sleep(INTERVAL)

    async def _look(self, job: Job, first: Sequence[str] = ()) -> tuple[tuple[str, ...], Mapping[str, object], str]:
        """The shards to take and the optimizer's hyperparameters; or what is waited for."""
        wanted, optimizer = job.spec.shards, job.spec.optimizer
        plural = "shard" if wanted == 1 else "shards"
        try:
            live = await self._shards.live()
        except TidemillError as error:
            if not is_passing(error):
                raise
            return (), {}, f"waits for {wanted} parameter {plural}: {error.message}"
        usable: list[str] = []
        parameters = dict(optimizer.parameters)
        for address in sorted(self._by_load(live), key=lambda address: address not in first):
            if len(usable) == wanted:
                break
            try:
                parameters = dict(await self._shards.check_optimizer(address, optimizer.name, optimizer.parameters))
                usable.append(address)
            except Invalid as error:
                raise JobFailed(f"optimizer {optimizer.name}: {error.message}") from error
            except TidemillError as error:  # it has died and its announcement not yet ended
                if not is_passing(error):
                    raise
        if len(usable) < wanted:
            verb = "is" if len(usable) == 1 else "are"
            return tuple(usable), parameters, f"waits for {wanted} parameter {plural}, {len(usable)} {verb} live"
        return tuple(usable), parameters, ""

    def _by_load(self, live: Sequence[str]) -> list[str]:
        return sorted(dict.fromkeys(live), key=lambda address: self._load.get(address, 0))


def _waits(what: str, job: Job) -> Job:
    return replace(job, waiting=what)


def _goes_to(chosen: tuple[str, ...], job: Job) -> Job:
    if job.resize is None:
        return job
    return replace(job, resize=replace(job.resize, places=chosen), waiting="")
