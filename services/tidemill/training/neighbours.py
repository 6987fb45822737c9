"""The neighbours of the training service, reached through their clients."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from opentelemetry import trace

from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.parameters import ParametersAdmin
from tidemill.clients.registry import RegistryClient
from tidemill.clients.replicas import BACKUP, rotated
from tidemill.errors import AlreadyExists, FailedPrecondition, NotFound, TidemillError, Unavailable
from tidemill.training import convert
from tidemill.training.diagnosis.convert import from_group
from tidemill.training.diagnosis.sights import ShardSight
from tidemill.training.patience import is_passing
from tidemill.training.peers import AliasState, Entry, NewVersion

SHARDS = "parameters"
"""Name under which parameter servers announce themselves."""
TIMEOUT = 5.0
"""Seconds that a call to a shard may take: one that has died must not be waited for."""
LOOK = 2.0
"""Seconds that a look at a shard may take: somebody waits for what is seen."""
FORMAT = "onnx"


class ShardNeighbours:
    """The parameter servers; `peers.Shards`."""

    def __init__(self, registry: RegistryClient, tracer: trace.Tracer) -> None:
        self._registry = registry
        self._tracer = tracer

    async def live(self) -> Sequence[str]:
        """Addresses of the shards that are registered, in order of name."""
        return [instance.address for instance in await self._registry.list_instances(SHARDS)]

    async def check_optimizer(self, address: str, name: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """All hyperparameters of an optimizer. Raises Invalid."""
        async with self._admin([address]) as admin:
            return convert.from_struct((await admin.check_optimizer(name, parameters)).parameters)

    async def optimizers(self, address: str) -> Sequence[Entry]:
        """The optimizers that a shard has."""
        async with self._admin([address]) as admin:
            return [convert.from_optimizer(message) for message in await admin.list_optimizers()]

    async def check_group(self, group: str, addresses: Sequence[str]) -> None:
        """Return when every shard has the group's part with values. Raises NotFound."""
        async with self._admin(addresses) as admin:
            if not all(convert.is_ready(part) for part in await admin.get_group(group)):
                raise NotFound(f"{group} has no values on some shard", reason="GROUP_EMPTY")

    async def check_copies(self, group: str, addresses: Sequence[str]) -> None:
        """Return when one copy of every shard's part has values. Raises NotFound."""
        second = rotated(addresses)
        for pair in zip(addresses, second, strict=True):
            found = [
                await self._has_values(name, address)
                for name, address in zip((group, f"{group}{BACKUP}"), pair, strict=True)
            ]
            if True not in found:
                if None in found:
                    raise Unavailable(f"no copy of a shard of {group} answers", reason="SHARDS_UNREACHABLE")
                raise NotFound(f"no copy of a shard of {group} has values", reason="GROUP_EMPTY")

    async def _has_values(self, group: str, address: str) -> bool | None:
        """Whether a shard has a part with values; None when it does not answer."""
        try:
            async with self._admin([address]) as admin:
                (part,) = await admin.get_group(group)
        except NotFound:
            return False
        except TidemillError as error:
            if not is_passing(error):
                raise
            return None
        return convert.is_ready(part)

    async def look(self, group: str, address: str) -> ShardSight:
        """One shard's part of a group, as it is now; also of a shard that does not answer, within seconds."""
        try:
            async with (
                asyncio.timeout(2 * LOOK),
                ParametersAdmin([address], tracer=self._tracer, timeout=LOOK) as admin,
            ):
                (part,) = await admin.get_group(group)
        except NotFound:
            return ShardSight(address=address)
        except TidemillError as error:
            return ShardSight(address=address, reachable=not is_passing(error), error=error.message[:300])
        except TimeoutError:
            return ShardSight(address=address, reachable=False, error=f"does not answer within {2 * LOOK:g} s")
        return from_group(address, part)

    async def delete_group(self, group: str, addresses: Sequence[str]) -> None:
        """Delete a group; one that is not there is no error."""
        async with self._admin(addresses) as admin:
            with suppress(NotFound):
                await admin.delete_group(group)

    def _admin(self, addresses: Sequence[str]) -> ParametersAdmin:
        return ParametersAdmin(addresses, tracer=self._tracer, timeout=TIMEOUT)


class ArtifactNeighbour:
    """The artifact store; `peers.Artifacts`."""

    def __init__(self, client: ArtifactsClient, address: str) -> None:
        self._client = client
        self._address = address

    @property
    def address(self) -> str:
        """Where workers find it."""
        return self._address

    async def kind(self, digest: str) -> str:
        """Kind of an artifact. Raises NotFound."""
        return (await self._client.get_artifact(digest)).kind

    async def refer(self, digest: str, reference: str) -> None:
        """Record that `reference` needs an artifact. Raises NotFound."""
        await self._client.add_reference(digest, reference)

    async def release(self, digest: str, reference: str, *, delete: bool) -> None:
        """Take the record back, and `delete` the artifact unless somebody else needs it; it may be gone already."""
        with suppress(NotFound):
            await self._client.remove_reference(digest, reference)
            if delete:
                with suppress(FailedPrecondition):  # somebody else needs it
                    await self._client.delete_artifact(digest)

    async def upload(self, kind: str, files: Mapping[str, Path], labels: Mapping[str, str], reference: str) -> str:
        """Store files as an artifact that `reference` needs; its digest."""
        made = await self._client.create_artifact(kind, files, labels=labels, reference=reference)
        return made.digest

    async def lines(self, digest: str, name: str) -> AsyncGenerator[bytes, None]:
        """The lines of one file of an artifact, with their ends."""
        artifact = await self._client.get_artifact(digest)
        blob = next((file.sha256 for file in artifact.files if file.path == name), None)
        if blob is None:
            raise NotFound(f"artifacts/{digest} has no file {name}", reason="FILE_NOT_FOUND")
        rest = b""
        async with aclosing(self._client.read(blob)) as pieces:
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield line + b"\n"


class RegistryNeighbour:
    """The registry of models; `peers.ModelRegistry`."""

    def __init__(self, client: RegistryClient) -> None:
        self._client = client

    async def ensure_model(self, model: str) -> None:
        """Create a model when it is missing."""
        try:
            await self._client.get_model(model)
        except NotFound:
            with suppress(AlreadyExists):  # somebody was faster
                await self._client.create_model(model)

    async def create_version(self, version: NewVersion) -> int:
        """Register a version, once for each `request_id`; its number."""
        created = await self._client.create_version(
            version.model,
            format=FORMAT,
            artifact=version.artifact,
            signature=convert.from_signature(version.signature, "result.signature"),
            lineage=convert.to_lineage(version),
            metrics=version.metrics,
            tags=version.tags,
            request_id=version.request_id,
        )
        return created.version

    async def alias(self, model: str, alias: str) -> AliasState:
        """Where an alias points."""
        try:
            found = await self._client.get_alias(model, alias)
        except NotFound:
            return AliasState()
        return AliasState(version=found.version, previous=found.previous_version, etag=found.etag)

    async def move_alias(self, model: str, alias: str, version: int, etag: str) -> None:
        """Point an alias at a version. Raises Stale when it has moved since `etag`."""
        await self._client.set_alias(model, alias, version, etag=etag)
