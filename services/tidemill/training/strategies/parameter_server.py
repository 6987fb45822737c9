"""Training on a sharded parameter server: step by step together, or at each worker's own pace."""

from collections.abc import Callable, Sequence

from tidemill import errors
from tidemill.training.strategies.base import Flat, Held, Strategy, Team

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


class ParameterServerStrategy(Strategy):
    """Steps on a sharded parameter server, which runs the optimizer (Li et al. 2014).

    Pushing a gradient again changes nothing, and the version before the latest can be pulled: so a worker that takes a
    dead one's place goes on at the lowest version of all shards, and gives those that are ahead what they have already.

    Where the workers do not make each step together (SSP, ASP), a worker counts its own steps, its clock. One that
    takes a dead one's place goes on at the clock of the shard that has applied the fewest of its pushes; the others
    know what they have. No worker waits for the end of another's epoch, or of its training.
    """

    def __init__(self, team: Team) -> None:
        super().__init__(team)
        self._server = team.server()

    def join(self, first: Callable[[], Flat]) -> tuple[int, Flat]:
        """Rank 0 creates the group and sets its first values; others wait until they are there."""
        server, team = self._server, self.team
        if team.rank == 0:
            server.create(team.tensors, team.optimizer, team.optimizer_options)
            if min(server.versions()) == 0:
                # The same seed gives the same values: a rank 0 that died between shards is repeated, not contradicted.
                if team.checkpoint is None:
                    server.load(first())
                else:
                    server.restore(team.checkpoint)
        server.anew()
        while True:
            step = self._begin()
            try:
                flat = server.pull(step)
            except errors.OutOfRange:  # the group was new when it was asked, and goes on from a checkpoint
                team.pause(_FIRST_PAUSE)
                continue
            if team.rounds or self._begin() == step:
                return step, flat

    def exchange(self, step: int, gradient: Flat, samples: int) -> Flat:
        """Push, and pull what comes out: in rounds that version, else what is there."""
        self._server.push(gradient, step=step, samples=samples)
        return self._server.pull(step + 1)

    def clocks(self) -> Sequence[int] | None:
        """Without rounds, the pushes of each worker that every shard has applied."""
        if self.team.rounds:
            return None
        return [min(clocks) for clocks in zip(*self._server.clocks(), strict=True)]

    def snapshot(self) -> Held:
        """The group. In rounds nobody makes a step without this worker."""
        return self._server.snapshot()

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
