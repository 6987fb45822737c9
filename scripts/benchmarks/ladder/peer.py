"""The other process of the rungs that are not ours: takes a vector and gives one, in whatever way it is asked to.

Run with `-m`, it says its ports, and answers lines of JSON until its input ends.
"""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from scripts.benchmarks.ladder import sockets
from scripts.benchmarks.ladder.payloads import PAYLOADS, Payload
from scripts.benchmarks.measuring.processes import lines, told
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.parameters.sharedmemory import Segment
from tidemill.rpc.allocator import keep_chunks
from tidemill.rpc.options import server_options
from tidemill.tensors.blocks import Array

SERVICE = "transport.Ladder"


class Peer:
    """What it keeps: one vector and one shared segment a payload."""

    def __init__(self) -> None:
        self._kept: dict[str, Array] = {}
        self._segments: dict[str, Segment] = {}

    def vector(self, name: str) -> Array:
        """Where a payload goes to and comes from."""
        if name not in self._kept:
            self._kept[name] = np.zeros(PAYLOADS[name].total, np.float32)
        return self._kept[name]

    def offer(self, name: str) -> dict[str, Any]:
        """Memory to share, as a shard of ours would offer it."""
        segment = self._segments[name] = Segment(PAYLOADS[name].total, parameters=True)
        return {
            "path": segment.path,
            "nonce": segment.nonce.hex(),
            "gradients_offset": segment.gradients_offset,
            "parameters_offset": segment.parameters_offset,
            "size": segment.size,
        }

    def serve(self, connection: socket.socket) -> None:
        """One connection: a line that says what for, then one exchange after the other."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asked = json.loads(connection.makefile("rb", buffering=0).readline())
        vector = self.vector(asked["payload"])
        if asked["way"] == "socket":
            while sockets.receive(connection, vector):
                connection.sendall(vector.data.cast("B"))
            return
        segment = self._segments[asked["payload"]]
        while connection.recv(1) and connection.send(b"."):
            np.copyto(vector, segment.gradients)
            if not connection.recv(1):
                return
            np.copyto(segment.parameters, vector)
            connection.sendall(b".")

    def raw_up(self, requests: Iterator[bytes], _: grpc.ServicerContext) -> bytes:
        """First the payload's name, then its pieces."""
        payload, vector = self._told(next(requests))
        for piece, data in zip(payload.pieces, requests, strict=True):
            vector[piece] = np.frombuffer(data, np.float32)
        return b""

    def raw_down(self, request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
        """A payload's pieces."""
        payload, vector = self._told(request)
        for piece in payload.pieces:
            yield vector[piece].tobytes()

    def up(self, requests: Iterator[pb.PushRequest], _: grpc.ServicerContext) -> pb.PushResponse:
        """First the header, then a payload's pieces as blocks."""
        payload, vector = self._told(next(requests).header.name.encode())
        for piece, request in zip(payload.pieces, requests, strict=True):
            vector[piece] = np.frombuffer(request.block.data, np.float32)
        return pb.PushResponse()

    def down(self, request: pb.PullRequest, _: grpc.ServicerContext) -> Iterator[pb.PullResponse]:
        """A payload's pieces as blocks."""
        payload, vector = self._told(request.name.encode())
        for index, piece in enumerate(payload.pieces):
            yield pb.PullResponse(block=pb.BlockData(block=index, data=vector[piece].tobytes()))

    def _told(self, name: bytes) -> tuple[Payload, Array]:
        return PAYLOADS[name.decode()], self.vector(name.decode())

    def handlers(self) -> grpc.GenericRpcHandler:
        """For gRPC: with messages as bytes, and as protobuf."""
        push, pull = pb.PushRequest.FromString, pb.PullRequest.FromString
        pushed, pulled = pb.PushResponse.SerializeToString, pb.PullResponse.SerializeToString
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "RawUp": grpc.stream_unary_rpc_method_handler(self.raw_up),
            "RawDown": grpc.unary_stream_rpc_method_handler(self.raw_down),
            "Up": grpc.stream_unary_rpc_method_handler(self.up, push, pushed),
            "Down": grpc.unary_stream_rpc_method_handler(self.down, pull, pulled),
        }
        handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(SERVICE, methods)
        return handler


def main() -> None:
    """Serve until the benchmark goes."""
    keep_chunks()
    peer = Peer()
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=peer.serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    server = grpc.server(ThreadPoolExecutor(4), [peer.handlers()], options=server_options())
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    told(socket=listener.getsockname()[1], grpc=port)
    for line in lines():
        told(**peer.offer(line["payload"]))
    server.stop(None)


if __name__ == "__main__":
    main()
