"""Between the messages of the parameter API and the objects of the shard."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from tidemill import names
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.api.tensors.v1 import tensors_pb2
from tidemill.compression.choice import EXACT
from tidemill.errors import DataLoss, invalid
from tidemill.parameters import catalogue
from tidemill.parameters.catalogue import CONSTANT, Choice, Description, RuleChoice
from tidemill.parameters.consistency.base import Reading, Wish
from tidemill.parameters.definition import Definition, Durability, Tensor, Way
from tidemill.parameters.group import Group
from tidemill.parameters.part import Part
from tidemill.parameters.rounds import Header, Outcome
from tidemill.parameters.saved import Position, Saved
from tidemill.parameters.segments import Partials
from tidemill.parameters.sharedmemory import PAGE, Segment
from tidemill.parameters.stragglers import Stragglers
from tidemill.rpc.frames import Piece, frame, split
from tidemill.tensors.blocks import Array, Block

Data = bytes | memoryview
_BLOCK = bytes([pb.PushRequest.BLOCK_FIELD_NUMBER << 3 | 2])
_DURABILITY = {
    pb.Durability.MODE_UNSPECIFIED: "none",
    pb.Durability.MODE_NONE: "none",
    pb.Durability.MODE_WAL: "wal",
    pb.Durability.MODE_REPLICATED: "replicated",
}
_MODES = {
    pb.Consistency.MODE_UNSPECIFIED: "bsp",
    pb.Consistency.MODE_BSP: "bsp",
    pb.Consistency.MODE_SSP: "ssp",
    pb.Consistency.MODE_ASP: "asp",
}
_POLICIES = {
    pb.Stragglers.POLICY_UNSPECIFIED: "wait",
    pb.Stragglers.POLICY_WAIT: "wait",
    pb.Stragglers.POLICY_DROP: "drop",
    pb.Stragglers.POLICY_FAIL: "fail",
}


def group_name(name: str) -> str:
    """`name` when it is one of a group.

    Raises:
        Invalid: it is not.
    """
    names.split(name, "groups")
    return name


def to_definition(group: pb.Group) -> Definition:
    """What a creator asks for.

    Raises:
        Invalid: some part of it is wrong.
    """
    if not group.HasField("optimizer"):
        raise invalid("group.optimizer", "is required")
    for position, tensor in enumerate(group.tensors):
        if tensor.dtype != tensors_pb2.DATA_TYPE_FP32:
            raise invalid(f"group.tensors[{position}].dtype", "must be FP32")
    asked = RuleChoice(
        optimizer=to_choice(group.optimizer),
        clip_norm=group.clip_norm,
        l1=group.l1,
        schedule=Choice(group.schedule.name or CONSTANT.name, _parameters(group.schedule.parameters, "schedule")),
    )
    rule = catalogue.check_rule(asked)
    return Definition(
        name=group.name,
        tensors=tuple(Tensor(tensor.name, tuple(tensor.shape)) for tensor in group.tensors),
        blocks=tuple(Block(block.index, block.offset, block.elements) for block in group.blocks),
        optimizer=rule.optimizer,
        clip_norm=rule.clip_norm,
        l1=rule.l1,
        schedule=rule.schedule,
        workers=group.workers,
        shard=group.shard,
        shards=group.shards,
        consistency=_to_way(group.consistency),
        durability=_to_durability(group.durability),
        sparse=tuple(group.sparse),
        stragglers=_to_stragglers(group.stragglers),
    )


def _to_stragglers(stragglers: pb.Stragglers) -> Stragglers:
    policy = _POLICIES.get(stragglers.policy)
    if policy is None:
        raise invalid("group.stragglers.policy", "is unknown")
    return Stragglers(policy=policy, most=stragglers.most, after_seconds=stragglers.after_seconds)


def _to_durability(durability: pb.Durability) -> Durability:
    mode = _DURABILITY.get(durability.mode)
    if mode is None:
        raise invalid("group.durability.mode", "is unknown")
    return Durability(mode=mode, fsync=durability.fsync)


def _to_way(consistency: pb.Consistency) -> Way:
    mode = _MODES.get(consistency.mode)
    if mode is None:
        raise invalid("group.consistency.mode", "is unknown")
    return Way(mode=mode, staleness=consistency.staleness, arrival_order=consistency.arrival_order)


def to_choice(optimizer: pb.Optimizer) -> Choice:
    """An optimizer with all hyperparameters.

    Raises:
        Invalid: there is no such optimizer, or a hyperparameter is wrong.
    """
    return catalogue.check(optimizer.name, _parameters(optimizer.parameters, "optimizer"))


def _parameters(given: Struct, owner: str) -> dict[str, Any]:
    for name, value in given.fields.items():
        if value.WhichOneof("kind") is None:
            raise invalid(f"{owner}.parameters.{name[:64]}", "has no value")
    return dict(given.items())


def from_choice(choice: Choice) -> pb.Optimizer:
    """The message of an optimizer."""
    parameters = Struct()
    parameters.update(choice.parameters)
    return pb.Optimizer(name=choice.name, parameters=parameters)


def from_description(description: Description) -> pb.OptimizerDescription:
    """The message of an optimizer that can be chosen."""
    return pb.OptimizerDescription(
        name=description.name,
        description=description.text,
        parameters=[
            pb.OptimizerParameter(name=name, type=kind, default_json=json.dumps(default), description=meaning)
            for name, kind, default, meaning in description.parameters
        ],
    )


def from_definition(definition: Definition) -> pb.Group:
    """The message of what a group is made of."""
    way, late = definition.consistency, definition.stragglers
    return pb.Group(
        name=definition.name,
        tensors=[
            tensors_pb2.TensorSpec(name=tensor.name, dtype=tensors_pb2.DATA_TYPE_FP32, shape=tensor.shape)
            for tensor in definition.tensors
        ],
        blocks=[pb.Block(index=b.index, offset=b.offset, elements=b.elements) for b in definition.blocks],
        optimizer=from_choice(definition.optimizer),
        clip_norm=definition.clip_norm,
        l1=definition.l1,
        schedule=pb.Schedule(name=definition.schedule.name, parameters=from_choice(definition.schedule).parameters),
        workers=definition.workers,
        sparse=definition.sparse,
        shard=definition.shard,
        shards=definition.shards,
        consistency=pb.Consistency(
            mode=next(number for number, name in _MODES.items() if number and name == way.mode),
            staleness=way.staleness,
            arrival_order=way.arrival_order,
        ),
        durability=pb.Durability(
            mode=next(number for number, name in _DURABILITY.items() if number and name == definition.durability.mode),
            fsync=definition.durability.fsync,
        ),
        stragglers=pb.Stragglers(
            policy=next(number for number, name in _POLICIES.items() if number and name == late.policy),
            most=late.most,
            after_seconds=late.after_seconds,
        ),
    )


def from_group(group: Group) -> pb.Group:
    """The message of a group as it is now."""
    status = group.status()
    message = from_definition(group.definition)
    message.state = pb.Group.STATE_READY if status.ready else pb.Group.STATE_EMPTY
    message.version, message.steps = status.version, status.steps
    message.term, message.sums = status.term, status.sums
    message.samples, message.duplicates = status.samples, status.duplicates
    message.arrived.extend(status.arrived)
    message.create_time.CopyFrom(_timestamp(group.created))
    message.members.extend(
        pb.Member(
            worker=member.worker,
            attempt=member.attempt,
            clock=member.clock,
            waits_for=member.waits_for,
            bytes_in_flight=member.bytes_in_flight,
            seen_time=_timestamp(member.seen) if member.seen else None,
            dropped=member.dropped,
        )
        for member in status.members
    )
    return message


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


def to_header(request: pb.PushRequest | bytes | None) -> tuple[str, Header]:
    """The group's name and the header in the first message of a push.

    Raises:
        Invalid: it does not carry a header, or a wrong one.
    """
    if request is None or isinstance(request, bytes) or request.WhichOneof("part") != "header":
        raise invalid("header", "the first message must carry the header", reason="MISSING_HEADER")
    header = request.header
    return group_name(header.name), Header(
        worker=header.worker,
        step=header.step,
        attempt=header.attempt,
        samples=header.samples,
        shared=header.shared,
        term=header.term,
        codec="" if header.codec == EXACT else header.codec,
        codec_parameters=_parameters(header.codec_parameters, "codec"),
        squares=header.squares,
        has_end=header.has_end,
    )


def to_block(request: pb.PushRequest | pb.LoadRequest) -> tuple[int, bytes]:
    """The block in a message of a stream.

    Raises:
        Invalid: it carries none.
    """
    if not request.HasField("block"):
        raise invalid("block", "every further message must carry a block", reason="MISSING_BLOCK")
    return request.block.block, request.block.data


def pushed(message: bytes) -> pb.PushRequest | bytes:
    """A message of a push; as it came when it carries a block, so that this is not copied."""
    if message[:1] == _BLOCK:
        return message
    return pb.PushRequest.FromString(message)


def to_its_end(requests: Iterable[pb.PushRequest | bytes]) -> Iterator[pb.PushRequest | bytes]:
    """The messages of a push before its last one, which must say that the push counts.

    Raises:
        Invalid: reason NO_END, it did not come: the worker has given the push up.
    """
    for request in requests:
        if not isinstance(request, bytes) and request.HasField("end"):
            return
        yield request
    raise invalid("end", "did not come: the push was given up", reason="NO_END")


def to_rows(request: pb.PushRequest | bytes) -> tuple[int, Data, bytes]:
    """The block in a message of a push, with its touched rows if it is of a table. Raises Invalid."""
    if isinstance(request, bytes):
        outer = split(request, pb.PushRequest.BLOCK_FIELD_NUMBER)
        inner = split(outer[1], pb.BlockData.DATA_FIELD_NUMBER) if outer and not outer[0] else None
        try:
            if inner is not None:
                return pb.BlockData.FromString(inner[0]).block, inner[1], b""
            request = pb.PushRequest.FromString(request)
        except DecodeError as error:
            raise invalid("block", "is not a message of this API", reason="MISSING_BLOCK") from error
    index, data = to_block(request)
    return index, data, request.block.rows


def to_piece(request: pb.LoadRequest) -> tuple[str, int, bytes]:
    """The block in a message of a stream, and of which state it is. Raises Invalid."""
    return request.state, *to_block(request)


def encode(definition: Definition) -> bytes:
    """A definition as it is kept."""
    return from_definition(definition).SerializeToString(deterministic=True)


def decode(data: bytes) -> Definition:
    """What `encode` has made. Raises DataLoss, and Invalid when this release does not know what it asks for."""
    try:
        return to_definition(pb.Group.FromString(data))
    except DecodeError as error:
        raise DataLoss("the definition of a group is damaged", reason="DAMAGED") from error


def from_outcome(outcome: Outcome) -> pb.PushResponse:
    """The answer to a push."""
    return pb.PushResponse(
        duplicate=outcome.duplicate,
        version=outcome.version,
        term=outcome.term,
        dropped=outcome.dropped,
        ranks=outcome.ranks,
    )


def from_partials(partials: Partials) -> pb.PartialSums:
    """The message of a shard's sums."""
    return pb.PartialSums(
        tensors=partials.keys[:, 0],
        blocks=partials.keys[:, 1],
        values=partials.sums.reshape(-1),
        width=partials.sums.shape[1],
    )


