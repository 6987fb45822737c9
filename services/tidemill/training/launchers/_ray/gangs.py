"""Placement groups: workers of a job that start together get their places together, or wait together."""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

_GATHER = 0.05
"""Seconds in which launches of one job count as made together."""
_POLL = 0.1
_GONE = "REMOVED"


@dataclass(slots=True, kw_only=True)
class Gang:
    """A placement group with one bundle for each of its workers."""

    job: str
    name: str
    group: PlacementGroup
    holders: list[str | None]
    """Name of the agent that has each bundle."""
    over: set[str] = field(default_factory=set)
    """Agents whose worker has ended: their bundles are for their successors."""

    def vacancy(self) -> int | None:
        """A bundle that can be had."""
        free = (i for i, holder in enumerate(self.holders) if holder is None or holder in self.over)
        return next(free, None)


@dataclass(frozen=True, slots=True)
class Place:
    """A bundle of a gang."""

    gang: Gang
    bundle: int


class Gangs:
    """The placement groups of all jobs; they outlive this process.

    Args:
        namespace: what their names begin with.
        bundle: resources of one worker: `CPU`, `GPU`.
        strategy: Ray's placement strategy.
        evict: ends an agent whose worker has ended.
    """

    def __init__(self, namespace: str, bundle: dict[str, float], strategy: str, evict: Callable[[str], None]) -> None:
        self._namespace = namespace
        self._bundle = bundle
        self._strategy = strategy
        self._evict = evict
        self._gangs: dict[str, Gang] = {}
        self._places: dict[str, Place] = {}
        self._waves: dict[str, tuple[list[str], asyncio.Task[Gang]]] = {}

    async def place(self, name: str, job: str) -> Place:
        """A bundle for the agent `name`, once it is reserved: that of a predecessor, or one of a new group."""
        for gang in self._gangs.values():
            bundle = gang.vacancy() if gang.job == job else None
            if bundle is not None:
                predecessor, gang.holders[bundle] = gang.holders[bundle], name
                if predecessor is not None:
                    gang.over.discard(predecessor)
                    self._places.pop(predecessor, None)
                    self._evict(predecessor)
                break
        else:
            gang = await self._new(name, job)
            bundle = gang.holders.index(name)
        place = self._places[name] = Place(gang, bundle)
        while True:
            if await self._is_reserved(gang):
                return place
            await asyncio.sleep(_POLL)

    def known(self, name: str, gang_name: str, bundle: int) -> None:
        """Take note of the place of an agent that was started by another process."""
        gang = self._gangs.get(gang_name)
        if gang is None:
            group = ray.util.get_placement_group(gang_name)
            job = gang_name.split("/")[1]
            holders: list[str | None] = [None] * len(group.bundle_specs)
            gang = self._gangs[gang_name] = Gang(job=job, name=gang_name, group=group, holders=holders)
        gang.holders[bundle] = name
        self._places[name] = Place(gang, bundle)

    def over(self, name: str) -> None:
        """The worker of an agent has ended; a successor may have its place."""
        if name in self._places:
            self._places[name].gang.over.add(name)

    def release(self, name: str) -> None:
        """An agent is gone; with the last one its group goes."""
        place = self._places.pop(name, None)
        if place is None:
            return
        gang = place.gang
        gang.over.discard(name)
        if gang.holders[place.bundle] == name:
            gang.holders[place.bundle] = None
        if not any(gang.holders):
            self.remove(gang.name)

    def remove(self, gang_name: str) -> None:
        """Give back what a group has reserved; what runs there ends."""
        self._gangs.pop(gang_name, None)
        with suppress(ValueError):  # it is gone
            ray.util.remove_placement_group(ray.util.get_placement_group(gang_name))

    def wish(self) -> str:
        """What is waited for and what there is, for people."""
        wanted = _text(self._bundle)
        free, total = (_text(has, self._bundle) for has in (ray.available_resources(), ray.cluster_resources()))
        able = any(
            node["Alive"] and all(node["Resources"].get(kind, 0) >= most for kind, most in self._bundle.items())
            for node in ray.nodes()
        )
        lacking = "" if able else "; no node of the cluster has as much"
        return f"takes {wanted} a worker in a placement group ({self._strategy}); free are {free} of {total}{lacking}"

    async def _new(self, name: str, job: str) -> Gang:
        names, wave = self._waves.get(job, ([], None))
        names.append(name)
        if wave is None:
            wave = asyncio.ensure_future(self._gather(job, names))
            self._waves[job] = names, wave
        try:
            return await asyncio.shield(wave)
        except asyncio.CancelledError:
            if not wave.done():
                names.remove(name)
            elif not wave.cancelled() and name in wave.result().holders:
                self._places[name] = Place(wave.result(), wave.result().holders.index(name))
                self.release(name)
            raise

    async def _gather(self, job: str, names: list[str]) -> Gang:
        await asyncio.sleep(_GATHER)
        self._waves.pop(job)
        if not names:
            raise asyncio.CancelledError
        name = f"{self._namespace}/{job}/{names[0].split('/', 1)[1]}"
        group = ray.util.placement_group(
            [dict(self._bundle) for _ in names], strategy=self._strategy, name=name, lifetime="detached"
        )
        gang = self._gangs[name] = Gang(job=job, name=name, group=group, holders=list(names))
        return gang

    async def _is_reserved(self, gang: Gang) -> bool:
        row: dict[str, Any] = await asyncio.to_thread(ray.util.placement_group_table, gang.group)
        if row.get("state", _GONE) == _GONE:
            raise LookupError("its placement group was removed")
        return bool(row["state"] == "CREATED")


def _text(resources: dict[str, float], kinds: dict[str, float] | None = None) -> str:
    return ", ".join(f"{math.floor(100 * resources.get(kind, 0)) / 100:g} {kind}" for kind in kinds or resources)
