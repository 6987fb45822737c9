"""Manages groups of parameters over all shards."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from google.protobuf.struct_pb2 import Struct
from opentelemetry import trace

from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.api.parameters.v1 import parameters_pb2_grpc as pg
from tidemill.api.tensors.v1 import tensors_pb2
from tidemill.clients.replicas import BACKUP, COPIES
from tidemill.rpc.caller import DEFAULT_TIMEOUT, Caller
from tidemill.tensors import blocks

SERVICE = pb.DESCRIPTOR.services_by_name["ParameterService"]


class ParametersAdmin:
    """Manages groups on all shards. Errors are those of `tidemill.errors`.

    Args:
        addresses: `host:port` of every shard, in the order in which groups are spread over them.
        tracer: makes client spans inside of a recorded span.
        timeout: default seconds of a call.
    """

    def __init__(
        self, addresses: Sequence[str], *, tracer: trace.Tracer | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self._callers = [Caller(address, [SERVICE], tracer=tracer, timeout=timeout) for address in addresses]
        self._stubs: list[Any] = [pg.ParameterServiceStub(caller.channel) for caller in self._callers]

    async def create_group(
        self,
        name: str,
        tensors: Sequence[tuple[str, Sequence[int]]],
        *,
        optimizer: str,
        parameters: Mapping[str, float | bool] | None = None,
        workers: int = 1,
        mode: str = "bsp",
        staleness: int = 0,
        arrival_order: bool = False,
        clip_norm: float = 0.0,
        l1: float = 0.0,
        schedule: str = "constant",
        schedule_parameters: Mapping[str, float | bool] | None = None,
        durability: str = "none",
        fsync: bool = False,
        sparse: Collection[str] = (),
        stragglers: str = "wait",
        most_dropped: int = 0,
        after_seconds: float = 0.0,
    ) -> list[pb.Group]:
        """The new group's part on each shard, still without values; once more with the same content, the same.

        When a shard refuses, others may have their part already: `delete_group` removes it.

        Args:
            name: `groups/{group}`.
            tensors: name and shape of each tensor, in order.
            optimizer: name of the optimizer.
            parameters: its hyperparameters; those that are missing have defaults.
            workers: number of workers in a round.
            mode: `bsp`, `ssp` or `asp`: how pushes become parameters.
            staleness: for `ssp`: most steps between the fastest and the slowest worker.
            arrival_order: for `bsp`: whether gradients are added up in order of arrival: with less memory, and not the
                same last bits each time.
            clip_norm: largest norm of the mean gradient; 0 = any.
            l1: weight of the parameters' magnitudes in the loss; 0 = none.
            schedule: name of how the learning rate changes with the steps.
            schedule_parameters: its parameters; those that are missing have defaults.
            durability: `none`; `wal`: what was acknowledged is there again when a shard was restarted; or `replicated`:
                the next shard has a copy.
            fsync: for `wal`: whether that also holds for the end of the machine.
            sparse: names of the tensors of two dimensions whose gradients come as the rows that were touched.
            stragglers: what becomes, in rounds, of workers that are late: `wait`, `drop` or `fail`.
            most_dropped: for `drop`: most workers without which a round closes.
            after_seconds: since the first push of a round: for `drop`, until which the missing are waited for all the
                same; for `fail`, after which it is too late.

        Raises:
            FailedPrecondition: reason NO_DATA_DIRECTORY, a shard cannot keep a log; or NO_BACKUP, there is but one.
            Invalid: some argument is wrong.
            AlreadyExists: there is another group of this name.
            Exhausted: a shard has no room for it.
        """
        total = blocks.total(shape for _, shape in tensors)
        count = len(self._stubs)
        if durability == "replicated" and count < COPIES:
            raise errors.FailedPrecondition("copies need two shards", reason="NO_BACKUP")
        known = [tensor for tensor, _ in tensors]
        if missing := sorted({*sparse} - {*known}):
            raise errors.invalid("sparse", f"has {missing[0][:40]!r}, which is no tensor of the group")
        tables = [at for at, (tensor, shape) in enumerate(tensors) if tensor in sparse]
        if any(len(tensors[at][1]) != 2 or not 0 < tensors[at][1][1] <= blocks.BLOCK for at in tables):
            raise errors.invalid("sparse", f"must be of two dimensions, with rows of at most {blocks.BLOCK} elements")
        shapes = [shape for _, shape in tensors]
        parts = blocks.assign(blocks.cut_tables(shapes, tables) if tables else blocks.cut(total), count)
        chosen = pb.Optimizer(name=optimizer, parameters=_struct(parameters))
        way = pb.Consistency(mode=_mode(mode), staleness=staleness, arrival_order=arrival_order)
        late = pb.Stragglers(policy=_policy(stragglers), most=most_dropped, after_seconds=after_seconds)
        specs = [tensors_pb2.TensorSpec(name=n, dtype=tensors_pb2.DATA_TYPE_FP32, shape=s) for n, s in tensors]
        groups = [
            pb.Group(
                name=name,
                tensors=specs,
                blocks=[pb.Block(index=b.index, offset=b.offset, elements=b.elements) for b in part],
                optimizer=chosen,
                workers=workers,
                shard=shard,
                shards=len(parts),
                consistency=way,
                clip_norm=clip_norm,
                l1=l1,
                schedule=pb.Schedule(name=schedule, parameters=_struct(schedule_parameters)),
                sparse=tables,
                durability=pb.Durability(mode=_durability(durability), fsync=fsync),
                stragglers=late,
            )
            for shard, part in enumerate(parts)
        ]
        made = await self._all("CreateGroup", [pb.CreateGroupRequest(group=group) for group in groups])
        if durability == "replicated":
            # After the first copies: whoever finds a second one alone takes the first one for lost.
            for group in groups:
                group.name = f"{name}{BACKUP}"
            backups = [groups[-1], *groups[:-1]]
            await self._all("CreateGroup", [pb.CreateGroupRequest(group=group) for group in backups])
        return made

    async def get_group(self, name: str) -> list[pb.Group]:
        """Each shard's part of the group `groups/{group}`. Raises NotFound when a shard has none."""
        return await self._all("GetGroup", [pb.GetGroupRequest(name=name)] * len(self._stubs))

    async def list_groups(self, shard: int = 0) -> AsyncIterator[pb.Group]:
        """The parts of all groups on one shard, in order of name, fetched page by page."""
        token = ""
        while True:
            request = pb.ListGroupsRequest(page_token=token)
            page = await self._callers[shard].unary(self._stubs[shard].ListGroups, request)
            for group in page.groups:
                yield group
            token = page.next_page_token
            if not token:
                return

    async def delete_group(self, name: str) -> None:
        """Delete every shard's part of a group, and its copies. Raises NotFound when no shard had one."""
        names = [name] if name.endswith(BACKUP) else [name, f"{name}{BACKUP}"]
        requests = [pb.DeleteGroupRequest(name=one) for one in names]
        calls = (self._unary(shard, "DeleteGroup", request) for shard in self._shards for request in requests)
        results = await asyncio.gather(*calls, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        serious = [failure for failure in failures if not isinstance(failure, errors.NotFound)]
        if serious or len(failures) == len(results):
            raise (serious or failures)[0]

    async def check_optimizer(self, name: str, parameters: Mapping[str, float | bool] | None = None) -> pb.Optimizer:
        """The optimizer with all its hyperparameters. Raises Invalid when there is no such one, or one is wrong."""
        request = pb.CheckOptimizerRequest(optimizer=pb.Optimizer(name=name, parameters=_struct(parameters)))
        optimizer: pb.Optimizer = await self._unary(0, "CheckOptimizer", request)
        return optimizer

    async def list_optimizers(self) -> list[pb.OptimizerDescription]:
        """The optimizers with their hyperparameters, in order of name."""
        response: pb.ListOptimizersResponse = await self._unary(0, "ListOptimizers", pb.ListOptimizersRequest())
        return list(response.optimizers)

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(caller.close() for caller in self._callers))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _shards(self) -> range:
        return range(len(self._stubs))

    async def _unary(self, shard: int, method: str, request: Any) -> Any:
        return await self._callers[shard].unary(getattr(self._stubs[shard], method), request)

    async def _all(self, method: str, requests: Sequence[Any]) -> list[pb.Group]:
        calls = (self._unary(shard, method, request) for shard, request in enumerate(requests))
        groups: list[pb.Group] = []
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
            groups.append(result)
        return groups


