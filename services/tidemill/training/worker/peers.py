"""The other workers of a job, reached over torch.distributed."""

import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed

from tidemill import config
from tidemill.training.strategies.base import Flat, Lost, Snapshot
from tidemill.training.worker.heartbeat import Progress
from tidemill.training.worker.stop import Stop
from tidemill.training.worker.task import Coordinator, Place

LOG = logging.getLogger(__name__)
LOOK = 0.1
"""Seconds between two looks at whether the others are still there, while this worker waits for them."""
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.25
_TORCH: Any = distributed
"""Its annotations leave out what is made in C++."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Who this worker is among the workers of its job, and where they reach it."""

    rank: int
    workers: int
    host: str
    patience: float
    """Longest time in seconds that workers wait for each other in one exchange."""
    placement: int = 0
    """Of its orders."""


class TorchPeers:
    """The other workers; a `strategies.base.Peers`.

    Rank 0 listens on a free port, tells the training service, and the others hear of it there: no port is chosen before
    it is bound. Whoever waits for others looks several times a second whether it is to end, or whether a later meeting
    has begun, which the answer to its signs of life tells; so no wait outlives the process that is waited for by much,
    also when that vanishes without a word. Connections are left to a thread of their own, because closing them may take
    as long as an exchange.

    Args:
        seat: who this worker is.
        coordinator: knows where the others are.
        read: reads a checkpoint.
        progress: takes the meeting that this worker is in, and knows of the latest one.
        stop: ends every wait.
    """

    def __init__(
        self, seat: Seat, coordinator: Coordinator, read: Callable[[str], Snapshot], progress: Progress, stop: Stop
    ) -> None:
        self._seat = seat
        self._coordinator = coordinator
        self._read = read
        self._progress = progress
        self._stop = stop
        self._store: Any = None
        self._address = ""
        self._checkpoint = ""
        self._group: Any = None

    def meet(self) -> None:
        """Connect with all others."""
        self._leave()
        if self._seat.rank == 0 and self._seat.workers > 1 and self._store is None:
            self._listen()
        place = self._place()
        self._progress.generation = place.generation
        self._progress.latest = max(self._progress.latest, place.generation)
        self._checkpoint = place.checkpoint
        if self._seat.workers > 1:
            self._group = self._connected(place)
            LOG.info("rank %d has met the others, meeting %d", self._seat.rank, place.generation)

    def leave(self) -> None:
        """Leave the meeting, and await nobody any more."""
        self._leave()
        self._store, self._address = None, ""

    def last(self) -> Snapshot | None:
        """The last checkpoint of the job."""
        return self._read(self._checkpoint) if self._checkpoint else None

    def broadcast(self, values: np.ndarray[Any, Any]) -> None:
        """Overwrite `values` by those of rank 0."""
        if self._seat.workers > 1:
            self._begin(lambda: self._group.broadcast(torch.from_numpy(values), 0)).wait()

    def add(self, values: Flat) -> "TorchSum":
        """Begin to sum up `values`."""
        return self._begin(lambda: self._group.allreduce([torch.from_numpy(values)]))

    def check(self) -> None:
        """Go on waiting, or raise.

        Raises:
            Stopped: the worker is to end.
            Lost: another meeting has begun.
        """
        self._stop.check()
        if self._progress.latest > self._progress.generation:
            raise Lost(f"meeting {self._progress.latest} has begun")
        self._check_orders()

    def _check_orders(self) -> None:
        """Who has old orders would wait for others than those who come."""
        if self._progress.placement > self._seat.placement:
            raise Lost("the job goes on with other workers")

    def _begin(self, call: Callable[[], Any]) -> "TorchSum":
        self.check()
        try:
            return TorchSum(call(), self.check)
        except RuntimeError as error:
            raise Lost(_text(error)) from error

    def _place(self) -> Place:
        lost, pause = self._progress.generation, _FIRST_PAUSE
        while True:
            place = self._coordinator.meet(lost=lost, address=self._address)
            if place.address or self._seat.workers == 1:
                return place
            self._stop.pause(pause)
            self._check_orders()
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _listen(self) -> None:
        """Await the others on a port that is bound already when they hear of it."""
        host = self._seat.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family)
        port = listener.getsockname()[1]
        patience = timedelta(seconds=self._seat.patience)
        self._store = _TORCH.TCPStore(
            host, port, None, True, patience, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _connected(self, place: Place) -> Any:
        host, _, port = place.address.rpartition(":")
        self._tell(host.strip("[]"), port)
        attempt = _Attempt(lambda: self._connect(host.strip("[]"), int(port), place.generation))
        while not attempt.over.wait(LOOK):
            self.check()
        if attempt.error is not None:
            raise Lost(_text(attempt.error)) from attempt.error
        return attempt.found

    def _connect(self, host: str, port: int, generation: int) -> Any:
        patience = timedelta(seconds=self._seat.patience)
        store = self._store or _TORCH.TCPStore(host, port, None, False, patience, wait_for_workers=False)
        options = _TORCH.ProcessGroupGloo._Options()
        options._timeout = patience
        options._devices = [_TORCH.ProcessGroupGloo.create_device(hostname=self._seat.host)]
        rank, workers = self._seat.rank, self._seat.workers
        return _TORCH.ProcessGroupGloo(_TORCH.PrefixStore(str(generation), store), rank, workers, options)

    def _tell(self, host: str, port: str) -> None:
        """Set the variables that torch.distributed and those who use it look at, as torchrun does."""
        config.set_default("LOCAL_RANK", str(self._seat.rank))
        for name, value in {
            "RANK": str(self._seat.rank),
            "WORLD_SIZE": str(self._seat.workers),
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
        }.items():
            config.set_variable(name, value)

    def _leave(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            left = [group]
            del group
            threading.Thread(target=left.clear, name="leaving", daemon=True).start()


class TorchSum:
    """An exchange that goes on in the background; a `strategies.base.Sum`.

    Args:
        work: the exchange.
        check: raises when there is no use in waiting.
    """

    def __init__(self, work: Any, check: Callable[[], None]) -> None:
        self._work = work
        self._check = check

    def wait(self) -> None:
        """Return when it is over."""
        look = timedelta(seconds=LOOK)
        while True:
            over = self._work.is_completed()
            try:
                self._work.wait(look)
            except RuntimeError as error:  # too long, or failed
                if over:
                    raise Lost(_text(error)) from error
                self._check()
            else:
                return


@dataclass(slots=True)
class _Attempt:
    """A call in a thread of its own, which is left alone when it takes too long."""

    call: Callable[[], Any]
    over: threading.Event = field(default_factory=threading.Event)
    found: Any = None
    error: RuntimeError | None = None

    def __post_init__(self) -> None:
        threading.Thread(target=self._run, name="meeting", daemon=True).start()

    def _run(self) -> None:
        try:
            self.found = self.call()
        except RuntimeError as error:
            self.error = error
        finally:
            self.over.set()


def _text(error: RuntimeError) -> str:
    """The first line of what torch says, without the places in its source."""
    return str(error).split("\n", 1)[0].rsplit("] ", 1)[-1][:200]
