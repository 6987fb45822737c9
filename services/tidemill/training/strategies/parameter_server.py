"""Training on a sharded parameter server: step by step together, or at each worker's own pace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tidemill import errors
from tidemill.training.strategies.base import GROUP_LOST, Flat, Held, Next, Strategy, Team

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


class ParameterServerStrategy(Strategy):
    """Steps on a sharded parameter server, which runs the optimizer (Li et al. 2014).

    Pushing a gradient again changes nothing, and the version before the latest can be pulled: so a worker that takes a
    dead one's place goes on at the lowest version of all shards, and gives those that are ahead what they have already.

    Where the workers do not make each step together (SSP, ASP), a worker counts its own steps, its clock. One that
    takes a dead one's place goes on at the clock of the shard that has applied the fewest of its pushes; the others
    know what they have. No worker waits for the end of another's epoch, or of its training.

    Where late workers are dropped, one of which a step was made without goes on at the latest version.
    """

    def __init__(self, team: Team) -> None:
        super().__init__(team)
        self._server = team.server()
        self._stand = 0

    def join(self, first: Callable[[], Flat]) -> tuple[int, Flat]:
        """Rank 0 creates the group and sets its first values; others wait until they are there."""
        if self.team.rank == 0:
            self._begin_group(first)
        with self._kept():
            while True:
                step = self._begin()
                try:
                    flat = self._server.pull(step)
                except errors.OutOfRange:  # the group was new when it was asked, and goes on from a checkpoint
                    if self.team.rank == 0:
                        raise
                    self.team.pause(_FIRST_PAUSE)
                    continue
                if self.team.rounds or self._begin() == step:
                    self._server.anew(step)
                    return step, flat

    def _begin_group(self, first: Callable[[], Flat]) -> None:
        """Create the group and give it its values, unless both was done."""
        server, team = self._server, self.team
        with self._kept():
            server.create(team.tensors, team.optimizer, team.optimizer_options)
            versions = server.versions()
        if min(versions) > 0:
            return
        # What a rank 0 that died between shards has done is repeated, not contradicted: the same seed gives the same
        # values, the same checkpoint the same state.
        mixed = team.rounds and max(versions) > 1
        if team.checkpoint is not None:
            try:
                server.restore(team.checkpoint)
            except errors.FailedPrecondition as error:
                raise (_lost("a shard has lost its part of them") if mixed else error) from error
        elif mixed:
            raise _lost("a shard has lost its part of them")
        else:
            with self._kept():
                server.load(first())

    def begin(self, step: int, gradient: Flat, samples: int) -> Callable[[int, int], None] | None:
        """Parts of the gradient leave as soon as they are there."""
        return self._server.begin(gradient, step=step, samples=samples)

    def abandon(self) -> None:
        """End what has left: it counts for nothing."""
        self._server.abandon()

    def exchange(self, step: int, gradient: Flat, samples: int) -> Next:
        """Push, and pull what comes out: in rounds that version, else what is there."""
        with self._kept():
            counts = self._server.push(gradient, step=step, samples=samples)
            if counts:
                try:
                    return Next(step=step + 1, flat=self._server.pull(step + 1))
                except errors.OutOfRange:
                    # The others did not wait for this worker to read.
                    if not self.team.drops or self.team.rank == 0:
                        raise
            latest, flat = self._server.latest()
            return Next(step=latest, flat=flat, counts=counts)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Shards that are gone have lost the parameters, if they are kept elsewhere."""
        try:
            yield
        except (errors.NotFound, errors.Unavailable) as error:
            if not self.team.rolls_back or error.reason == GROUP_LOST:
                raise
            raise _lost(error.message) from error

    def clocks(self) -> Sequence[int] | None:
        """Without rounds, the pushes of each worker that every shard has applied."""
        if self.team.rounds:
            return None
        return [min(clocks) for clocks in zip(*self._server.clocks(), strict=True)]

    def stand(self, step: int) -> bool:
        """In rounds, always. Else when every shard has all pushes for earlier steps, and nobody begins this one."""
        if self.team.rounds:
            return True
        with self._kept():
            if step < max(self._stand, self._server.hold()):
                return False
            while True:
                clocks = [clock for shard in self._server.clocks() for clock in shard]
                if max(clocks) > step:  # a shard that was restarted has forgotten to hold them
                    self._stand = max(clocks)
                    return False
                if min(clocks) == step:
                    return True
                self.team.pause(_FIRST_PAUSE)

    def leave(self) -> None:
        """Close the connections."""
        self._server.close()

    def samples(self) -> int | None:
        """Where late workers are dropped, what the shards have counted."""
        return self._server.samples() if self.team.drops else None

    def snapshot(self) -> Held:
        """The group. In rounds nobody makes a step without this worker; else the others have stopped, or soon do."""
        while True:
            try:
                return self._server.snapshot()
            except errors.Stale as error:
                if error.reason != "VERSION_SKEW":
                    raise
            self.team.pause(_FIRST_PAUSE)

    def _begin(self) -> int:
        """The step to go on with, once rank 0 has created the group on all shards."""
        pause = _FIRST_PAUSE
        while True:
            try:
                clocks = self.clocks()
                return min(self._server.versions()) if clocks is None else clocks[self.team.rank]
            except errors.NotFound:
                self.team.pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)


def _lost(why: str) -> errors.NotFound:
    return errors.NotFound(f"the parameters are lost: {why}", reason=GROUP_LOST)
