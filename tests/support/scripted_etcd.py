"""A gRPC server that speaks etcd's watch protocol word by word as the test says, faults included."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc

from tidemill.api.compat.etcd.v3 import etcd_pb2 as pb
from tidemill.api.compat.etcd.v3 import etcd_pb2_grpc as rpc

Step: TypeAlias = pb.WatchResponse | Exception | asyncio.Event
"""Send a response, end the stream with an error, or wait (until the client leaves, if the event never comes)."""
Script: TypeAlias = Callable[[int], Iterable[Step]]
"""What one stream does, given the revision that it was asked to start at. At its end the stream ends with OK."""


def created(header: int = 2000) -> pb.WatchResponse:
    """The answer to a create request."""
    return pb.WatchResponse(header=pb.ResponseHeader(revision=header), created=True)


def puts(revisions: Iterable[int], header: int = 2000, *, fragment: bool = False) -> pb.WatchResponse:
    """One response with one write for each revision; a revision given twice has two."""
    response = pb.WatchResponse(header=pb.ResponseHeader(revision=header), fragment=fragment)
    for i, revision in enumerate(revisions):
        kv = pb.KeyValue(key=b"m/%d-%d" % (revision, i), mod_revision=revision, create_revision=revision, version=1)
        response.events.append(pb.Event(kv=kv))
    return response


class Broken(Exception):
    """Ends a stream with UNAVAILABLE, as a lost connection does."""


class ScriptedEtcd(rpc.WatchServicer, rpc.KVServicer):
    """Runs `scripts`, one for each stream; later streams say "created" and then nothing."""

    def __init__(self, scripts: Iterable[Script]) -> None:
        self._scripts = list(scripts)
        self.starts: list[int] = []
        """Start revisions asked for, a stream each."""
        self.progress_requests = 0
        """Signs of life asked for."""
        self.revision = 2000
        """The store's, for reads."""

    async def Range(self, request: pb.RangeRequest, context: object) -> pb.RangeResponse:
        """An empty store at `revision`."""
        return pb.RangeResponse(header=pb.ResponseHeader(revision=self.revision))

    async def Put(self, request: pb.PutRequest, context: object) -> pb.PutResponse:
        """Not played."""
        raise NotImplementedError

    async def DeleteRange(self, request: pb.DeleteRangeRequest, context: object) -> pb.DeleteRangeResponse:
        """Not played."""
        raise NotImplementedError

    async def Txn(self, request: pb.TxnRequest, context: object) -> pb.TxnResponse:
        """Not played."""
        raise NotImplementedError

    async def Compact(self, request: pb.CompactionRequest, context: object) -> pb.CompactionResponse:
        """Not played."""
        raise NotImplementedError

    async def Watch(
        self,
        requests: AsyncIterator[pb.WatchRequest],
        context: grpc.aio.ServicerContext[pb.WatchRequest, pb.WatchResponse],
    ) -> AsyncIterator[pb.WatchResponse]:
        """One stream."""
        first = await anext(requests)
        start = first.create_request.start_revision
        script = self._scripts[len(self.starts)] if len(self.starts) < len(self._scripts) else _idle
        self.starts.append(start)
        listener = asyncio.create_task(self._listen(requests))
        try:
            for step in script(start):
                if isinstance(step, pb.WatchResponse):
                    yield step
                elif isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, str(step))
        finally:
            listener.cancel()

    async def _listen(self, requests: AsyncIterator[pb.WatchRequest]) -> None:
        async for request in requests:
            if request.HasField("progress_request"):
                self.progress_requests += 1


def _idle(start: int) -> Iterable[Step]:
    return [created(), asyncio.Event()]


@asynccontextmanager
async def scripted_etcd(*scripts: Script) -> AsyncIterator[tuple[ScriptedEtcd, str]]:
    """The servicer and its address."""
    servicer = ScriptedEtcd(scripts)
    server = grpc.aio.server()
    rpc.add_WatchServicer_to_server(servicer, server)
    rpc.add_KVServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
