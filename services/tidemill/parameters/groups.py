"""All groups of one shard, within its limits."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import trace

from tidemill import plugins
from tidemill.clock import Clock
from tidemill.errors import AlreadyExists, Exhausted, NotFound, Unimplemented, invalid
from tidemill.parameters import catalogue, consistency, durability, snapshots
from tidemill.parameters.consistency.base import Consistency
from tidemill.parameters.definition import Definition
from tidemill.parameters.durability.base import Journal, Place
from tidemill.parameters.group import Group
from tidemill.parameters.lanes import ALONE, Lanes
from tidemill.parameters.optimizers.base import limit_threads
from tidemill.parameters.part import Part
from tidemill.parameters.sharedmemory import Segment
from tidemill.parameters.store import Store
from tidemill.slots import Slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one shard takes on.

    Args:
        bytes: bytes of all groups together, as `needed` counts them.
        groups: number of groups.
        waiting: calls that wait for a version at a time.
        optimizer_threads: threads of PyTorch for one operation.
        lanes: blocks of a group that are worked on at the same time.
    """

    bytes: int
    groups: int
    waiting: int
    optimizer_threads: int
    lanes: int = 1


def needed(definition: Definition) -> int:
    """Bytes that a group takes on its shard at work: parameters, the optimizer's state and gradients, float32.

    Beyond them come, for as long as they last, gradients that are sent again and copies of the state.
    """
    way = definition.consistency
    values = snapshots.VERSIONS + way.arrival_order if way.rounds else 1
    # Clipping and layer-wise optimizers look at the whole mean before a step.
    whole = definition.clip_norm > 0 or catalogue.is_layerwise(definition.optimizer)
    states = catalogue.states(definition.optimizer)
    # A log is begun anew with a copy of everything, which is written beside the work.
    copies = (1 + states) * (definition.durability.mode == "wal")
    return 4 * definition.elements * (values + whole + states + copies + definition.workers)


def way_of(definition: Definition, lanes: Lanes = ALONE) -> Consistency:
    """What holds a group's parameters, as its definition says; PyTorch is imported here."""
    rule = catalogue.make_rule(
        definition.rule, [math.prod(tensor.shape) for tensor in definition.tensors], definition.blocks
    )
    if definition.sparse:
        catalogue.check_rows(definition.optimizer)
    if rule.exchanges and definition.shards > 1 and definition.stragglers.drops:
        raise invalid(
            "group.stragglers.policy",
            "cannot be drop where a step needs sums over all shards: the others close their round after the first one",
        )
    if catalogue.is_layerwise(definition.optimizer) and definition.shards > 1 and not definition.consistency.rounds:
        # Each shard would make the pushes of different workers in an order of its own, and wait for the others in it.
        raise Unimplemented(
            "layer-wise optimizers work on one shard where there are no rounds", reason="NEEDS_ONE_SHARD"
        )
    # In rounds no worker is ahead of another: they are what a staleness of 0 means.
    mode = "bsp" if definition.consistency.rounds else definition.consistency.mode
    way = plugins.load(consistency, mode, Consistency)(definition, Part(definition.blocks, definition.widths), rule)
    way.lanes = lanes
    return way


