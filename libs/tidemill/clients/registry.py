"""Models, versions, aliases, their changes, and live instances, from Python."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from opentelemetry import trace

from tidemill import errors
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.api.registry.v1 import registry_pb2_grpc as pg
from tidemill.clients.backoff import Backoff
from tidemill.rpc.caller import DEFAULT_TIMEOUT, Caller

SILENCE = 60.0
"""Seconds without any message after which a watch is begun again; the registry sends signs of life more often."""
_BROKEN = ("CANCELLED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNKNOWN")


class RegistryClient:
    """Calls the registry; errors are those of `tidemill.errors`.

    A model is named `digits` or `models/digits`, a version by its number, or for reads by an alias. Writes are never
    repeated by the client: after `Unavailable`, repeat with the same `request_id` or etag, or read first.

    Args:
        address: `host:port` of the registry.
        tracer: makes client spans inside of a recorded span.
        timeout: default seconds of a call that is not a stream.
        silence: seconds without any message after which a watch is begun again.
    """

    def __init__(
        self,
        address: str,
        *,
        tracer: trace.Tracer | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        silence: float = SILENCE,
    ) -> None:
        services = pb.DESCRIPTOR.services_by_name
        self._caller = Caller(address, list(services.values()), tracer=tracer, timeout=timeout)
        self._registry: Any = pg.RegistryServiceStub(self._caller.channel)
        self._discovery: Any = pg.DiscoveryServiceStub(self._caller.channel)
        self._silence = silence

    async def create_model(
        self, model: str, *, description: str = "", tags: Mapping[str, str] | None = None, request_id: str = ""
    ) -> pb.Model:
        """A new model. Raises AlreadyExists, unless the same `request_id` created it."""
        message = pb.Model(name=_model(model), description=description, tags=tags)
        request = pb.CreateModelRequest(model=message, request_id=request_id)
        created: pb.Model = await self._caller.unary(self._registry.CreateModel, request)
        return created

    async def get_model(self, model: str) -> pb.Model:
        """One model. Raises NotFound, as all that name something."""
        found: pb.Model = await self._caller.unary(self._registry.GetModel, pb.GetModelRequest(name=_model(model)))
        return found

    async def list_models(self, *, filter: str = "", page_size: int = 0) -> AsyncIterator[pb.Model]:
        """All models that meet `filter`, in order of name; fetched page by page."""
        token = ""
        while True:
            request = pb.ListModelsRequest(page_size=page_size, page_token=token, filter=filter)
            page: pb.ListModelsResponse = await self._caller.unary(self._registry.ListModels, request)
            for model in page.models:
                yield model
            token = page.next_page_token
            if not token:
                return

    async def update_model(
        self,
        model: str,
        *,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        etag: str = "",
    ) -> pb.Model:
        """Change what is not None; `tags` replaces all tags. Raises Stale when the model has another etag."""
        message = pb.Model(name=_model(model), description=description or "", tags=tags, etag=etag)
        request = pb.UpdateModelRequest(model=message, update_mask=_mask(description, tags))
        updated: pb.Model = await self._caller.unary(self._registry.UpdateModel, request)
        return updated

    async def delete_model(self, model: str, *, force: bool = False, etag: str = "") -> None:
        """Delete a model, with `force` its versions and aliases too. Raises FailedPrecondition when it has versions."""
        request = pb.DeleteModelRequest(name=_model(model), force=force, etag=etag)
        await self._caller.unary(self._registry.DeleteModel, request)

    async def create_version(
        self,
        model: str,
        *,
        format: str,
        artifact: str,
        signature: pb.Signature | None = None,
        lineage: pb.Lineage | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        description: str = "",
        request_id: str = "",
    ) -> pb.ModelVersion:
        """The next version of a model.

        Args:
            model: it must exist.
            format: format of the model file, such as `onnx`.
            artifact: digest of the artifact manifest that holds the files.
            signature: what it takes and gives.
            lineage: where it comes from.
            metrics: measured quality, finite numbers.
            tags, description: for people; mutable.
            request_id: makes a repeated call return the first one's version.
        """
        version = pb.ModelVersion(
            format=format,
            artifact=artifact,
            signature=signature,
            lineage=lineage,
            metrics=metrics,
            tags=tags,
            description=description,
        )
        request = pb.CreateModelVersionRequest(parent=_model(model), model_version=version, request_id=request_id)
        created: pb.ModelVersion = await self._caller.unary(self._registry.CreateModelVersion, request)
        return created

    async def get_version(self, model: str, version: int | str) -> pb.ModelVersion:
        """One version, by number or alias."""
        request = pb.GetModelVersionRequest(name=_version(model, version))
        found: pb.ModelVersion = await self._caller.unary(self._registry.GetModelVersion, request)
        return found

    async def list_versions(
        self, model: str, *, filter: str = "", page_size: int = 0
    ) -> AsyncIterator[pb.ModelVersion]:
        """All versions of a model that meet `filter`, in rising order; fetched page by page."""
        token = ""
        while True:
            request = pb.ListModelVersionsRequest(
                parent=_model(model), page_size=page_size, page_token=token, filter=filter
            )
            page: pb.ListModelVersionsResponse = await self._caller.unary(self._registry.ListModelVersions, request)
            for version in page.model_versions:
                yield version
            token = page.next_page_token
            if not token:
                return

    async def update_version(
        self,
        model: str,
        version: int | str,
        *,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        etag: str = "",
    ) -> pb.ModelVersion:
        """Change what is not None; `tags` replaces all tags. Raises Stale when the version has another etag."""
        message = pb.ModelVersion(name=_version(model, version), description=description or "", tags=tags, etag=etag)
        request = pb.UpdateModelVersionRequest(model_version=message, update_mask=_mask(description, tags))
        updated: pb.ModelVersion = await self._caller.unary(self._registry.UpdateModelVersion, request)
        return updated

    async def delete_version(self, model: str, version: int | str, *, etag: str = "") -> None:
        """Delete a version. Raises FailedPrecondition while an alias points at it."""
        request = pb.DeleteModelVersionRequest(name=_version(model, version), etag=etag)
        await self._caller.unary(self._registry.DeleteModelVersion, request)

    async def set_alias(self, model: str, alias: str, version: int, etag: str = "") -> pb.Alias:
        """Point an alias at a version; `etag="*"` only makes a new one. Raises Stale when it has another etag."""
        request = pb.SetAliasRequest(name=_alias(model, alias), version=version, etag=etag)
        moved: pb.Alias = await self._caller.unary(self._registry.SetAlias, request)
        return moved

    async def get_alias(self, model: str, alias: str) -> pb.Alias:
        """One alias."""
        request = pb.GetAliasRequest(name=_alias(model, alias))
        found: pb.Alias = await self._caller.unary(self._registry.GetAlias, request)
        return found

    async def list_aliases(self, model: str = "-", *, page_size: int = 0) -> AsyncIterator[pb.Alias]:
        """The aliases of a model, or for `-` of all models, in order of name; fetched page by page."""
        token = ""
        while True:
            request = pb.ListAliasesRequest(parent=_model(model), page_size=page_size, page_token=token)
            page: pb.ListAliasesResponse = await self._caller.unary(self._registry.ListAliases, request)
            for alias in page.aliases:
                yield alias
            token = page.next_page_token
            if not token:
                return

    async def delete_alias(self, model: str, alias: str, *, etag: str = "") -> None:
        """Remove an alias; the version stays."""
        request = pb.DeleteAliasRequest(name=_alias(model, alias), etag=etag)
        await self._caller.unary(self._registry.DeleteAlias, request)

    async def revision(self) -> int:
        """Revision of the event log now: take it, list what is wanted, then watch from it + 1."""
        request = pb.ListModelsRequest(page_size=1)
        page: pb.ListModelsResponse = await self._caller.unary(self._registry.ListModels, request)
        return page.revision

    async def watch(self, from_revision: int = 0, model: str = "") -> AsyncGenerator[pb.WatchResponse, None]:
        """All changes from a revision on (0 = from now on), each once and in order, for ever.

        Connections that break, and a registry that is away, are sat out. Responses without events are signs of life.

        Args:
            from_revision: first event of interest.
            model: only what belongs to this model; "" = everything.

        Raises:
            OutOfRange: the next event is no longer kept, or the log was set back: list again.
        """
        backoff = Backoff()
        while True:
            request = pb.WatchRequest(from_revision=from_revision, model=_model(model) if model else "")
            try:
                async with aclosing(self._caller.stream(self._registry.Watch, request)) as stream:
                    while True:
                        async with asyncio.timeout(self._silence):
                            response: pb.WatchResponse = await anext(stream)
                        if not model:
                            _check_gapless(response, from_revision)
                        from_revision = response.revision + 1
                        backoff.reset()
                        yield response
            except (StopAsyncIteration, TimeoutError):
                pass  # it ended without a reason, or hangs
            except errors.TidemillError as error:
                if not _passing(error):
                    raise
            await asyncio.sleep(backoff.next())

    async def register_instance(
        self,
        service: str,
        instance_id: str,
        address: str,
        *,
        ttl: float,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> pb.Instance:
        """Announce an instance for `ttl` seconds from its last renewal, in place of an earlier one of the same name."""
        duration = Duration()
        duration.FromMilliseconds(math.ceil(ttl * 1000))
        instance = pb.Instance(service=service, address=address, labels=labels, ttl=duration)
        request = pb.RegisterInstanceRequest(instance=instance, instance_id=instance_id)
        registered: pb.Instance = await self._caller.unary(self._discovery.RegisterInstance, request, timeout=timeout)
        return registered

    async def renew_instance(self, name: str, *, etag: str = "", timeout: float | None = None) -> pb.Instance:
        """Start the time of `instances/{service}.{id}` again.

        Raises:
            NotFound: it has ended.
            Stale: another process has registered under its name.
        """
        request = pb.RenewInstanceRequest(name=name, etag=etag)
        renewed: pb.Instance = await self._caller.unary(self._discovery.RenewInstance, request, timeout=timeout)
        return renewed

    async def deregister_instance(self, name: str, *, etag: str = "", timeout: float | None = None) -> None:
        """Withdraw an instance at once."""
        request = pb.DeregisterInstanceRequest(name=name, etag=etag)
        await self._caller.unary(self._discovery.DeregisterInstance, request, timeout=timeout)

    async def list_instances(self, service: str = "") -> list[pb.Instance]:
        """Live instances of a service, or for "" of all, in order of name."""
        request = pb.ListInstancesRequest(service=service)
        found: pb.ListInstancesResponse = await self._caller.unary(self._discovery.ListInstances, request)
        return list(found.instances)

    async def close(self) -> None:
        """Close the connection."""
        await self._caller.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _model(model: str) -> str:
    return model if model.startswith("models/") else f"models/{model}"


def _version(model: str, version: int | str) -> str:
    return f"{_model(model)}/versions/{version}"


def _alias(model: str, alias: str) -> str:
    return f"{_model(model)}/aliases/{alias}"


def _mask(description: str | None, tags: Mapping[str, str] | None) -> FieldMask:
    given = {"description": description, "tags": tags}
    return FieldMask(paths=[name for name, value in given.items() if value is not None])


def _check_gapless(response: pb.WatchResponse, expected: int) -> None:
    if expected and response.events and response.events[0].revision != expected:
        raise errors.DataLoss(
            f"event {response.events[0].revision} came instead of {expected}", reason="EVENTS_OUT_OF_ORDER"
        )


def _passing(error: errors.TidemillError) -> bool:
    """Whether a broken watch may work if it is begun again.

    What breaks on the way has no reason of its own, only that of its code; what the registry refuses has one.
    """
    return isinstance(error, errors.Unavailable) or error.reason in _BROKEN
