"""Synchronous training on a sharded parameter server."""

from collections.abc import Callable

from tidemill import errors
from tidemill.training.strategies.base import Flat, Strategy, Team

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


class ParameterServerStrategy(Strategy):
    """Synchronous steps on a sharded parameter server, which runs the optimizer (Li et al. 2014).

    Pushing a gradient again changes nothing, and the version before the latest can be pulled: so a worker that takes a
    dead one's place goes on at the lowest version of all shards, and gives those that are ahead what they have already.
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
                server.load(first())
        step = min(self._versions())
        return step, server.pull(step)

    def exchange(self, step: int, gradient: Flat, samples: int) -> Flat:
        """Push, and pull the version that comes out."""
        self._server.push(gradient, step=step, samples=samples)
        return self._server.pull(step + 1)

    def _versions(self) -> list[int]:
        """The version of each shard, once rank 0 has created the group on all of them."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return list(self._server.versions())
            except errors.NotFound:
                self.team.pause(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
