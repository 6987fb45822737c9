"""The registry's RPCs: convert, call, convert."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.empty_pb2 import Empty

from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.api.registry.v1 import registry_pb2_grpc as rpc
from tidemill.clock import Clock
from tidemill.errors import invalid
from tidemill.registry import convert
from tidemill.registry.commands import Commands
from tidemill.registry.instances import Instances
from tidemill.registry.log import EventLog
from tidemill.registry.queries import Queries
from tidemill.registry.watch import Tail, follow
from tidemill.rpc import paging

WATCH_BYTES = 1 << 20
"""Bytes of events after which a new message begins."""


class RegistryServicer(rpc.RegistryServiceServicer):
    """Models, versions, aliases and their event log.

    Args:
        queries: reads.
        commands: writes.
        log: the event log.
        tail: wakes watches.
        clock: times heartbeats.
        heartbeat: seconds between signs of life on a watch.
    """

    def __init__(
        self, queries: Queries, commands: Commands, log: EventLog, tail: Tail, clock: Clock, *, heartbeat: float
    ) -> None:
        self._queries = queries
        self._commands = commands
        self._log = log
        self._tail = tail
        self._clock = clock
        self._heartbeat = heartbeat

    async def CreateModel(self, request: pb.CreateModelRequest, context: Any) -> pb.Model:
        model = convert.from_model_name(request.model.name, "model.name")
        created = await self._commands.create_model(model, convert.from_new(request.model), request.request_id)
        return convert.to_model(created)

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.Model:
        return convert.to_model(await self._queries.model(convert.from_model_name(request.name)))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        conditions = ("models", request.filter)
        position = paging.position(request.page_token, *conditions)
        page = await self._queries.models(paging.size(request.page_size), position, request.filter)
        return pb.ListModelsResponse(
            models=map(convert.to_model, page.items),
            next_page_token=paging.token(page.position, *conditions) if page.position else "",
            revision=page.revision,
        )

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Any) -> pb.Model:
        model = convert.from_model_name(request.model.name, "model.name")
        updated = await self._commands.update_model(model, convert.from_update(request), request.model.etag)
        return convert.to_model(updated)

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Any) -> Empty:
        model = convert.from_model_name(request.name)
        await self._commands.delete_model(model, request.etag, force=request.force)
        return Empty()

    async def CreateModelVersion(self, request: pb.CreateModelVersionRequest, context: Any) -> pb.ModelVersion:
        model = convert.from_model_name(request.parent, "parent")
        draft = convert.from_version(request.model_version)
        return convert.to_version(await self._commands.create_version(model, draft, request.request_id))

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Any) -> pb.ModelVersion:
        model, number, alias = convert.from_version_or_alias_name(request.name)
        return convert.to_version(await self._queries.version(model, number, alias))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Any
    ) -> pb.ListModelVersionsResponse:
        model = convert.from_model_name(request.parent, "parent")
        conditions = ("versions", model, request.filter)
        position = paging.position(request.page_token, *conditions)
        page = await self._queries.versions(model, paging.size(request.page_size), position, request.filter)
        return pb.ListModelVersionsResponse(
            model_versions=map(convert.to_version, page.items),
            next_page_token=paging.token(page.position, *conditions) if page.position else "",
            revision=page.revision,
        )

    async def UpdateModelVersion(self, request: pb.UpdateModelVersionRequest, context: Any) -> pb.ModelVersion:
        model, number = convert.from_version_name(request.model_version.name, "model_version.name")
        edit = convert.from_update(request)
        return convert.to_version(await self._commands.update_version(model, number, edit, request.model_version.etag))

    async def DeleteModelVersion(self, request: pb.DeleteModelVersionRequest, context: Any) -> Empty:
        model, number = convert.from_version_name(request.name)
        await self._commands.delete_version(model, number, request.etag)
        return Empty()

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.Alias:
        model, alias = convert.from_alias_name(request.name)
        return convert.to_alias(await self._commands.set_alias(model, alias, request.version, request.etag))

    async def GetAlias(self, request: pb.GetAliasRequest, context: Any) -> pb.Alias:
        return convert.to_alias(await self._queries.alias(*convert.from_alias_name(request.name)))

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Any) -> pb.ListAliasesResponse:
        model = convert.from_parent(request.parent)
        conditions = ("aliases", model or "-")
        position = paging.position(request.page_token, *conditions)
        page = await self._queries.aliases(model, paging.size(request.page_size), position)
        return pb.ListAliasesResponse(
            aliases=map(convert.to_alias, page.items),
            next_page_token=paging.token(page.position, *conditions) if page.position else "",
            revision=page.revision,
        )

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Any) -> Empty:
        model, alias = convert.from_alias_name(request.name)
        await self._commands.delete_alias(model, alias, request.etag)
        return Empty()

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        model = convert.from_model_name(request.model, "model") if request.model else ""
        if request.from_revision < 0:
            raise invalid("from_revision", "must not be negative")
        watch = follow(
            self._log, self._tail, self._clock, request.from_revision, model=model, heartbeat=self._heartbeat
        )
        async with aclosing(watch) as batches:
            async for batch in batches:
                for response in convert.to_responses(batch, WATCH_BYTES):
                    yield response


class DiscoveryServicer(rpc.DiscoveryServiceServicer):
    """Live instances of services."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    async def RegisterInstance(self, request: pb.RegisterInstanceRequest, context: Any) -> pb.Instance:
        return convert.to_instance(await self._instances.register(convert.from_instance(request)))

    async def RenewInstance(self, request: pb.RenewInstanceRequest, context: Any) -> pb.Instance:
        identifier = convert.from_instance_name(request.name)
        return convert.to_instance(await self._instances.renew(identifier, request.etag))

    async def DeregisterInstance(self, request: pb.DeregisterInstanceRequest, context: Any) -> Empty:
        await self._instances.deregister(convert.from_instance_name(request.name), request.etag)
        return Empty()

    async def ListInstances(self, request: pb.ListInstancesRequest, context: Any) -> pb.ListInstancesResponse:
        found = await self._instances.list(request.service)
        return pb.ListInstancesResponse(instances=map(convert.to_instance, found))
