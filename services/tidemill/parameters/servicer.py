"""The parameter API over gRPC: converts, calls, converts."""

from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from opentelemetry import trace
from prometheus_client import Counter

from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.parameters import catalogue, convert
from tidemill.parameters.groups import Groups
from tidemill.parameters.metrics import Metrics
from tidemill.parameters.rounds import Header
from tidemill.rpc import paging
from tidemill.rpc.methods import methods
from tidemill.slots import Slots
from tidemill.telemetry import attributes

SERVICE = pb.DESCRIPTOR.services_by_name["ParameterService"]


class ParameterServicer:
    """One shard.

    Args:
        groups: its groups.
        pulls: places for calls that send blocks, whether they wait or not: fewer than there are threads.
        pushes: the same for calls that receive blocks.
        metrics: what is counted.
        share: whether workers on this host share memory with it.
    """

    def __init__(self, groups: Groups, pulls: Slots, pushes: Slots, metrics: Metrics, *, share: bool = False) -> None:
        self._share = share
        self._groups = groups
        self._pulls = pulls
        self._pushes = pushes
        self._metrics = metrics

    def CreateGroup(self, request: pb.CreateGroupRequest, context: grpc.ServicerContext) -> pb.Group:
        """Create this shard's part of a group."""
        return convert.from_group(self._groups.create(convert.to_definition(request.group)))

    def GetGroup(self, request: pb.GetGroupRequest, context: grpc.ServicerContext) -> pb.Group:
        """Read a group."""
        return convert.from_group(self._groups.get(convert.group_name(request.name)))

    def ListGroups(self, request: pb.ListGroupsRequest, context: grpc.ServicerContext) -> pb.ListGroupsResponse:
        """List a page of groups."""
        size = paging.size(request.page_size)
        found = self._groups.after(paging.position(request.page_token), size + 1)
        more = paging.token(found[size - 1].name) if len(found) > size else ""
        return pb.ListGroupsResponse(groups=map(convert.from_group, found[:size]), next_page_token=more)

    def DeleteGroup(self, request: pb.DeleteGroupRequest, context: grpc.ServicerContext) -> Empty:
        """Delete a group."""
        self._groups.delete(convert.group_name(request.name))
        return Empty()

    def Load(self, request_iterator: Iterator[pb.LoadRequest], context: grpc.ServicerContext) -> pb.Group:
        """Take first values."""
        with self._pushes:
            first = next(request_iterator, pb.LoadRequest())
            group = self._groups.get(convert.group_name(first.name))
            position = convert.to_position(first.position) if first.HasField("position") else None
            group.restore(_loaded(first, request_iterator), position)
            return convert.from_group(group)

    def Push(
        self, request_iterator: Iterator[pb.PushRequest | bytes], context: grpc.ServicerContext
    ) -> pb.PushResponse:
        """Take gradients."""
        try:
            with self._pushes:
                name, header = convert.to_header(next(request_iterator, None))
                _describe(name, header)
                group = self._groups.get(name)
                if header.shared:
                    self._metrics.shared_bytes.labels("push").inc(4 * group.part.elements)
                context.add_callback(group.wake)
                requests = convert.to_its_end(request_iterator) if header.has_end else request_iterator
                blocks = _counted(requests, self._metrics.pushed_bytes)
                outcome = group.push(header, blocks, context.is_active)
        except (errors.TidemillError, grpc.RpcError):
            self._metrics.pushes.labels("refused").inc()
            raise
        kind = "dropped" if outcome.dropped else "duplicate" if outcome.duplicate else "applied"
        self._metrics.pushes.labels(kind).inc()
        trace.get_current_span().set_attribute(attributes.DUPLICATE, outcome.duplicate)
        return convert.from_outcome(outcome)

    def Pull(self, request: pb.PullRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Send one version, when it is there."""
        group = self._groups.get(convert.group_name(request.name))
        # A call that ends, for whatever reason, must not keep its thread.
        context.add_callback(group.wake)
        with self._pulls, group.reading(convert.to_wish(request), context.is_active) as reading:
            trace.get_current_span().set_attributes({attributes.GROUP: group.name, attributes.VERSION: reading.version})
            if request.shared:
                segment = group.shared(request.worker, request.attempt)
                self._metrics.shared_bytes.labels("pull").inc(4 * group.part.elements)
                yield from convert.into_segment(reading, group.part, segment)
                return
            for response in convert.from_reading(reading):
                self._metrics.pulled_bytes.inc(len(response))
                yield response

    def HoldGroup(self, request: pb.HoldGroupRequest, context: grpc.ServicerContext) -> pb.HoldGroupResponse:
        """Let the workers come to a stand."""
        return pb.HoldGroupResponse(step=self._groups.get(convert.group_name(request.name)).hold(request.step))

    def ReadSums(self, request: pb.ReadSumsRequest, context: grpc.ServicerContext) -> pb.ReadSumsResponse:
        """Tell this shard's sums, once they are there."""
        group = self._groups.get(convert.group_name(request.name))
        context.add_callback(group.wake)
        with self._pulls:
            found = group.read_sums((request.step, request.number), context.is_active)
        return pb.ReadSumsResponse(sums=None if found is None else convert.from_partials(found))

    def WriteSums(self, request: pb.WriteSumsRequest, context: grpc.ServicerContext) -> Empty:
        """Let a step go on."""
        group = self._groups.get(convert.group_name(request.name))
        group.write_sums((request.step, request.number), [convert.to_partials(sums) for sums in request.sums])
        return Empty()

    def CloseRound(self, request: pb.CloseRoundRequest, context: grpc.ServicerContext) -> pb.CloseRoundResponse:
        """Hear who makes a round."""
        group = self._groups.get(convert.group_name(request.name))
        return pb.CloseRoundResponse(version=group.close_round(request.step, request.ranks))

    def Attach(self, request: pb.AttachRequest, context: grpc.ServicerContext) -> pb.AttachResponse:
        """Share memory with a worker."""
        name = convert.group_name(request.name)
        if not self._share or not is_local(context.peer()):
            raise errors.FailedPrecondition("this shard shares no memory with you", reason="NO_SHARED_MEMORY")
        return convert.from_segment(self._groups.attach(name, request.worker, request.attempt))

    def PullState(self, request: pb.PullStateRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Send the optimizer's state."""
        group = self._groups.get(convert.group_name(request.name))
        with self._pulls, group.state(parameters=request.parameters) as saved:
            yield from convert.from_saved(saved, group.part, parameters=request.parameters)

    def ListOptimizers(
        self, request: pb.ListOptimizersRequest, context: grpc.ServicerContext
    ) -> pb.ListOptimizersResponse:
        """List the optimizers."""
        return pb.ListOptimizersResponse(optimizers=map(convert.from_description, catalogue.describe()))

    def CheckOptimizer(self, request: pb.CheckOptimizerRequest, context: grpc.ServicerContext) -> pb.Optimizer:
        """Check an optimizer, and fill in its defaults."""
        return convert.from_choice(convert.to_choice(request.optimizer))


def is_local(peer: str) -> bool:
    """Whether gRPC's name of a caller is one on this host."""
    return peer.startswith(("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "unix:"))


def _loaded(first: pb.LoadRequest, rest: Iterable[pb.LoadRequest]) -> Iterator[tuple[str, int, bytes]]:
    if first.HasField("block"):
        yield convert.to_piece(first)
    yield from map(convert.to_piece, rest)


def _counted(requests: Iterable[pb.PushRequest | bytes], counter: Counter) -> Iterator[tuple[int, convert.Data, bytes]]:
    for index, data, rows in map(convert.to_rows, requests):
        counter.inc(len(data) + len(rows))
        yield index, data, rows


def _describe(name: str, header: Header) -> None:
    trace.get_current_span().set_attributes(
        {
            attributes.GROUP: name,
            attributes.RANK: header.worker,
            attributes.STEP: header.step,
            attributes.ATTEMPT: header.attempt,
            attributes.SAMPLES: header.samples,
        }
    )


def add_to_server(servicer: ParameterServicer, server: Any) -> None:
    """Let `server` serve `servicer`: as the generated function does, but messages of bulk data come serialized."""
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
    }
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        method.name: kinds[method.client_streaming, method.server_streaming](
            getattr(servicer, method.name),
            request_deserializer=convert.pushed if method.name == "Push" else method.request.FromString,
            response_serializer=_serialize,
        )
        for method in methods(SERVICE)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))


def _serialize(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()
