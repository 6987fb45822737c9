"""Reading models, versions and aliases."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from tidemill.errors import NotFound
from tidemill.kv.base import Entry, Kv
from tidemill.registry import filters, keys
from tidemill.registry.filters import Filter
from tidemill.registry.models import Alias, Model, ModelVersion
from tidemill.registry.records import decode
from tidemill.registry.snapshot import Snapshot, consistent

T = TypeVar("T")

PAGE_BYTES = 1 << 20
"""Stored bytes after which a page ends: a message holds 4 MiB."""
MAX_SCANNED = 5000
"""Records looked at for one page of a filtered list."""
CHUNK = 100
"""Records read at once."""


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """A page of a list.

    Args:
        items: what was found.
        position: key after which the next page begins; "" when this was the last.
        revision: revision of the event log that the page reflects.
    """

    items: tuple[T, ...]
    position: str
    revision: int


async def find_model(snapshot: Snapshot, model: str) -> Model:
    """The model.

    Raises:
        NotFound: reason MODEL_NOT_FOUND.
    """
    entry = await snapshot.get(keys.model(model))
    if entry is None:
        raise NotFound(f"models/{model} does not exist", reason="MODEL_NOT_FOUND", metadata={"model": model})
    return decode(Model, entry.value)


async def find_version(snapshot: Snapshot, model: str, number: int) -> ModelVersion:
    """The version, without its aliases.

    Raises:
        NotFound: reason MODEL_NOT_FOUND or VERSION_NOT_FOUND.
    """
    entry = await snapshot.get(keys.version(model, number))
    if entry is None:
        await find_model(snapshot, model)
        raise NotFound(
            f"models/{model}/versions/{number} does not exist",
            reason="VERSION_NOT_FOUND",
            metadata={"model": model, "version": str(number)},
        )
    return decode(ModelVersion, entry.value)


async def find_alias(snapshot: Snapshot, model: str, alias: str) -> Alias:
    """The alias.

    Raises:
        NotFound: reason MODEL_NOT_FOUND or ALIAS_NOT_FOUND.
    """
    entry = await snapshot.get(keys.alias(model, alias))
    if entry is None:
        await find_model(snapshot, model)
        raise NotFound(
            f"models/{model}/aliases/{alias} does not exist",
            reason="ALIAS_NOT_FOUND",
            metadata={"model": model, "alias": alias},
        )
    return decode(Alias, entry.value)


async def all_aliases(snapshot: Snapshot, model: str) -> list[Alias]:
    """All aliases of a model, in order of name; they are few."""
    page = await snapshot.range(keys.aliases(model))
    return [decode(Alias, entry.value) for entry in page.entries]


async def with_aliases(snapshot: Snapshot, versions: list[ModelVersion]) -> list[ModelVersion]:
    """Versions of one model together with the aliases that point at them."""
    if not versions:
        return []
    pointing: dict[int, list[str]] = {}
    for alias in await all_aliases(snapshot, versions[0].model):
        pointing.setdefault(alias.version, []).append(alias.alias)
    return [replace(version, aliases=tuple(pointing.get(version.version, ()))) for version in versions]


class Queries:
    """The reading half of the registry. Names are checked by the caller."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv

    async def model(self, model: str) -> Model:
        """One model; `NotFound` when there is none, as for the others."""
        return await consistent(self._kv, lambda snapshot: find_model(snapshot, model))

    async def version(self, model: str, number: int | None = None, alias: str = "") -> ModelVersion:
        """One version, by number or, without one, by alias."""

        async def read(snapshot: Snapshot) -> ModelVersion:
            wanted = (await find_alias(snapshot, model, alias)).version if number is None else number
            version = await find_version(snapshot, model, wanted)
            return (await with_aliases(snapshot, [version]))[0]

        return await consistent(self._kv, read)

    async def alias(self, model: str, alias: str) -> Alias:
        """One alias."""
        return await consistent(self._kv, lambda snapshot: find_alias(snapshot, model, alias))

    async def models(self, size: int, position: str, filter: str) -> Listing[Model]:
        """A page of models in order of name."""
        wanted = filters.models(filter)
        return await self._page(keys.model(wanted.prefix), Model, wanted, size, position)

    async def versions(self, model: str, size: int, position: str, filter: str) -> Listing[ModelVersion]:
        """A page of one model's versions in rising order of number."""
        wanted = filters.versions(filter)

        async def check(snapshot: Snapshot) -> None:
            await find_model(snapshot, model)

        async def finish(snapshot: Snapshot, found: list[ModelVersion]) -> list[ModelVersion]:
            return await with_aliases(snapshot, found)

        return await self._page(keys.versions(model), ModelVersion, wanted, size, position, check, finish)

    async def aliases(self, model: str | None, size: int, position: str) -> Listing[Alias]:
        """A page of one model's aliases, or for None of all, in order of name."""

        async def check(snapshot: Snapshot) -> None:
            if model is not None:
                await find_model(snapshot, model)

        prefix = keys.ALIASES if model is None else keys.aliases(model)
        return await self._page(prefix, Alias, Filter(), size, position, check)

    async def _page(
        self,
        prefix: str,
        kind: type[T],
        wanted: Filter[T],
        size: int,
        position: str,
        check: Callable[[Snapshot], Awaitable[None]] | None = None,
        finish: Callable[[Snapshot, list[T]], Awaitable[list[T]]] | None = None,
    ) -> Listing[T]:
        async def read(snapshot: Snapshot) -> Listing[T]:
            _, head = await snapshot.head()
            if check is not None:
                await check(snapshot)
            found, next_position = await _scan(snapshot, prefix, kind, wanted, size, position)
            if finish is not None:
                found = await finish(snapshot, found)
            return Listing(tuple(found), next_position, head.revision)

        return await consistent(self._kv, read)


async def _scan(
    snapshot: Snapshot, prefix: str, kind: type[T], wanted: Filter[T], size: int, position: str
) -> tuple[list[T], str]:
    """Records that match, and the key to go on after, or "" at the end."""
    found: list[T] = []
    scanned = taken = 0
    while True:
        page = await snapshot.range(prefix, start_after=position, limit=min(CHUNK, size + 1))
        for index, entry in enumerate(page.entries):
            position = entry.key
            scanned += 1
            taken += _take(entry, kind, wanted, found)
            if len(found) == size or taken >= PAGE_BYTES or scanned >= MAX_SCANNED:
                last = index == len(page.entries) - 1 and not page.more
                return found, "" if last else position
        if not page.more:
            return found, ""


def _take(entry: Entry, kind: type[T], wanted: Filter[T], found: list[T]) -> int:
    """Add the record to `found` if it matches; the bytes that it brings."""
    item = decode(kind, entry.value)
    if not wanted.matches(item):
        return 0
    found.append(item)
    return len(entry.value)
