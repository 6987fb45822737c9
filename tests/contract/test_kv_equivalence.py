"""The embedded store against the real etcd: the same random operations must have the same results."""

import random
import uuid
from dataclasses import replace

import pytest

from tests.support.etcd import EtcdServer
from tests.support.kv import read_until
from tidemill import errors
from tidemill.kv.base import CompactedError, Compare, Delete, Entry, Event, Kv, Operation, Put
from tidemill.kv.etcd import EtcdKv
from tidemill.kv.sqlite import SqliteKv

STEPS = 250
KEYS = ["a", "a/1", "a/2", "a/2/x", "b", "b/1", "é", "\U0001f41f"]


class Player:
    """Plays a seeded sequence on one store; revisions and leases in the results count from the beginning."""

    def __init__(self, kv: Kv, base: int, seed: int) -> None:
        self._kv = kv
        self._base = base
        self._chance = random.Random(seed)
        self._leases: list[int] = []
        self._names = {0: 0}
        self._last = base

    async def play(self) -> list[object]:
        """Every result, and at the end what a watch saw of the last changes."""
        results = [await self._step([60, 15, 10, 8, 5, 2]) for _ in range(STEPS)]
        first = self._last + 1
        results += [await self._step([80, 0, 0, 10, 10, 0]) for _ in range(STEPS // 4)]
        events = await read_until(self._kv, "", first, self._last)
        return results + [Event(event.type, self._relative(event.entry)) for event in events]

    async def _step(self, weights: list[int]) -> object:
        kind = self._chance.choices(["txn", "range", "get", "grant", "revoke", "compact"], weights)[0]
        try:
            return kind, await getattr(self, f"_{kind}")()
        except CompactedError as error:
            return kind, "compacted", error.compact_revision > self._base
        except errors.TidemillError as error:
            return kind, type(error).__name__, error.reason

    async def _txn(self) -> object:
        guards, changes = [], []
        for key in self._chance.sample(KEYS, self._chance.choice([0, 0, 1, 2])):
            entry = await self._kv.get(key)
            known = entry if entry and self._chance.random() < 0.8 else None
            if self._chance.random() < 0.5:
                guards.append(Compare(key, mod_revision=known.mod_revision if known else 0))
            else:
                guards.append(Compare(key, create_revision=known.create_revision if known else 0))
        for _ in range(self._chance.choice([1, 1, 2, 3])):
            changes.append(self._change())
        result = await self._kv.txn(guards, changes)
        self._last = max(self._last, result.revision)
        return result.succeeded, result.revision - self._base

    def _change(self) -> Operation:
        key = self._chance.choice(KEYS)
        if self._chance.random() < 0.65:
            lease = self._chance.choice([0, *self._leases[-4:]])
            return Put(key, self._chance.randbytes(self._chance.choice([0, 3, 30])), lease)
        return Delete(key, prefix=self._chance.random() < 0.3)

    async def _range(self) -> object:
        prefix, after = self._chance.choice(["", "a", "a/", "b", "zz"]), self._chance.choice(["", "", "a/1", "é"])
        revision = 0 if self._chance.random() < 0.5 else self._chance.randint(self._base + 1, self._last + 2)
        page = await self._kv.range(prefix, start_after=after, limit=self._chance.choice([0, 1, 3]), revision=revision)
        return [self._relative(entry) for entry in page.entries], page.revision - self._base, page.more

    async def _get(self) -> object:
        entry = await self._kv.get(self._chance.choice(KEYS))
        return entry and self._relative(entry)

    async def _grant(self) -> object:
        lease = await self._kv.grant_lease(600)
        self._leases.append(lease)
        self._names[lease] = len(self._leases)
        return len(self._leases)

    async def _revoke(self) -> object:
        if self._leases:
            await self._kv.revoke_lease(self._chance.choice(self._leases[-5:]))
        self._last = (await self._kv.range("", limit=1)).revision
        return self._last - self._base

    async def _compact(self) -> object:
        await self._kv.compact(self._chance.randint(max(self._base + 1, self._last - 30), self._last + 1))
        return "done"

    def _relative(self, entry: Entry) -> Entry:
        created = max(0, entry.create_revision - self._base)
        return replace(
            entry,
            create_revision=created,
            mod_revision=entry.mod_revision - self._base,
            lease=self._names[entry.lease],
        )


@pytest.mark.parametrize("seed", range(6))
async def test_the_embedded_store_does_what_etcd_does(seed: int, etcd_server: EtcdServer) -> None:
    etcd = EtcdKv([etcd_server.address], prefix=f"test-{uuid.uuid4()}/")
    embedded = await SqliteKv.open(":memory:")
    players = []
    for kv in (embedded, etcd):
        players.append(Player(kv, (await kv.range("")).revision, seed))
    ours, theirs = [await player.play() for player in players]
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one == other, f"step {i}"
    assert len(ours) > STEPS + STEPS // 4 + 10
    for kv in (embedded, etcd):
        await kv.delete("", prefix=True)
        await kv.close()