def _mode(name: str) -> pb.Consistency.Mode.ValueType:
    modes = {"bsp": pb.Consistency.MODE_BSP, "ssp": pb.Consistency.MODE_SSP, "asp": pb.Consistency.MODE_ASP}
    if name not in modes:
        raise errors.invalid("mode", f"must be one of {', '.join(modes)}, not {name[:40]!r}")
    return modes[name]


def _policy(name: str) -> pb.Stragglers.Policy.ValueType:
    policies = {
        "wait": pb.Stragglers.POLICY_WAIT,
        "drop": pb.Stragglers.POLICY_DROP,
        "fail": pb.Stragglers.POLICY_FAIL,
    }
    if name not in policies:
        raise errors.invalid("stragglers", f"must be one of {', '.join(policies)}, not {name[:40]!r}")
    return policies[name]


def _durability(name: str) -> pb.Durability.Mode.ValueType:
    modes = {
        "none": pb.Durability.MODE_NONE,
        "wal": pb.Durability.MODE_WAL,
        "replicated": pb.Durability.MODE_REPLICATED,
    }
    if name not in modes:
        raise errors.invalid("durability", f"must be one of {', '.join(modes)}, not {name[:40]!r}")
    return modes[name]


def _struct(parameters: Mapping[str, float | bool] | None) -> Struct:
    struct = Struct()
    struct.update(dict(parameters or {}))
    return struct
