"""Changing models, versions and aliases."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from tidemill.errors import AlreadyExists, Exhausted, FailedPrecondition, Invalid
from tidemill.kv.base import Delete, Operation, Put
from tidemill.registry import checks, keys
from tidemill.registry.log import Change, EventLog, Moment, Unchanged
from tidemill.registry.models import Alias, Draft, Edit, EventType, Model, ModelVersion, Resource
from tidemill.registry.queries import all_aliases, find_alias, find_model, find_version, with_aliases
from tidemill.registry.records import EventRecord, RequestRecord, decode, encode, encode_limited
from tidemill.registry.snapshot import Snapshot
from tidemill.rpc import etags

T = TypeVar("T", Model, ModelVersion, Alias)

MAX_ALIASES = 100
"""Aliases of one model."""


class Commands:
    """The writing half of the registry. Names are checked by the caller, everything else here."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def create_model(self, model: str, edit: Edit, request_id: str) -> Model:
        """A new model, or what the same request made before.

        Raises:
            AlreadyExists: the name is taken.
            Invalid: a field is wrong, as for the others; or the request id was used for something else.
        """
        checks.check_edit(edit, "model")
        request = _Request("CreateModel", request_id, {"model": model, "edit": edit})

        async def plan(moment: Moment) -> Change | Unchanged:
            if (answer := await request.answer(moment.snapshot)) is not None:
                return Unchanged(answer)
            if await moment.snapshot.get(keys.model(model)) is not None:
                raise AlreadyExists(f"models/{model} exists", reason="MODEL_EXISTS", metadata={"model": model})
            new = Model(
                model=model,
                description=edit.description or "",
                tags=edit.tags or {},
                revision=moment.revision,
                create_time=moment.time,
                update_time=moment.time,
            )
            operations = [_put_model(new), *request.remember(moment)]
            return Change(type=EventType.CREATED, resource=new, operations=operations, request=request.key)

        return await self._append(Model, plan)

    async def update_model(self, model: str, edit: Edit, etag: str) -> Model:
        """Change a model's mutable fields.

        Raises:
            NotFound: there is no such model, as for the others.
            Stale: it does not have this etag (when one is given), as for the others.
        """
        checks.check_edit(edit, "model")

        async def plan(moment: Moment) -> Change | Unchanged:
            old = await find_model(moment.snapshot, model)
            etags.check(etag, old.revision, old.name)
            new = replace(
                old,
                description=old.description if edit.description is None else edit.description,
                tags=old.tags if edit.tags is None else edit.tags,
            )
            if new == old:
                return Unchanged(old)
            new = replace(new, revision=moment.revision, update_time=moment.time)
            return Change(type=EventType.UPDATED, resource=new, operations=[_put_model(new)])

        return await self._append(Model, plan)

    async def delete_model(self, model: str, etag: str, *, force: bool) -> None:
        """Delete a model, with `force` also when it has versions.

        Raises:
            FailedPrecondition: reason MODEL_HAS_VERSIONS.
        """

        async def plan(moment: Moment) -> Change | Unchanged:
            old = await find_model(moment.snapshot, model)
            etags.check(etag, old.revision, old.name)
            if not force and (await moment.snapshot.range(keys.versions(model), limit=1)).entries:
                raise FailedPrecondition(
                    f"{old.name} has versions: delete them first, or all at once with force",
                    reason="MODEL_HAS_VERSIONS",
                    metadata={"model": model},
                )
            operations: list[Operation] = [
                Delete(keys.model(model)),
                Delete(keys.versions(model), prefix=True),
                Delete(keys.aliases(model), prefix=True),
            ]
            return Change(type=EventType.DELETED, resource=old, operations=operations)

        await self._append(Model, plan)

    async def create_version(self, model: str, draft: Draft, request_id: str) -> ModelVersion:
        """The next version of a model, or what the same request made before."""
        checks.check_draft(draft)
        request = _Request("CreateModelVersion", request_id, {"model": model, "draft": draft})

        async def plan(moment: Moment) -> Change | Unchanged:
            if (answer := await request.answer(moment.snapshot)) is not None:
                return Unchanged(answer)
            parent = await find_model(moment.snapshot, model)
            new = ModelVersion(
                model=model,
                version=parent.latest_version + 1,
                draft=draft,
                revision=moment.revision,
                create_time=moment.time,
                update_time=moment.time,
            )
            counted = replace(parent, latest_version=new.version)
            operations = [_put_version(new), Put(keys.model(model), encode(counted)), *request.remember(moment)]
            return Change(type=EventType.CREATED, resource=new, operations=operations, request=request.key)

        return await self._append(ModelVersion, plan)

    async def update_version(self, model: str, number: int, edit: Edit, etag: str) -> ModelVersion:
        """Change a version's mutable fields."""
        checks.check_edit(edit, "model_version")

        async def plan(moment: Moment) -> Change | Unchanged:
            old = await find_version(moment.snapshot, model, number)
            etags.check(etag, old.revision, old.name)
            old = (await with_aliases(moment.snapshot, [old]))[0]
            draft = replace(
                old.draft,
                description=old.draft.description if edit.description is None else edit.description,
                tags=old.draft.tags if edit.tags is None else edit.tags,
            )
            if draft == old.draft:
                return Unchanged(old)
            new = replace(old, draft=draft, revision=moment.revision, update_time=moment.time)
            return Change(type=EventType.UPDATED, resource=new, operations=[_put_version(new)])

        return await self._append(ModelVersion, plan)

    async def delete_version(self, model: str, number: int, etag: str) -> None:
        """Delete a version; its number is not given again.

        Raises:
            FailedPrecondition: reason VERSION_HAS_ALIASES.
        """

        async def plan(moment: Moment) -> Change | Unchanged:
            old = await find_version(moment.snapshot, model, number)
            etags.check(etag, old.revision, old.name)
            aliases = (await with_aliases(moment.snapshot, [old]))[0].aliases
            if aliases:
                raise FailedPrecondition(
                    f"{old.name} is pointed at by {', '.join(aliases[:5])}: move or delete these aliases first",
                    reason="VERSION_HAS_ALIASES",
                    metadata={"model": model, "version": str(number), "alias": aliases[0]},
                )
            return Change(type=EventType.DELETED, resource=old, operations=[Delete(keys.version(model, number))])

        await self._append(ModelVersion, plan)

    async def set_alias(self, model: str, alias: str, version: int, etag: str) -> Alias:
        """Point an alias at a version; an etag of `*` asks for a new alias.

        Raises:
            NotFound: the model or the version does not exist.
            Exhausted: reason TOO_MANY_ALIASES.
        """
        if version < 1:
            raise Invalid("version: must be at least 1", violations={"version": "must be at least 1"})

        async def plan(moment: Moment) -> Change | Unchanged:
            await find_version(moment.snapshot, model, version)
            aliases = {each.alias: each for each in await all_aliases(moment.snapshot, model)}
            old = aliases.get(alias)
            etags.check(etag, old.revision if old else 0, f"models/{model}/aliases/{alias}")
            if old is not None and old.version == version:
                return Unchanged(old)
            if old is None and len(aliases) >= MAX_ALIASES:
                raise Exhausted(f"models/{model} has {MAX_ALIASES} aliases already", reason="TOO_MANY_ALIASES")
            new = Alias(
                model=model,
                alias=alias,
                version=version,
                previous_version=old.version if old else 0,
                revision=moment.revision,
                update_time=moment.time,
            )
            kind = EventType.UPDATED if old else EventType.CREATED
            return Change(type=kind, resource=new, operations=[Put(keys.alias(model, alias), encode(new))])

        return await self._append(Alias, plan)

    async def delete_alias(self, model: str, alias: str, etag: str) -> None:
        """Remove an alias; the version stays."""

        async def plan(moment: Moment) -> Change | Unchanged:
            old = await find_alias(moment.snapshot, model, alias)
            etags.check(etag, old.revision, old.name)
            return Change(type=EventType.DELETED, resource=old, operations=[Delete(keys.alias(model, alias))])

        await self._append(Alias, plan)

    async def _append(self, kind: type[T], plan: Callable[[Moment], Awaitable[Change | Unchanged]]) -> T:
        resource = await self._log.append(plan)
        assert isinstance(resource, kind)
        return resource


