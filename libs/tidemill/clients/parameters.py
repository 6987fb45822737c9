"""Parameter groups from Python: made by `ParametersAdmin`, filled, pulled and pushed to by `ParametersClient`."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import grpc
import numpy as np
from google.protobuf.empty_pb2 import Empty
from opentelemetry import trace

from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.api.parameters.v1 import parameters_pb2_grpc as pg
from tidemill.clients.encoded import Encoded
from tidemill.clients.fanout import Calls, Fanout, Running
from tidemill.clients.groups import SERVICE, ParametersAdmin
from tidemill.clients.groupstate import GroupState
from tidemill.clients.mosaic import assemble
from tidemill.clients.outgoing import Cut, Departures, Push, Readiness
from tidemill.clients.replicas import BACKUP, Arbiter, Moved, Replicas, rotated
from tidemill.clients.rows import Tables
from tidemill.clients.sharedmemory import Segments, SharedSegment, SharedVersion, pieces
from tidemill.clients.sums import Mediation
from tidemill.clients.verdicts import Order, Verdicts
from tidemill.compression import catalogue
from tidemill.compression.choice import AUTO, EXACT, Choice
from tidemill.compression.residuals import Residuals
from tidemill.compression.tuner import Tuner
from tidemill.errors import invalid
from tidemill.rpc import deadline
from tidemill.rpc.caller import DEFAULT_TIMEOUT, call_context
from tidemill.rpc.frames import Piece, frame, split
from tidemill.rpc.options import channel_options
from tidemill.tensors import blocks

__all__ = ["LATEST", "GroupState", "Layout", "Outgoing", "ParametersAdmin", "ParametersClient", "PushOutcome"]

Array: TypeAlias = blocks.Array

LATEST = -1
"""Asks a pull for the latest version that all shards have."""
FLOAT = np.dtype("<f4")
T = TypeVar("T")
EARLY = 4 << 20
"""Bytes of a gradient from which on it is worth it to send parts of it while others are computed. A smaller one takes a
few milliseconds, and as much to share the processor with backward: on loopback 3 MB in 200 tensors are slower so."""
MOST_VIEWS = 16
"""Of arrays in which versions lie, a shard rotates three; one that has begun anew has others."""


@dataclass(frozen=True)
class Layout:
    """How a group's flat vector is made up and spread."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of each tensor, in order."""
    parts: tuple[tuple[blocks.Block, ...], ...]
    """For each shard its blocks."""
    workers: int
    """Number of workers in a round."""
    rounds: bool = True
    """Whether the workers make each step together, so that all shards have the same versions."""
    sparse: tuple[int, ...] = ()
    """Positions of the tensors whose gradients come as rows."""
    sums: int = 0
    """How often each step asks for sums of all shards."""
    squares: bool = False
    """Whether a push says how long the gradient of all shards is."""
    drops: bool = False
    """Whether rounds close without the slowest workers."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each tensor."""
        return [shape for _, shape in self.tensors]

    @property
    def elements(self) -> int:
        """Length of the flat vector."""
        return blocks.total(self.shapes)

    @cached_property
    def tables(self) -> Tables:
        """Where the rows of sparse tensors, and all other tensors, are."""
        return Tables(self.tensors, [block for part in self.parts for block in part], self.sparse)


@dataclass(frozen=True, slots=True)
class PushOutcome:
    """What became of a push."""

    duplicate: bool
    """Whether it was a repetition on every shard."""
    version: int
    """The lowest version of a shard afterwards."""
    dropped: bool = False
    """Whether its round has closed without it, so that it counts for nothing: pull the latest version."""


Outgoing: TypeAlias = Push[pb.PushResponse | None, PushOutcome]
"""A push that has begun."""


