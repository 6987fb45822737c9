"""A parameter server in memory, as workers in threads see it."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tidemill.clients.groupdefinition import Definition
from tidemill.clients.groupstate import GroupState
from tidemill.errors import FailedPrecondition, NotFound, OutOfRange, Stale
from tidemill.training.strategies.base import Flat, Held
from tidemill.training.worker.task import Task

_DEFINITION = Definition(tensors=(("w", (131,)),), workers=1, rule={})


class MemoryGroup:
    """A parameter group with Adam, as the parameter server promises it: rounds, repetitions, the last two versions."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._changed = threading.Condition()
        self._open = True
        self._created = False
        self._values: dict[int, Flat] = {}
        self._arrived: dict[int, tuple[int, Flat]] = {}
        self._parameters = torch.empty(0)
        self._optimizer: Any = None
        self.attempts = [0] * workers

    def end(self) -> None:
        """Delete the group: what waits ends with NotFound."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def create(self, rate: float) -> None:
        """Create it, once."""
        with self._changed:
            if not self._created:
                self._optimizer = lambda flat: torch.optim.Adam([flat], lr=rate)
            self._created = True

    def load(self, values: Flat) -> None:
        """Set the first values, once."""
        with self._changed:
            if self._values:
                if not np.array_equal(self._values.get(0, values), values):
                    raise FailedPrecondition("other first values")
                return
            self._parameters = torch.from_numpy(values.copy()).requires_grad_()
            self._optimizer = self._optimizer(self._parameters)
            self._values[0] = values.copy()
            self._changed.notify_all()

    def snapshot(self) -> GroupState:
        """All there is to know of it."""
        with self._changed:
            version = max(self._values)
            held = self._optimizer.state[self._parameters] if version else {}
            return GroupState(
                version=version,
                steps=version,
                clocks=(version,) * self._workers,
                samples=0,
                flat=self._values[version].copy(),
                state={name: {0: value.numpy().reshape(-1).copy()} for name, value in held.items()},
            )

    def restore(self, state: GroupState) -> None:
        """Go on from there."""
        with self._changed:
            self._parameters = torch.from_numpy(np.array(state.flat)).requires_grad_()
            self._optimizer = self._optimizer(self._parameters)
            held = {name: torch.from_numpy(np.array(blocks[0])) for name, blocks in state.state.items()}
            self._optimizer.state[self._parameters] = held | {"step": held["step"][0]}
            self._values[state.version] = np.array(state.flat)
            self._changed.notify_all()

    def version(self) -> int:
        """The latest version."""
        with self._changed:
            self._check()
            return max(self._values, default=0)

    def push(self, rank: int, attempt: int, step: int, gradient: Flat, samples: int) -> None:
        """Take a gradient; the last one of a round closes it."""
        with self._changed:
            self._check()
            if attempt < self.attempts[rank]:
                raise Stale("a later attempt was here")
            self.attempts[rank] = attempt
            version = max(self._values)
            if step < version:
                return
            assert step == version, "nobody can be ahead of the group"
            self._arrived[rank] = (samples, gradient.copy())
            if len(self._arrived) == self._workers:
                self._close(version)

    def _close(self, version: int) -> None:
        parts = [self._arrived[rank] for rank in range(self._workers)]
        total = sum(samples for samples, _ in parts)
        mean = sum((gradient * np.float32(samples / total) for samples, gradient in parts), np.float32(0))
        self._parameters.grad = torch.from_numpy(np.asarray(mean, np.float32))
        self._optimizer.step()
        self._arrived.clear()
        self._values = {version: self._values[version], version + 1: self._parameters.detach().numpy().copy()}
        self._changed.notify_all()

    def pull(self, version: int) -> Flat:
        """The values at a version, once they are there."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open or max(self._values, default=-1) >= version)
            self._check()
            if version not in self._values:
                raise OutOfRange(f"version {version} is gone")
            return self._values[version].copy()

    def _check(self) -> None:
        if not self._open or not self._created:
            raise NotFound("there is no such group")


@dataclass
class MemoryServer:
    """One worker's end of a group; `hook(event, step)` may raise what a dying worker or a lost connection would."""

    group: MemoryGroup
    task: Task
    hook: Callable[[str, int], None] = lambda event, step: None

    def create(
        self, tensors: Sequence[tuple[str, tuple[int, ...]]], optimizer: str, options: Mapping[str, Any]
    ) -> None:
        assert optimizer == "adam"
        self.hook("create", 0)
        self.group.create(options["learning_rate"])

    def load(self, values: Flat) -> None:
        self.hook("load", 0)
        self.group.load(values)

    def begin(self, gradient: Flat, *, step: int, samples: int) -> None:
        """Parts are of no use here."""

    def abandon(self) -> None:
        """Nothing has left."""

    def push(self, gradient: Flat, *, step: int, samples: int) -> bool:
        self.hook("push", step)
        self.group.push(self.task.rank, self.task.attempt, step, gradient, samples)
        self.hook("pushed", step)
        return True

    def pull(self, version: int) -> Flat:
        self.hook("pull", version)
        return self.group.pull(version)

    def latest(self) -> tuple[int, Flat]:
        raise NotImplementedError("this group waits for all")

    def samples(self) -> int:
        raise NotImplementedError("this group waits for all")

    def versions(self) -> list[int]:
        return [self.group.version()]

    def snapshot(self) -> Held:
        self.hook("snapshot", self.group.version())
        return Held(state=self.group.snapshot(), definition=_DEFINITION)

    def restore(self, read: Callable[[Definition], GroupState]) -> None:
        self.group.restore(read(_DEFINITION))

    def clocks(self) -> list[list[int]]:
        raise NotImplementedError("this group makes rounds")

    def anew(self, step: int) -> None:
        """Nothing is kept here."""

    def hold(self) -> int:
        raise NotImplementedError("this group makes rounds")

    def close(self) -> None:
        """Nothing is connected."""
