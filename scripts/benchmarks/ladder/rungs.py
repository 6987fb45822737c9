"""One rung each: gradients go up, parameters come down."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import grpc
import numpy as np

from scripts.benchmarks.ladder import sockets
from scripts.benchmarks.ladder.payloads import PAYLOADS
from scripts.benchmarks.ladder.peer import SERVICE
from scripts.benchmarks.measuring.processes import Helper, Shard
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients.parameters import ParametersAdmin, ParametersClient
from tidemill.clients.sharedmemory import SharedSegment
from tidemill.rpc.options import channel_options
from tidemill.tensors import blocks
from tidemill.tensors.blocks import Array


class Others:
    """The processes at the other end, and the vectors at this one, which all rungs of a payload share.

    Args:
        peer: runs `peer.py`.
        shard: one of ours.
    """

    def __init__(self, peer: Helper, shard: Shard) -> None:
        self.peer = peer
        self.shard = shard
        self.ports = peer.hear()
        self._vectors: dict[str, tuple[Array, Array]] = {}

    def vectors(self, name: str) -> tuple[Array, Array]:
        """Gradients and parameters of a payload."""
        if name not in self._vectors:
            payload = PAYLOADS[name]
            self._vectors[name] = payload.gradients(), np.zeros(payload.total, np.float32)
        return self._vectors[name]


class Rung(ABC):
    """One way for one payload; opened once, then used again and again.

    Args:
        name: of the payload.
        others: the other end.
    """

    text: ClassVar[str]
    adds: ClassVar[str]
    """What it does beyond the rung that it is compared with."""
    below: ClassVar[str] = ""
    """The name of that rung."""

    def __init__(self, name: str, others: Others) -> None:
        self.name = name
        self.payload = PAYLOADS[name]
        self.pieces = self.payload.pieces
        self.gradients, self.parameters = others.vectors(name)
        self.other = others.peer.pid
        """The process at the other end."""
        self.open(others)

    @abstractmethod
    def open(self, others: Others) -> None:
        """Connect."""

    @abstractmethod
    def exchange(self) -> None:
        """Gradients up, parameters down."""

    def check(self) -> None:
        """Make an exchange. Raises ValueError unless what came down is right: here, what went up."""
        self.parameters.fill(0)
        self.exchange()
        if not np.array_equal(self.parameters, self.gradients):
            raise ValueError(f"{self.text}: what came back is not what was sent")

    def close(self) -> None:
        """Let go."""
        return


class Memory(Rung):
    """A copy there and a copy back, in one process."""

    text, adds = "memory copy", "two copies"

    def open(self, others: Others) -> None:
        """Nothing but memory."""
        self._there = np.zeros_like(self.gradients)

    def exchange(self) -> None:
        """Two copies."""
        for piece in self.pieces:
            self._there[piece] = self.gradients[piece]
        for piece in self.pieces:
            self.parameters[piece] = self._there[piece]


class Shared(Rung):
    """The segment that a shard shares with a worker, and a byte over a socket for each turn."""

    text, adds, below = "shared memory", "two more copies, other process", "memory"

    def open(self, others: Others) -> None:
        """Attach as a worker does."""
        offer = others.peer.ask(payload=self.name)
        offer["nonce"] = bytes.fromhex(offer["nonce"])
        self._segment = SharedSegment(pb.AttachResponse(**offer), blocks.cut(self.payload.total))
        self._connection = sockets.connect(others.ports["socket"])
        self._connection.sendall(json.dumps({"way": "shared", "payload": self.name}).encode() + b"\n")

    def exchange(self) -> None:
        """Write, let it be read, let be written, read."""
        self._segment.write(self.gradients)
        self._turn()
        self._turn()
        self._segment.read(self.parameters)

    def _turn(self) -> None:
        self._connection.sendall(b".")
        if not self._connection.recv(1):
            raise ConnectionError("the other process has gone")

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class Socket(Rung):
    """TCP on loopback, straight from and into the vectors."""

    text, adds, below = "socket", "the kernel's TCP", "memory"

    def open(self, others: Others) -> None:
        """Connect."""
        self._connection = sockets.connect(others.ports["socket"])
        self._connection.sendall(json.dumps({"way": "socket", "payload": self.name}).encode() + b"\n")

    def exchange(self) -> None:
        """Piece by piece there, all at once back."""
        for piece in self.pieces:
            self._connection.sendall(self.gradients[piece].data.cast("B"))
        if not sockets.receive(self._connection, self.parameters):
            raise ConnectionError("the other process has gone")

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class RawStream(Rung):
    """Streams of gRPC whose messages are bytes."""

    text, adds, below = "raw gRPC stream", "gRPC", "socket"

    def open(self, others: Others) -> None:
        """Connect."""
        options = channel_options(own_connection=True)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{others.ports['grpc']}", options)
        self._up: Any = self._channel.stream_unary(f"/{SERVICE}/RawUp")
        self._down: Any = self._channel.unary_stream(f"/{SERVICE}/RawDown")

    def exchange(self) -> None:
        """A stream up, then a stream down."""
        self._up(self._requests())
        for piece, data in zip(self.pieces, self._down(self.name.encode()), strict=True):
            self.parameters[piece] = np.frombuffer(data, np.float32)

    def _requests(self) -> Iterator[bytes]:
        yield self.name.encode()
        for piece in self.pieces:
            yield self.gradients[piece].tobytes()

    def close(self) -> None:
        """Hang up."""
        self._channel.close()


class Protobuf(Rung):
    """The same streams, with the messages of our contract as protobuf makes and reads them."""

    text, adds, below = "protobuf stream", "protobuf", "raw"

    def open(self, others: Others) -> None:
        """Connect."""
        options = channel_options(own_connection=True)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{others.ports['grpc']}", options)
        push, pushed = pb.PushRequest.SerializeToString, pb.PushResponse.FromString
        pull, pulled = pb.PullRequest.SerializeToString, pb.PullResponse.FromString
        self._up: Any = self._channel.stream_unary(f"/{SERVICE}/Up", push, pushed)
        self._down: Any = self._channel.unary_stream(f"/{SERVICE}/Down", pull, pulled)

    def exchange(self) -> None:
        """A stream up, then a stream down."""
        self._up(self._requests())
        for piece, response in zip(self.pieces, self._down(pb.PullRequest(name=self.name)), strict=True):
            self.parameters[piece] = np.frombuffer(response.block.data, np.float32)

    def _requests(self) -> Iterator[pb.PushRequest]:
        yield pb.PushRequest(header=pb.PushHeader(name=self.name))
        for index, piece in enumerate(self.pieces):
            yield pb.PushRequest(block=pb.BlockData(block=index, data=self.gradients[piece].tobytes()))

    def close(self) -> None:
        """Hang up."""
        self._channel.close()


class Ours(Rung):
    """A push to a real shard, a step of plain SGD there, and a pull of the version that it made."""

    text, adds, below = "ours over gRPC", "checks, the mean, SGD and versions; less protobuf", "protobuf"
    shares: ClassVar[bool] = False

    def open(self, others: Others) -> None:
        """Create a group, and fill it with zeros."""
        self.other = others.shard.pid
        group = f"groups/{self.name}-{'shared' if self.shares else 'sent'}"
        tensors = [(f"t{index}", (self.payload.elements,)) for index in range(self.payload.tensors)]

        async def create() -> None:
            async with ParametersAdmin([others.shard.address]) as admin:
                await admin.create_group(group, tensors, optimizer="sgd", parameters={"learning_rate": 1.0})

        asyncio.run(create())
        self._client = ParametersClient([others.shard.address], group, shared=self.shares)
        self._client.load(np.zeros(self.payload.total, np.float32))
        self._steps = 0

    def exchange(self) -> None:
        """One step of a worker."""
        self._client.push(self.gradients, worker=0, step=self._steps)
        self._steps += 1
        self._client.pull(self._steps, self.parameters, worker=0)

    def check(self) -> None:
        """Make two exchanges. Raises ValueError unless the second one has subtracted the gradients once more."""
        self.exchange()
        before = self.parameters.copy()
        self.exchange()
        if not np.array_equal(self.parameters, before - self.gradients):
            raise ValueError(f"{self.text}: the parameters are not what a step makes of them")

    def close(self) -> None:
        """Hang up."""
        self._client.close()


class OursShared(Ours):
    """The same through memory that the worker shares with the shard."""

    text, adds, below = "ours over shared memory", "gRPC for control, checks, the mean, SGD and versions", "shared"
    shares = True


RUNGS: dict[str, type[Rung]] = {
    "memory": Memory,
    "shared": Shared,
    "socket": Socket,
    "raw": RawStream,
    "protobuf": Protobuf,
    "ours-grpc": Ours,
    "ours-shm": OursShared,
}
"""By the name in the figures, from the bottom up."""