class ParametersClient:
    """Moves one group's parameters and gradients, for the loop of a worker. Errors are those of `tidemill.errors`.

    Synchronous, with one thread and one connection a shard and direction: a pull may run beside a push. Loads, pushes
    and pulls are repeated when a shard cannot be reached or a stream breaks; that is safe, because a push is known by
    worker, step and attempt.

    Args:
        addresses: `host:port` of every shard, in the group's order.
        group: `groups/{group}`.
        tracer: makes client spans inside of a recorded span.
        patience: seconds for which an operation is repeated on a shard that cannot be reached.
        shared: whether a worker shares memory with the shards on its host, where these offer it.
        codec: how gradients travel in messages; what is shared is exact in any case. `auto` = the first pushes are
            timed, exact ones and ones by bf16 in turn, then `choice` says what was chosen, and why.
        codec_parameters: of the codec; those that are missing have defaults.
        arbiter: of a replicated group: decides which copy goes on alone when the other one is gone.
        overlap: whether `overlaps` and `leaves_early` may say so.
        residuals: file for what the codec has not sent so far, of this worker alone; see `Residuals`.

    Raises:
        Invalid: there is no such codec, or a parameter of it is wrong.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        group: str,
        *,
        tracer: trace.Tracer | None = None,
        patience: float = 60.0,
        shared: bool = True,
        codec: str = EXACT,
        codec_parameters: Mapping[str, float | bool] | None = None,
        arbiter: Arbiter | None = None,
        overlap: bool = True,
        residuals: Path | None = None,
    ) -> None:
        self.group = group
        self._residuals_file = residuals
        self._replicas = Replicas(len(addresses), arbiter, self._lost)
        if arbiter is not None and codec != EXACT:
            shared = False  # both copies must get the same, to the bit
        self.codec = EXACT if codec == AUTO else codec
        self.choice: Choice | None = None
        self._tuner = Tuner() if codec == AUTO else None
        self._codec_parameters = dict(codec_parameters or {})
        self._last: tuple[tuple[int, int, int], Encoded | None] = (-1, -1, -1), None
        self._codec = None if self.codec == EXACT else catalogue.make(codec, codec_parameters)
        endpoints = [*addresses, *rotated(addresses)][: self._replicas.endpoints]
        self._shards = len(addresses)
        self._segments = Segments(len(endpoints) if shared else 0)
        self._tracer = tracer
        self._up = Fanout(len(endpoints), patience, "push")
        self._out = Fanout(len(endpoints), patience, "leave")
        self._down = Fanout(len(endpoints), patience, "pull")
        self._between = Fanout(len(endpoints), patience, "sums")
        self._mediation = Mediation(self._carry, self._give_up)
        self._overlap = overlap
        options = channel_options([SERVICE], own_connection=True)
        self._channels = [grpc.insecure_channel(address, options) for address in (*endpoints, *endpoints)]
        pushing, pulling = self._channels[: len(endpoints)], self._channels[len(endpoints) :]
        # Requests with bulk data are written by `frame`: they are bytes already.
        self._load: list[Any] = [
            c.stream_unary(f"/{SERVICE.full_name}/Load", None, pb.Group.FromString) for c in pushing
        ]
        self._push: list[Any] = [
            c.stream_unary(f"/{SERVICE.full_name}/Push", None, pb.PushResponse.FromString) for c in pushing
        ]
        self._pull: list[Any] = [
            c.unary_stream(f"/{SERVICE.full_name}/Pull", pb.PullRequest.SerializeToString, None) for c in pulling
        ]
        self._gradients: tuple[list[SharedSegment], Array | None] = [], None
        self._lying: dict[bytes, SharedVersion] = {}
        self._views: dict[tuple[int, ...], tuple[list[SharedVersion], Array | None]] = {}
        self._pulling = [pg.ParameterServiceStub(channel) for channel in pulling]
        self._verdicts = Verdicts(self._shards, self._close_round)

    @property
    def keeps_residual(self) -> bool:
        """Whether the codec leaves parts of gradients for later pushes."""
        return self._codec is not None and self._codec.keeps_residual

    @cached_property
    def residuals(self) -> Residuals:
        """What the codec has not sent so far: to be kept with the worker's checkpoint, dropped when it joins anew."""
        return Residuals(self.layout.elements, self._residuals_file)

    @cached_property
    def layout(self) -> Layout:
        """How the group is made up and spread, asked of the shards once.

        Raises:
            NotFound: a shard does not have the group.
            FailedPrecondition: with reason WRONG_SHARDS, the addresses are not those of the group, in its order.
        """
        groups = self._groups()
        parts = tuple(tuple(blocks.Block(b.index, b.offset, b.elements) for b in group.blocks) for group in groups)
        tensors = tuple((tensor.name, tuple(tensor.shape)) for tensor in groups[0].tensors)
        way = groups[0].consistency
        rounds = way.mode == pb.Consistency.MODE_BSP or (way.mode == pb.Consistency.MODE_SSP and not way.staleness)
        drops = groups[0].stragglers.policy == pb.Stragglers.POLICY_DROP
        layout = Layout(
            tensors,
            parts,
            groups[0].workers,
            rounds,
            tuple(groups[0].sparse),
            sums=groups[0].sums,
            squares=groups[0].clip_norm > 0 and len(parts) > 1 and not rounds,
            drops=drops,
        )
        if groups[0].durability.mode == pb.Durability.MODE_REPLICATED and self._replicas.endpoints == self._shards:
            raise errors.FailedPrecondition(f"{self.group} has copies: an arbiter is needed", reason="NO_ARBITER")
        held = sorted((block for part in parts for block in part), key=lambda block: block.index)
        ends = [0, *(block.offset + block.elements for block in held)]
        fits = all(g.shard == shard and g.shards == len(groups) for shard, g in enumerate(groups))
        if not fits or [*(block.offset for block in held), layout.elements] != ends:
            raise errors.FailedPrecondition(
                f"these {len(groups)} addresses are not the shards of {self.group} in order", reason="WRONG_SHARDS"
            )
        return layout

    @cached_property
    def _cut(self) -> Cut:
        return Cut(self.layout.parts)

    def versions(self) -> list[int]:
        """Each shard's version. In rounds, the least of them is where a worker resumes: the others keep it as well."""
        return [group.version for group in self._groups()]

    def samples(self) -> int:
        """Samples whose gradients were applied on all shards."""
        return min(group.samples for group in self._groups())

    def clocks(self, worker: int) -> list[int]:
        """For each shard the step that the worker's next push is for; the least of them is where it resumes.

        Raises:
            Invalid: the group has no such worker.
        """
        groups = self._groups()
        if not 0 <= worker < groups[0].workers:
            raise invalid("worker", f"must be a rank of the {groups[0].workers} workers, not {worker}")
        return [group.members[worker].clock for group in groups]

    def hold(self) -> int:
        """Let no worker but that of rank 0 begin a step from the one on that is returned; none has begun it.

        For a group without rounds that is to go on with other workers or shards. A shard that is restarted forgets it.

        Raises:
            FailedPrecondition: reason NO_HOLD, in rounds.
        """

        def ask(endpoint: int, calls: Calls) -> int:
            request = pb.HoldGroupRequest(name=self._name(endpoint), step=step)
            response: pb.HoldGroupResponse = self._call(
                endpoint, self._pulling[endpoint].HoldGroup, request, calls, DEFAULT_TIMEOUT
            )
            return response.step

        # Nobody begins a step without the parameters of all shards: it is enough that one keeps them.
        copies = [endpoint for endpoint in self._replicas.all() if endpoint % self._shards == 0]
        step, found = 0, [0, 1]
        while len({*found}) > 1:  # two copies see the workers at different moments
            found = self._everywhere(ask, endpoints=copies)
            step = max(found)
        return step

    def all_clocks(self) -> list[list[int]]:
        """For each shard the step that each worker's next push is for."""
        return [[member.clock for member in group.members] for group in self._groups()]

    def load(self, flat: Array) -> None:
        """Set the first values; the same ones again change nothing.

        Args:
            flat: all tensors, one after the other, float32.

        Raises:
            Invalid: the vector is not of the group's length, or holds NaN or infinity.
            FailedPrecondition: the group has other first values already.
        """
        values = self._vector(flat)

        def load(endpoint: int, calls: Calls) -> None:
            parts = self.layout.parts[endpoint % self._shards]

            def requests() -> Iterator[bytes]:
                yield pb.LoadRequest(name=self._name(endpoint)).SerializeToString()
                for data in self._chunks(parts, lambda block: values[block.slice].data.cast("B")):
                    yield b"".join(frame(b"", pb.LoadRequest.BLOCK_FIELD_NUMBER, data))

            self._call(endpoint, self._load[endpoint], requests(), calls)

        self._everywhere(load)

    def push(self, flat: Array | None, *, worker: int, step: int, attempt: int = 0, samples: int = 1) -> PushOutcome:
        """Hand in one worker's gradients for one step.

        Args:
            flat: mean gradients over the worker's samples, float32; not looked at when there are no samples.
            worker: rank of the worker.
            step: version of the parameters that the gradients were computed from.
            attempt: times that this rank was replaced so far.
            samples: number of samples, which weighs the gradients.

        Raises:
            Invalid: the vector is not of the group's length, or holds NaN or infinity (reason NON_FINITE).
            Stale: this worker was replaced (reason STALE_ATTEMPT): end.
            FailedPrecondition: the step is ahead of the group.
            NotFound: the group is not there (any more).
        """
        values = self._vector(flat) if samples else None
        header = pb.PushHeader(worker=worker, step=step, attempt=attempt, samples=samples)
        self._mediate(header, values)
        tuner = self._tuner if values is not None and self.choice is None else None
        if tuner is not None and values is not None:
            self._tune(tuner, values)
        sent: dict[int, tuple[int, float]] = {}
        order = Order(self._shards) if self.layout.drops else None
        data = None if values is None else self._encoded(values, (worker, step, attempt))
        pushing = self._pushing(values, header, data, sent, order=order)
        responses = self._everywhere(order.around(pushing) if order else pushing)
        if tuner is not None and tuner.choice is None:
            slowest = max((taken for _, taken in sent.values()), default=0.0)
            tuner.pushed(sum(elements for elements, _ in sent.values()), slowest)
            self.choice = tuner.choice
        return self._concluded(responses)

    def _concluded(self, responses: Sequence[pb.PushResponse | None]) -> PushOutcome:
        """What became of a push: None are the answers of copies that do not count any more."""
        counted = [response for response in responses if response is not None]
        duplicate, version = all(r.duplicate for r in counted), min(r.version for r in counted)
        return PushOutcome(duplicate, version, counted[0].dropped)

    def _pushing(
        self,
        values: Array | None,
        header: pb.PushHeader,
        data: Encoded | None,
        sent: dict[int, tuple[int, float]],
        readiness: Readiness | None = None,
        order: Order | None = None,
    ) -> Callable[[int, Calls], pb.PushResponse]:
        """The push to one endpoint.

        Args:
            values: all gradients; None = there are no samples.
            header: but for what is the endpoint's own.
            data: the blocks as they travel.
            sent: where to note the elements that went in messages, and the seconds, by endpoint.
            readiness: which blocks are there; None = all.
            order: which stream may end when; None = any at any time.
        """
        step, there = header.step, readiness or Readiness(self._cut, whole=True)

        def push(endpoint: int, calls: Calls) -> pb.PushResponse:
            shard = endpoint % self._shards
            segment = None if values is None else self._segment(endpoint, header.worker, header.attempt, calls)
            if segment is not None and not segment.free_for(step):
                segment = None  # what lies there may still be needed
            own = pb.PushHeader()
            own.CopyFrom(header)
            own.name, own.term = self._name(endpoint), self._replicas.term(shard)
            own.shared, own.has_end = segment is not None, readiness is not None
            if segment is None and self.codec != EXACT:
                own.codec = self.codec
                own.codec_parameters.update(self._codec_parameters)

            refused: list[errors.TidemillError] = []

            def requests(leaving: Departures) -> Iterator[bytes]:
                yield pb.PushRequest(header=own).SerializeToString()
                if data is not None and segment is None:
                    try:
                        for piece in self._chunks(leaving, data):
                            yield b"".join(frame(b"", pb.PushRequest.BLOCK_FIELD_NUMBER, piece))
                    except errors.TidemillError as error:
                        # What cannot be encoded; gRPC would take it for a broken call. A block is missing then.
                        refused.append(error)
                        return
                if own.has_end and there.is_complete:
                    # A server may take a stream that is cancelled for one that has ended.
                    yield pb.PushRequest(end=Empty()).SerializeToString()

            self._verdicts.repeat(endpoint, step, calls)
            with (
                self._segments.checked(endpoint),
                there.leaving(endpoint, shard, calls, early=segment is None) as leaving,
            ):
                begun = time.monotonic()
                if segment is not None and data is not None:
                    data.shared(self.layout.parts[shard])
                if segment is not None and values is not None and not self._lies(endpoint, segment, values):
                    segment.write(values)
                messages = requests(leaving) if order is None else order.of(shard, requests(leaving))
                try:
                    response: pb.PushResponse = self._call(endpoint, self._push[endpoint], messages, calls)
                except errors.TidemillError:
                    if refused:
                        raise refused[0] from None
                    raise
            self._replicas.seen(shard, response.term)
            if endpoint == 0:
                self._verdicts.learn(step, response.ranks, calls)
            if segment is None:
                elements = sum(block.elements for block in self.layout.parts[shard])
                sent[endpoint] = elements, time.monotonic() - begun
            if segment is not None and (response.version > step or not self.layout.rounds):
                segment.free()
            return response

        return push

    def begin_push(self, flat: Array, *, worker: int, step: int, attempt: int = 0, samples: int = 1) -> Outgoing:
        """Begin a push of gradients that are still being computed; as `push`, but for this:

        A block leaves as soon as `Outgoing.ready` was told that all of its elements are there; of those that are, the
        front ones first. It counts when it is finished, and no shard has taken anything before. Until then `flat` must
        be left alone but for the elements that are not there yet. To shards that share memory nothing leaves early.

        Args:
            flat: where the gradients will be: a contiguous vector of float32.
            worker, step, attempt, samples: as for `push`; there must be samples.

        Raises:
            Invalid: the vector is not one of the group's length, contiguous and float32; or there are no samples.
        """
        values = self._vector(flat)
        if not np.shares_memory(values, flat) or samples < 1:
            raise invalid("flat", "must be contiguous, of float32, and of at least one sample")
        header = pb.PushHeader(worker=worker, step=step, attempt=attempt, samples=samples)
        data, readiness = self._encoded(values, (worker, step, attempt)), Readiness(self._cut)
        data.remember()

        def undo() -> None:
            if data.undo():
                self._last = (-1, -1, -1), None

        def keep() -> None:
            data.forget()
            self._mediate(header)

        def conclude(running: Running[pb.PushResponse | None]) -> PushOutcome:
            with self._replicas.waiting(), self._mediation.watched():
                return self._concluded(running.result())

        push = self._counted(self._pushing(values, header, data, {}, readiness))
        running = self._out.start(push, self._replicas.all())
        return Push(readiness, running, conclude, keep, undo)

    def exchange(
        self,
        push: Outgoing,
        version: int,
        out: Array | None = None,
        *,
        worker: int,
        attempt: int = 0,
    ) -> tuple[int, Array]:
        """Finish a push, and pull what comes of it without waiting for its answer first; as `pull`.

        The pull waits at each shard for the push itself, not here for all shards: so one shard sends while others
        still receive. When the push fails, so does the pull; when the pull fails, the push is cancelled, and may have
        counted.
        """
        with push:
            return self.pull(version, out, worker=worker, attempt=attempt, beside=push.commit())

    def overlaps(self, worker: int, attempt: int = 0) -> bool:
        """Whether this worker gains by `begin_push` and `exchange`.

        It does not while pushes are timed to choose a codec, or when all of its gradients lie in shared memory; and it
        cannot where a push says at its beginning how long its whole gradient is, or at its end whether it counts.
        """
        if not self._overlap or self.layout.squares or self.layout.drops:
            return False
        if self._tuner is not None and self.choice is None:
            return False
        who = worker, attempt
        return any(self._segments.held(endpoint, who) is None for endpoint in self._replicas.all())

    def leaves_early(self, worker: int, attempt: int = 0) -> bool:
        """Whether it gains by `begin_push` before its gradients are computed."""
        return FLOAT.itemsize * self.layout.elements >= EARLY and self.overlaps(worker, attempt)

    def pull(
        self,
        version: int = LATEST,
        out: Array | None = None,
        *,
        worker: int | None = None,
        attempt: int = 0,
        timeout: float | None = None,
        versions: Array | None = None,
        view: bool = False,
        beside: Sequence[Future[Any]] = (),
    ) -> tuple[int, Array]:
        """The parameters: in rounds those of one version, the same on all shards, waited for; else as they are.

        Args:
            version: which; `LATEST` = the latest that all shards have, at least the first values. Without rounds: the
                clock of the worker.
            out: where to put them: a vector of float32 of the group's length, undefined after an error; a new one
                unless given.
            worker: rank of who pulls. Without rounds such a pull waits until its own pushes were applied, and for
                those who are too far behind. Only such a pull shares memory.
            attempt: of that worker.
            timeout: seconds to wait at most.
            versions: where to put the version of each block, int64, by index of the block.
            view: whether the parameters may stay where they lie, if all shards share them: then another vector than
                `out` is returned, which cannot be written to, and is valid until this worker pushes again.
            beside: what must go well, too, and is waited for (see `exchange`).

        Returns:
            The version, the lowest one of a block, and all tensors one after the other.

        Raises:
            OutOfRange: the version is not kept any more.
            DeadlineExceeded: it was not there in time.
            NotFound: the group is not there (any more).
        """
        layout = self.layout
        flat = np.empty(layout.elements, FLOAT) if out is None else out
        if flat.dtype != FLOAT or flat.shape != (layout.elements,) or not flat.flags.writeable:
            raise invalid("out", f"must be a writable vector of {layout.elements} float32")
        blocks = sum(map(len, layout.parts))
        vector = np.zeros(blocks, np.int64) if versions is None else versions
        if vector.dtype != np.int64 or vector.shape != (blocks,):
            raise invalid("versions", f"must be a vector of {blocks} int64")
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            wanted = self._latest() if version == LATEST and layout.rounds else version
            request = pb.PullRequest(version=wanted, worker=worker, attempt=attempt)
            lying: list[SharedVersion | None] = [None] * self._shards
            try:
                receive = partial(self._receive, request, flat, vector, ends, lying if view else None)
                self._anywhere(self._down, receive, beside)
            except errors.OutOfRange:
                if version != LATEST:
                    raise
                continue  # rounds have closed since the versions were asked: ask again
            found = self._seen(lying) if view else None
            if found is None:
                for version_lies in lying:
                    if version_lies is not None:
                        version_lies.read(flat)
            return int(vector.min()), flat if found is None else found

    def _latest(self) -> int:
        """The latest version that can be pulled: where some are dropped shard 0 leads, and the others will have it."""
        versions = self.versions()
        return versions[0] if self.layout.drops else min(versions)

    def gradient_memory(self, worker: int, attempt: int = 0) -> Array | None:
        """A flat vector in the memory that this worker shares with the shards: gradients in it need not be copied.

        It is to be asked for before every step, and to be left alone between a push and the pull of what comes of it.

        Returns:
            float32 of the group's length, undefined; None when some shard shares no memory.

        Raises:
            NotFound: the group is not there (any more).
        """
        layout = self.layout

        def attach(endpoint: int, calls: Calls) -> SharedSegment | None:
            return self._segment(endpoint, worker, attempt, calls)

        if not self._segments.some:
            return None
        endpoints = self._replicas.first()
        known, held = self._gradients
        if held is not None and known == [self._segments.held(endpoint, (worker, attempt)) for endpoint in endpoints]:
            return held
        segments = self._anywhere(self._up, attach)
        found = [segment for segment in segments if segment is not None]
        if len(found) < len(segments):
            return None
        every = [
            piece
            for segment, part in zip(found, layout.parts, strict=True)
            for piece in pieces(segment.descriptor, segment.gradients_offset, part)
        ]
        every.sort(key=lambda piece: piece.element)
        self._gradients = found, assemble(every, layout.elements, written=True)
        return self._gradients[1]

    def _lies(self, endpoint: int, segment: SharedSegment, values: Array) -> bool:
        """Whether a flat vector of gradients lies in this segment already."""
        segments, held = self._gradients
        return (
            held is not None
            and endpoint < self._shards
            and segments[endpoint] is segment
            and values.__array_interface__["data"] == held.__array_interface__["data"]
        )

    def _seen(self, lying: Sequence[SharedVersion | None]) -> Array | None:
        """The flat vector of the parameters where they lie; None when some lie elsewhere."""
        versions = [one for one in lying if one is not None]
        if len(versions) < len(lying):
            return None
        key = tuple(one.descriptor for one in versions)
        if key not in self._views:
            every = [
                piece
                for one, part in zip(versions, self.layout.parts, strict=True)
                for piece in pieces(one.descriptor, one.offset, part)
            ]
            every.sort(key=lambda piece: piece.element)
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            self._views[key] = versions, assemble(every, self.layout.elements, written=False)
        return self._views[key][1]

    def push_rows(
        self,
        dense: Array,
        rows: Mapping[str, tuple[Array, Array]],
        *,
        worker: int,
        step: int,
        attempt: int = 0,
        samples: int = 1,
    ) -> PushOutcome:
        """Hand in one worker's gradients for one step of a group with sparse tensors: exact, and in messages.

        Args:
            dense: mean gradients over the worker's samples of all other tensors, one after the other, float32.
            rows: for each sparse tensor that was touched the numbers of the rows, int64 [n], ascending, each once, and
                their mean gradients, float32 [n, width].
            worker, step, attempt, samples: as for `push`.

        Raises:
            Invalid: dense or rows are not of the group. And as `push`.
        """
        tables = self.layout.tables
        values = tables.check_dense(dense)
        touched = {} if not samples else tables.split(rows)
        header = pb.PushHeader(worker=worker, step=step, attempt=attempt, samples=samples)
        self._mediate(header, values, *(gradients for _, gradients in touched.values()))

        def push(endpoint: int, calls: Calls) -> pb.PushResponse:
            shard = endpoint % self._shards
            own = pb.PushHeader()
            own.CopyFrom(header)
            own.name, own.term = self._name(endpoint), self._replicas.term(shard)

            def requests() -> Iterator[bytes]:
                yield pb.PushRequest(header=own).SerializeToString()
                for block in self.layout.parts[shard] if samples else ():
                    if block.index in touched:
                        numbers, gradients = touched[block.index]
                        data = pb.BlockData(block=block.index, rows=numbers.tobytes(), data=gradients.tobytes())
                        yield pb.PushRequest(block=data).SerializeToString()
                    elif (where := tables.dense.get(block.index)) is not None:
                        start = pb.BlockData(block=block.index).SerializeToString()
                        piece = frame(start, pb.BlockData.DATA_FIELD_NUMBER, [values[where].data.cast("B")])
                        yield b"".join(frame(b"", pb.PushRequest.BLOCK_FIELD_NUMBER, piece))

            response: pb.PushResponse = self._call(endpoint, self._push[endpoint], requests(), calls)
            self._replicas.seen(shard, response.term)
            return response

        responses = self._everywhere(push)
        return PushOutcome(all(r.duplicate for r in responses), min(r.version for r in responses))

    def pull_rows(
        self, version: int, rows: Mapping[str, Array], *, worker: int | None = None, attempt: int = 0
    ) -> tuple[int, Array, dict[str, Array]]:
        """The parameters of a group with sparse tensors, of these only some rows.

        Args:
            version: which, not `LATEST` in rounds; else the clock of the worker.
            rows: for each sparse tensor of which some are wanted their numbers, int64 [n], ascending, each once.
            worker, attempt: as for `pull`.

        Returns:
            The lowest version of a block; all other tensors, one after the other; and the rows, float32 [n, width].

        Raises:
            Invalid: there are no such rows. And as `pull`.
        """
        tables = self.layout.tables
        if version == LATEST and self.layout.rounds:
            raise invalid("version", "must be named: shards may be at different ones")
        wanted = tables.places(rows)
        dense = np.empty(tables.elements, FLOAT)
        found = {name: np.empty((len(numbers), tables.width(name)), FLOAT) for name, numbers in rows.items()}
        versions: dict[int, int] = {}

        def pull(endpoint: int, calls: Calls) -> None:
            parts = {block.index for block in self.layout.parts[endpoint % self._shards]}
            where = {place.block: place for place in wanted if place.block in parts}
            request = pb.PullRequest(
                name=self._name(endpoint), version=version, worker=worker, attempt=attempt, sparse=True
            )
            request.rows.extend(pb.BlockRows(block=index, rows=place.rows.tobytes()) for index, place in where.items())
            missing = {index for index in parts if index in tables.dense} | where.keys()
            stub = self._pulling[endpoint]
            with (
                call_context(self._tracer, stub.Pull) as metadata,
                calls.open(stub.Pull(request, metadata=metadata, timeout=deadline.timeout(None)), endpoint) as call,
            ):
                for response in call:
                    if not response.HasField("block"):
                        continue
                    index = response.block.block
                    versions[index] = response.version
                    missing.remove(index)
                    values = np.frombuffer(response.block.data, FLOAT)
                    if (place := where.get(index)) is not None:
                        found[place.table][place.where] = values.reshape(-1, tables.width(place.table))
                    else:
                        dense[tables.dense[index]] = values
            if missing:
                shard = endpoint % self._shards
                raise errors.DataLoss(f"shard {shard} left out {len(missing)} blocks of version {version}")

        self._anywhere(self._down, pull)
        return min(versions.values(), default=version), dense, found

    def _mediate(self, header: pb.PushHeader, *gradients: Array | None) -> None:
        """See to it that all shards learn what a step needs of each of them."""
        if self.layout.sums and header.worker == 0:
            self._mediation.begin(header.step)
        if self.layout.squares:
            squares = sum(float(np.square(some, dtype=np.float64).sum()) for some in gradients if some is not None)
            header.squares = squares if np.isfinite(squares) else 0.0  # it is refused for what is not finite

    def _carry(self, step: int) -> None:
        """Read the sums of a step of every shard, and write them to all of them, until all have made it."""
        known: list[list[pb.PartialSums]] = []

        def turn(endpoint: int, calls: Calls) -> tuple[int, pb.ReadSumsResponse]:
            name, stub, number = self._name(endpoint), self._pulling[endpoint], len(known)
            # All of them, each time: a shard that was restarted begins the step anew.
            for earlier, sums in enumerate(known):
                written = pb.WriteSumsRequest(name=name, step=step, number=earlier, sums=sums)
                self._call(endpoint, stub.WriteSums, written, calls, DEFAULT_TIMEOUT)
            request = pb.ReadSumsRequest(name=name, step=step, number=number)
            return endpoint % self._shards, self._call(endpoint, stub.ReadSums, request, calls)

        while True:
            # Copies of a shard have the same.
            found = dict(self._everywhere(turn, self._between))
            if len(known) == self.layout.sums or not all(one.HasField("sums") for one in found.values()):
                return
            known.append([one.sums for one in found.values()])

    def _give_up(self) -> None:
        """Let all end that may wait for a step that will not be made."""
        self._up.end()
        self._out.end()
        self._down.end()

    def state(self) -> tuple[int, dict[str, dict[int, Array]]]:
        """The optimizer's state: the version, and name -> block -> values.

        A state that is one number for a block has one element there; one that does not exist yet is missing.

        Raises:
            Stale: with reason VERSION_SKEW, a step was made meanwhile: the shards sent different versions.
        """
        position, rows = self._saved(parameters=False)
        return position.version, rows

    def snapshot(self) -> GroupState:
        """All there is to know of the group, while no worker pushes.

        Raises:
            Stale: with reason VERSION_SKEW, a step was made meanwhile: the shards sent different versions.
        """
        position, rows = self._saved(parameters=True)
        flat = np.empty(self.layout.elements, FLOAT)
        parameters = rows.pop("", {})
        for block in (block for part in self.layout.parts for block in part):
            flat[block.slice] = parameters[block.index]
        return GroupState(
            version=position.version,
            steps=position.steps,
            clocks=tuple(position.clocks),
            samples=position.samples,
            flat=flat,
            state=rows,
        )

    def restore(self, state: GroupState) -> None:
        """Let a group without values go on where another one was, which may have been on other shards.

        Raises:
            Invalid: the state is not one of such a group (reason STATE_MISMATCH).
            FailedPrecondition: the group has begun with something else already.
        """
        values = self._vector(state.flat)
        position = pb.Position(version=state.version, steps=state.steps, clocks=state.clocks, samples=state.samples)

        def load(endpoint: int, calls: Calls) -> None:
            parts = self.layout.parts[endpoint % self._shards]

            def requests() -> Iterator[bytes]:
                yield pb.LoadRequest(name=self._name(endpoint), position=position).SerializeToString()
                for data in self._chunks(parts, lambda block: values[block.slice].data.cast("B")):
                    yield b"".join(frame(b"", pb.LoadRequest.BLOCK_FIELD_NUMBER, data))
                for name, arrays in sorted(state.state.items()):
                    for block in parts:
                        if block.index in arrays:
                            piece = pb.BlockData(block=block.index, data=arrays[block.index].astype(FLOAT).tobytes())
                            yield pb.LoadRequest(state=name, block=piece).SerializeToString()

            self._call(endpoint, self._load[endpoint], requests(), calls)

        self._everywhere(load)

    def _saved(self, *, parameters: bool) -> tuple[pb.Position, dict[str, dict[int, Array]]]:
        def receive(endpoint: int, calls: Calls) -> tuple[pb.Position, list[tuple[str, int, Array]]]:
            stub, rows, position = self._pulling[endpoint], [], pb.Position()
            request = pb.PullStateRequest(name=self._name(endpoint), parameters=parameters)
            with (
                call_context(self._tracer, stub.PullState) as metadata,
                calls.open(
                    stub.PullState(request, metadata=metadata, timeout=deadline.timeout(None)), endpoint
                ) as call,
            ):
                for response in call:
                    if response.HasField("position"):
                        position = response.position
                    if response.HasField("block"):
                        values = np.frombuffer(response.block.data, FLOAT)
                        rows.append((response.state, response.block.block, values))
            return position, rows

        results = self._anywhere(self._down, receive)
        first = results[0][0]
        if any(position != first for position, _ in results):
            raise errors.Stale("a step was made while the state was read: ask again", reason="VERSION_SKEW")
        found: dict[str, dict[int, Array]] = {}
        for _, rows in results:
            for name, block, values in rows:
                found.setdefault(name, {})[block] = values
        return first, found

    def close(self) -> None:
        """Close the connections; operations at work in other threads end with `Cancelled`."""
        self._replicas.close()
        self._between.close()
        self._up.close()
        self._out.close()
        self._down.close()
        self._mediation.close()
        self._segments.close()
        self._gradients = [], None
        self._lying.clear()
        self._views.clear()
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _groups(self) -> list[pb.Group]:
        # A pull may wait for long in the other threads.
        return self._anywhere(self._up, self._get)

    def _get(self, endpoint: int, calls: Calls) -> pb.Group:
        request = pb.GetGroupRequest(name=self._name(endpoint))
        group: pb.Group = self._call(endpoint, self._pulling[endpoint].GetGroup, request, calls, DEFAULT_TIMEOUT)
        return group

    def _name(self, endpoint: int) -> str:
        return self.group if endpoint < self._shards else f"{self.group}{BACKUP}"

    def _anywhere(
        self, fanout: Fanout, operation: Callable[[int, Calls], T], beside: Sequence[Future[Any]] = ()
    ) -> list[T]:
        """What one copy of each shard answers; `beside` as for `Fanout.run`."""
        while True:
            try:
                with self._replicas.waiting(), self._mediation.watched():
                    return fanout.run(partial(self._watched, operation), self._replicas.first(), beside)
            except Moved:
                continue

    def _everywhere(
        self,
        operation: Callable[[int, Calls], T],
        fanout: Fanout | None = None,
        endpoints: Sequence[int] | None = None,
    ) -> list[T]:
        """What all copies answer that count, of all shards or of `endpoints`."""
        to = self._replicas.all() if endpoints is None else endpoints
        with self._replicas.waiting(), self._mediation.watched():
            answers = (fanout or self._up).run(self._counted(operation), to)
        return [answer for answer in answers if answer is not None]

    def _counted(self, operation: Callable[[int, Calls], T]) -> Callable[[int, Calls], T | None]:
        """An operation on copies that may stop to count: then it gives None."""

        def counted(endpoint: int, calls: Calls) -> T | None:
            try:
                return self._watched(operation, endpoint, calls)
            except Moved:
                return None

        return counted

    def _watched(self, operation: Callable[[int, Calls], T], endpoint: int, calls: Calls) -> T:
        """An operation on one copy, whose end is noticed."""
        try:
            answer = operation(endpoint, calls)
        except errors.TidemillError as error:
            self._replicas.failed(endpoint, error, partial(self._misses, calls))
            raise
        self._replicas.well(endpoint)
        return answer

    def _misses(self, calls: Calls, endpoint: int) -> bool:
        """Whether a copy has no values."""
        try:
            return self._get(endpoint, calls).state != pb.Group.STATE_READY
        except errors.TidemillError:
            return True

    def _lost(self, endpoint: int) -> None:
        """Let calls to a copy that does not count any more end."""
        self._up.drop(endpoint)
        self._out.drop(endpoint)
        self._down.drop(endpoint)
        self._between.drop(endpoint)

    def _vector(self, flat: Array | None) -> Array:
        elements = self.layout.elements
        if flat is None or flat.shape != (elements,):
            shape = None if flat is None else list(flat.shape)
            raise invalid("flat", f"must be a vector of {elements} elements, not of shape {shape}")
        return np.ascontiguousarray(flat, FLOAT)

    def _encoded(self, values: Array, push: tuple[int, int, int]) -> Encoded:
        """The blocks of a push; of one that is repeated, those that were encoded before, if that matters."""
        last, known = self._last
        if known is None or last != push or self._codec is None or not self._codec.keeps_residual:
            residuals = self.residuals if self.keeps_residual else None
            known = Encoded(values, push[1], self._codec, residuals, self.layout.parts)
            self._last = push, known
        return known

    def _tune(self, tuner: Tuner, values: Array) -> None:
        """Send the next push as the tuner wants it."""
        if tuner.is_due:
            self.choice = tuner.choose([values[block.slice] for part in self.layout.parts for block in part])
        if tuner.codec != self.codec:
            self.codec = tuner.codec
            self._codec = None if self.codec == EXACT else catalogue.make(self.codec)

    def _chunks(
        self, found: Iterable[blocks.Block], data_of: Callable[[blocks.Block], memoryview]
    ) -> Iterator[list[Piece]]:
        """The pieces of the `BlockData` of each of some blocks."""
        for block in found:
            data = data_of(block)
            start = pb.BlockData(block=block.index).SerializeToString()
            yield frame(start, pb.BlockData.DATA_FIELD_NUMBER, [data])

    def _call(self, endpoint: int, method: Any, request: Any, calls: Calls, timeout: float | None = None) -> Any:
        """The one response to a request or to a stream of them."""
        with call_context(self._tracer, method) as metadata:
            call = method.future(request, metadata=metadata, timeout=deadline.timeout(timeout))
            with calls.open(call, endpoint):
                try:
                    return call.result()
                except grpc.FutureCancelledError:
                    raise call from None  # it says why

    def _receive(
        self,
        request: pb.PullRequest,
        flat: Array,
        versions: Array,
        ends: float | None,
        lying: list[SharedVersion | None] | None,
        endpoint: int,
        calls: Calls,
    ) -> None:
        stub, parts = self._pulling[endpoint], self.layout.parts[endpoint % self._shards]
        left = None if ends is None else max(ends - time.monotonic(), 0.001)
        segment = None
        if request.HasField("worker"):
            segment = self._segment(endpoint, request.worker, request.attempt, calls)
        own = pb.PullRequest()
        own.CopyFrom(request)
        own.name = self._name(endpoint)
        own.shared = segment is not None
        self._verdicts.repeat(endpoint, request.version - 1, calls)
        missing = {block.index: block for block in parts}
        with (
            self._segments.checked(endpoint),
            call_context(self._tracer, stub.Pull) as metadata,
            calls.open(self._pull[endpoint](own, metadata=metadata, timeout=deadline.timeout(left)), endpoint) as call,
        ):
            in_segment = segment is not None
            for response, data in map(_received, call):
                in_segment = in_segment and not data and not response.HasField("memory")
                if response.ranks and endpoint == 0:
                    self._verdicts.learn(response.version - 1, response.ranks, calls)
                if response.HasField("memory"):
                    there = self._version(endpoint, response.memory)
                    if lying is None:
                        there.read(flat)
                    else:
                        lying[endpoint % self._shards] = there
                    versions[list(missing)] = response.version
                    missing.clear()
                elif segment is not None and not response.HasField("block"):
                    versions[list(missing)] = response.version
                    missing.clear()
                elif response.HasField("block"):
                    block = missing.pop(response.block.block)
                    if data:
                        flat[block.slice] = np.frombuffer(data, FLOAT)
                    versions[block.index] = response.version
        if missing:
            raise errors.DataLoss(
                f"shard {endpoint % self._shards} left out {len(missing)} blocks of version {request.version}"
            )
        if segment is not None:
            if in_segment:
                segment.read(flat)
            segment.pulled(request.version)

    def _close_round(self, shard: int, step: int, ranks: Sequence[int], calls: Calls) -> None:
        request = pb.CloseRoundRequest(name=self.group, step=step, ranks=ranks)
        self._call(shard, self._pulling[shard].CloseRound, request, calls, DEFAULT_TIMEOUT)

    def _version(self, endpoint: int, offer: pb.SharedMemory) -> SharedVersion:
        """Memory in which a version lies. Raises Unavailable: the shard shares none after all; the call is repeated."""
        known = self._lying.get(offer.nonce)
        if known is None:
            try:
                known = SharedVersion(offer, self.layout.parts[endpoint % self._shards])
            except (OSError, ValueError) as error:
                self._segments.refuse(endpoint)
                raise errors.Unavailable(f"shared memory cannot be read: {error}", reason="NOT_ATTACHED") from error
            if len(self._lying) >= MOST_VIEWS * len(self._push):
                self._lying.clear()
            self._lying[offer.nonce] = known
        return known

    def _segment(self, endpoint: int, worker: int, attempt: int, calls: Calls) -> SharedSegment | None:
        """The memory that this worker shares with a shard; None when they share none."""

        def attach() -> pb.AttachResponse:
            request = pb.AttachRequest(name=self._name(endpoint), worker=worker, attempt=attempt)
            method = self._pulling[endpoint].Attach
            response: pb.AttachResponse = self._call(endpoint, method, request, calls, DEFAULT_TIMEOUT)
            return response

        return self._segments.of(endpoint, (worker, attempt), attach, self.layout.parts[endpoint % self._shards])


def _received(message: bytes) -> tuple[pb.PullResponse, bytes | memoryview]:
    """A message of a pull, and the data of its block, which is not copied."""
    outer = split(message, pb.PullResponse.BLOCK_FIELD_NUMBER)
    inner = split(outer[1], pb.BlockData.DATA_FIELD_NUMBER) if outer else None
    if outer is None or inner is None:
        response = pb.PullResponse.FromString(message)
        return response, response.block.data
    response = pb.PullResponse.FromString(outer[0])
    response.block.MergeFromString(inner[0])
    response.block.SetInParent()
    return response, inner[1]