def to_partials(sums: pb.PartialSums) -> Partials:
    """A shard's sums. Raises Invalid."""
    if len(sums.tensors) != len(sums.blocks) or len(sums.values) != len(sums.blocks) * sums.width:
        raise invalid("sums", "must have a tensor, a block and `width` values each", reason="PARTIALS_MISMATCH")
    keys = np.array([sums.tensors, sums.blocks], np.int64).T.reshape(-1, 2)
    return Partials(keys, np.array(sums.values, np.float64).reshape(len(keys), sums.width))


def to_wish(request: pb.PullRequest) -> Wish:
    """What a pull asks for. Raises Invalid."""
    rows = None
    if request.sparse:
        rows = {one.block: np.frombuffer(one.rows[: len(one.rows) // 4 * 4], "<u4") for one in request.rows}
        if len(rows) < len(request.rows) or any(len(one.rows) % 4 for one in request.rows):
            raise invalid("rows", "must be of different blocks, 4 bytes a row", reason="BAD_ROWS")
    worker = request.worker if request.HasField("worker") else None
    return Wish(version=request.version, worker=worker, rows=rows)


def from_reading(reading: Reading) -> Iterator[bytes]:
    """The serialized `PullResponse` of each block that is read; one without a block when the shard has none."""
    ranks: Sequence[int] | None = reading.ranks
    for block, values, made in reading.blocks:
        start, ranks = pb.PullResponse(version=made, ranks=ranks).SerializeToString(), None
        yield b"".join(frame(start, pb.PullResponse.BLOCK_FIELD_NUMBER, _data(block.index, values)))
    if ranks is not None:
        yield pb.PullResponse(version=reading.version, ranks=ranks).SerializeToString()


def into_segment(reading: Reading, part: Part, segment: Segment) -> Iterator[bytes]:
    """Put what is read into a segment, or say where it is; the serialized `PullResponse`s, one when of one version.

    Versions that were made before anybody shared are sent.
    """
    if (memory := reading.memory) is not None:
        where = pb.SharedMemory(path=memory.path, nonce=memory.nonce, offset=PAGE, size=memory.size)
        yield pb.PullResponse(version=reading.version, memory=where).SerializeToString()
        return
    if segment.parameters.size != part.elements:
        yield from from_reading(reading)
        return
    versions = {}
    for block, values, made in reading.blocks:
        part.view(segment.parameters, block.index)[:] = values
        versions[block.index] = made
    if len(set(versions.values())) <= 1:
        made = next(iter(versions.values()), reading.version)
        yield pb.PullResponse(version=made, ranks=reading.ranks).SerializeToString()
        return
    for index, made in versions.items():
        yield pb.PullResponse(version=made, block=pb.BlockData(block=index)).SerializeToString()


def from_segment(segment: Segment) -> pb.AttachResponse:
    """The message of shared memory."""
    return pb.AttachResponse(
        path=segment.path,
        nonce=segment.nonce,
        gradients_offset=segment.gradients_offset,
        parameters_offset=segment.parameters_offset,
        size=segment.size,
    )


def from_saved(saved: Saved, part: Part, *, parameters: bool) -> Iterator[bytes]:
    """The serialized `PullStateResponse`s: the position, the parameters if asked for, each block of each state."""
    at = saved.position
    position = pb.Position(version=at.version, steps=at.steps, clocks=at.clocks, samples=at.samples)
    yield pb.PullStateResponse(version=at.version, position=position).SerializeToString()
    states: dict[str, Sequence[Array | None]] = {"": part.views(saved.values)} if parameters else {}
    for name, arrays in {**states, **saved.state}.items():
        start = pb.PullStateResponse(version=at.version, state=name).SerializeToString()
        for block, array in zip(part.blocks, arrays, strict=True):
            if array is not None:
                yield b"".join(frame(start, pb.PullStateResponse.BLOCK_FIELD_NUMBER, _data(block.index, array)))


def to_position(position: pb.Position) -> Position:
    """Where a group is to go on from."""
    return Position(
        version=position.version, steps=position.steps, clocks=tuple(position.clocks), samples=position.samples
    )


def _data(index: int, values: Array) -> list[Piece]:
    start = pb.BlockData(block=index).SerializeToString()
    return frame(start, pb.BlockData.DATA_FIELD_NUMBER, [values.data.cast("B")])
