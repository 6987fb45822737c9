"""Which copies of the shards of a replicated group count: as long as nothing happens both of each, then one."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from tidemill import errors
from tidemill.clients.patience import is_broken

LOG = logging.getLogger(__name__)
COPIES = 2
LOOK = 1.0
"""Seconds after which an operation asks whether the copies that it waits for still count."""
BACKUP = ".backup"
"""Ends the name of the group of second copies."""


class Arbiter(Protocol):
    """Decides, once for everybody, which copy of a shard goes on alone."""

    def __call__(self, shard: int, term: int, copy: int) -> tuple[int, int]:
        """Let `copy` go on alone from `term` on, which must be the one after that in force; else change nothing.

        Args:
            shard: of the group.
            term: that is to begin; 0 = change nothing.
            copy: 0 or 1.

        Returns:
            The term in force, 0 when both copies count, and the copy that counts in it.
        """


class LocalArbiter:
    """Decides for clients in one process alone. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._terms: dict[int, tuple[int, int]] = {}

    def __call__(self, shard: int, term: int, copy: int) -> tuple[int, int]:
        """Let the first who asks for a term have it."""
        with self._lock:
            known = self._terms.get(shard, (0, 0))
            if term == known[0] + 1:
                known = self._terms[shard] = term, copy
            return known


class Moved(Exception):
    """The copy that was asked does not count any more: ask the other one."""


class Replicas:
    """The copies of each shard, as one client knows them. Safe for threads.

    Copies are numbered as endpoints: shard `k`'s first one is `k`, its second one `shards + k`.

    Args:
        shards: number of shards.
        arbiter: decides which copy goes on alone; None = there is one copy of each.
        lost: told each endpoint that does not count any more, so that calls to it end.
    """

    def __init__(self, shards: int, arbiter: Arbiter | None, lost: Callable[[int], None]) -> None:
        self._shards = shards
        self._arbiter = arbiter
        self._lost = lost
        self._lock = threading.Lock()
        self._terms = [0] * shards
        self._live = [list(range(COPIES if arbiter else 1)) for _ in range(shards)]
        self._failures: dict[int, int] = {}
        self._asked = arbiter is None
        self._ended = threading.Event()
        self._waiting: dict[object, float] = {}
        self._looks: threading.Thread | None = None

    @property
    def endpoints(self) -> int:
        """How many there are."""
        return self._shards * (COPIES if self._arbiter else 1)

    def first(self) -> list[int]:
        """The endpoint to read from, for each shard."""
        self._begin()
        with self._lock:
            return [self._endpoint(shard, live[0]) for shard, live in enumerate(self._live)]

    def all(self) -> list[int]:
        """The endpoints that must have every push."""
        self._begin()
        with self._lock:
            return [self._endpoint(shard, copy) for shard, live in enumerate(self._live) for copy in live]

    def counts(self, endpoint: int) -> bool:
        """Whether this copy still counts."""
        with self._lock:
            return endpoint // self._shards in self._live[endpoint % self._shards]

    def alone(self, endpoint: int) -> bool:
        """Whether there is no other copy of its shard."""
        with self._lock:
            return len(self._live[endpoint % self._shards]) == 1

    def term(self, shard: int) -> int:
        """The latest one that is known."""
        with self._lock:
            return self._terms[shard]

    def well(self, endpoint: int) -> None:
        """It has answered."""
        with self._lock:
            self._failures.pop(endpoint, None)

    def seen(self, shard: int, term: int) -> None:
        """A copy has heard of this term; learn what was decided when it is news."""
        if term > self.term(shard):
            try:
                self.learn(shard)
            except errors.TidemillError as error:
                # The next answer says the same.
                LOG.warning("which copy of shard %d counts could not be learnt: %s", shard, error.message)

    def learn(self, shard: int) -> None:
        """Ask which copies count. Raises what the arbiter raises."""
        if self._arbiter is not None:
            self._take(shard, *self._arbiter(shard, 0, 0))

    def failed(self, endpoint: int, error: errors.TidemillError, missing: Callable[[int], bool]) -> None:
        """A call to this endpoint has failed: see to it that the other copy goes on alone, if this one is gone.

        A first broken call is nothing; after a second one in a row, it is. A copy whose part is not there is gone when
        the other one has it.

        Args:
            endpoint: which.
            error: what it has answered.
            missing: whether the part is not there, or without values, at an endpoint.

        Raises:
            Moved: this copy does not count any more.
            TidemillError: what the arbiter raises.
        """
        if not self.counts(endpoint):
            raise Moved
        if self.alone(endpoint) or self._arbiter is None:
            return
        shard, copy = endpoint % self._shards, endpoint // self._shards
        other = 1 - copy
        if isinstance(error, errors.NotFound | errors.DataLoss):
            if missing(self._endpoint(shard, other)):
                return
        elif is_broken(error):
            with self._lock:
                failures = self._failures[endpoint] = self._failures.get(endpoint, 0) + 1
            if failures < 2:
                return
        else:
            return
        self._take(shard, *self._arbiter(shard, self.term(shard) + 1, other))
        if not self.counts(endpoint):
            raise Moved

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around an operation: when it takes long, it is asked from time to time which copies count.

        A copy that others have given up may wait in vain for what they do not push to it any more.
        """
        if self._arbiter is None:
            yield
            return
        token = object()
        with self._lock:
            self._waiting[token] = time.monotonic()
            if self._looks is None:
                self._looks = threading.Thread(target=self._look, name="replicas", daemon=True)
                self._looks.start()
        try:
            yield
        finally:
            with self._lock:
                del self._waiting[token]

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()
        if self._looks is not None:
            self._looks.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK):
            with self._lock:
                oldest = min(self._waiting.values(), default=math.inf)
                shards = [shard for shard, live in enumerate(self._live) if len(live) > 1]
            if time.monotonic() - oldest < LOOK:
                continue
            for shard in shards:
                try:
                    self.learn(shard)
                except errors.TidemillError as error:
                    LOG.warning("which copy of shard %d counts could not be learnt: %s", shard, error.message)

    def _begin(self) -> None:
        """What was decided before this client began."""
        if not self._asked:
            for shard in range(self._shards):
                self.learn(shard)
            self._asked = True

    def _endpoint(self, shard: int, copy: int) -> int:
        return shard + copy * self._shards

    def _take(self, shard: int, term: int, copy: int) -> None:
        with self._lock:
            if term <= self._terms[shard]:
                return
            gone = [one for one in self._live[shard] if one != copy]
            self._terms[shard], self._live[shard] = term, [copy]
        for one in gone:
            self._lost(self._endpoint(shard, one))


def rotated(addresses: Sequence[str]) -> list[str]:
    """Where the second copies are: each on the next process."""
    return [*addresses[1:], *addresses[:1]]
