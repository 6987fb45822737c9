"""Synchronous training on a sharded parameter server."""

import time
from collections.abc import Callable
from typing import TypeVar

from tidemill import errors
from tidemill.training.strategies.base import Flat, Strategy

T = TypeVar("T")

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


class ParameterServerStrategy(Strategy):
    """Synchronous steps on a sharded parameter server, which runs the optimizer (Li et al. 2014).

    Pushing a gradient again changes nothing, and the version before the latest can be pulled: so a worker that takes a
    dead one's place goes on at the lowest version of all shards, and gives those that are ahead what they have already.
    """

    def join(self, first: Callable[[], Flat]) -> tuple[int, Flat]:
        """Rank 0 creates the group and sets its first values; others wait until they are there."""
        server, team = self.team.server, self.team
        if team.rank == 0:
            self._patiently(lambda: server.create(team.tensors, team.optimizer, team.optimizer_options))
            if min(self._patiently(server.versions)) == 0:
                # The same seed gives the same values: a rank 0 that died between shards is repeated, not contradicted.
                values = first()
                self._patiently(lambda: server.load(values))
        step = min(self._patiently(server.versions, until_created=True))
        return step, self._patiently(lambda: server.pull(step))

    def exchange(self, step: int, gradient: Flat, samples: int) -> Flat:
        """Push, and pull the version that comes out; both again when a shard was out of reach."""
        server = self.team.server

        def push_and_pull() -> Flat:
            server.push(gradient, step=step, samples=samples)
            return server.pull(step + 1)

        return self._patiently(push_and_pull)

    def _patiently(self, call: Callable[[], T], *, until_created: bool = False) -> T:
        """The result of `call`, asked again while shards are out of reach, or do not have the group yet."""
        pause, since = _FIRST_PAUSE, time.monotonic()
        while True:
            try:
                return call()
            except errors.NotFound:
                if not until_created:
                    raise
            except (errors.Unavailable, errors.DeadlineExceeded):
                if time.monotonic() - since > self.team.patience:
                    raise
            self.team.pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