class _Request:
    """A request that may come again; without an id it is never remembered."""

    def __init__(self, method: str, request_id: str, content: Mapping[str, Any]) -> None:
        checks.check_request_id(request_id)
        self.key = keys.request(method, request_id) if request_id else ""
        self._fingerprint = hashlib.sha256(encode(content)).hexdigest()

    async def answer(self, snapshot: Snapshot) -> Resource | None:
        """What the first of these requests made; None when this is the first."""
        entry = await snapshot.get(self.key) if self.key else None
        if entry is None:
            return None
        record = decode(RequestRecord, entry.value)
        if record.fingerprint != self._fingerprint:
            raise Invalid(
                "request_id: was used for a request with other content",
                reason="REQUEST_ID_REUSED",
                violations={"request_id": "was used for a request with other content"},
            )
        event = await snapshot.get(keys.event(record.revision))
        return decode(EventRecord, event.value).event().resource if event else None

    def remember(self, moment: Moment) -> list[Operation]:
        """What to write so that the next of these requests is known."""
        if not self.key:
            return []
        return [Put(self.key, encode(RequestRecord(fingerprint=self._fingerprint, revision=moment.revision)))]


def _put_model(model: Model) -> Put:
    return Put(keys.model(model.model), encode_limited(model, "model"))


def _put_version(version: ModelVersion) -> Put:
    """Aliases are not stored with the version: they are read where they are kept."""
    data = encode_limited(replace(version, aliases=()), "model_version")
    return Put(keys.version(version.model, version.version), data)