class Groups:
    """The groups by name. Safe for threads.

    Args:
        limits: of this shard.
        clock: for the times of creation.
        tracer: makes the spans of rounds.
        closed: told the seconds that the closing of each round took.
        store: keeps groups that outlive this process; None = there can be none.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Clock,
        tracer: trace.Tracer,
        closed: Callable[[float], None],
        store: Store | None = None,
    ) -> None:
        self._store = store
        self._lanes = Lanes(limits.lanes)
        self._limits = limits
        self._clock = clock
        self._tracer = tracer
        self._closed = closed
        self._waiting = Slots(limits.waiting, "pulls that wait", "TOO_MANY_WAITING")
        self._changing = threading.Lock()
        # Replaced, never changed: readers need no lock.
        self._groups: dict[str, Group] = {}

    def create(self, definition: Definition) -> Group:
        """The new group; the one that is there already when it was defined the same way.

        Raises:
            AlreadyExists: there is another group of this name.
            Exhausted: a limit of this shard would be passed.
            FailedPrecondition: NO_DATA_DIRECTORY, it is to outlive this process, which keeps nothing.
        """
        with self._changing:
            there = self._groups.get(definition.name)
            if there is not None:
                if there.definition != definition:
                    raise AlreadyExists(f"{definition.name} exists with other content", reason="GROUP_EXISTS")
                return there
            self._admit(definition)
            limit_threads(self._limits.optimizer_threads)
            way = way_of(definition, self._lanes)
            place = self._store.add(definition) if self._store and definition.durability.mode == "wal" else None
            group = self._group(definition, way, place)
            self._groups = {**self._groups, group.name: group}
            return group

    def recover(self) -> None:
        """Take up the groups that have outlived another process; before anybody asks for one.

        Raises:
            Exhausted: they take more than the limits of this shard.
            DataLoss: it is not known any more what they were.
        """
        with self._changing:
            for definition, place in self._store.kept() if self._store else ():
                self._admit(definition)
                limit_threads(self._limits.optimizer_threads)
                group = self._group(definition, way_of(definition, self._lanes), place)
                group.recover()
                self._groups = {**self._groups, group.name: group}

    def _group(self, definition: Definition, way: Consistency, place: Place | None) -> Group:
        journal = plugins.load(durability, definition.durability.mode, Journal)(definition, place)
        return Group(
            definition,
            way,
            journal,
            clock=self._clock,
            waiting=self._waiting,
            tracer=self._tracer,
            closed=self._closed,
        )

    def get(self, name: str) -> Group:
        """The group `name`.

        Raises:
            NotFound: there is none.
        """
        group = self._groups.get(name)
        if group is None:
            raise NotFound(f"{name[:160]} is not on this shard", metadata={"name": name[:160]})
        return group

    def attach(self, name: str, worker: int, attempt: int) -> Segment:
        """Memory for a worker of a group to share. Raises as `Group.attach`, and Exhausted at this shard's limit."""
        with self._changing:
            group = self.get(name)
            asked = 4 * group.part.elements
            held = self._held()
            if held + asked > self._limits.bytes:
                raise Exhausted(
                    f"shared memory for {name} takes {asked} bytes more; all groups may take {self._limits.bytes}, "
                    f"{held} are taken",
                    reason="TOO_MANY_PARAMETERS",
                )
            return group.attach(worker, attempt)

    def _held(self) -> int:
        return sum(needed(group.definition) + group.attached for group in self._groups.values())

    def after(self, name: str, count: int) -> list[Group]:
        """The first `count` groups after `name`, in order of name; "" = from the start."""
        groups = self._groups
        return [groups[key] for key in sorted(groups) if key > name][:count]

    def delete(self, name: str) -> None:
        """Delete a group; who waits for it gets NOT_FOUND.

        Raises:
            NotFound: there is none.
        """
        with self._changing:
            group = self.get(name)
            self._groups = {key: other for key, other in self._groups.items() if key != name}
        group.delete()

    def stop(self) -> None:
        """Let all calls that wait fail with UNAVAILABLE: the process ends."""
        for group in self._groups.values():
            group.stop()
        self._lanes.close()

    def _admit(self, definition: Definition) -> None:
        if len(self._groups) >= self._limits.groups:
            raise Exhausted(f"this shard holds {len(self._groups)} groups already", reason="TOO_MANY_GROUPS")
        held = self._held()
        asked, allowed = needed(definition), self._limits.bytes
        if held + asked > allowed:
            raise Exhausted(
                f"{definition.name} needs {asked} bytes on this shard (versions, optimizer state and gradients of "
                f"{definition.workers} workers); all groups together may take {allowed}, {held} are taken",
                reason="TOO_MANY_PARAMETERS",
                metadata={"asked": str(asked), "taken": str(held), "limit": str(allowed)},
            )
