"""The key-value store over an etcd cluster (3.4 or later), by its own gRPC contract."""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

import grpc

from tidemill.api.compat.etcd.v3 import etcd_pb2 as pb
from tidemill.errors import Exhausted, FailedPrecondition, NotFound, OutOfRange, Unavailable, invalid
from tidemill.kv.base import (
    CompactedError,
    Compare,
    Entry,
    Event,
    EventType,
    Kv,
    Operation,
    Page,
    Put,
    TxnResult,
    WatchBatch,
)
from tidemill.kv.checks import check_key, check_range, check_revision, check_ttl, check_txn, decode, encode, prefix_end
from tidemill.kv.etcd_connection import EtcdConnection, Member, Metadata, Tls
from tidemill.kv.etcd_status import ReplyTooLarge
from tidemill.kv.etcd_watch import EtcdWatch

PAGE = 1000
"""Most entries asked for at once."""
OLDEST = (3, 4)
"""Oldest version of etcd that has all that is needed here."""


class EtcdKv(Kv):
    """The contract of `Kv` over etcd.

    Making one connects to nothing; the first call does. Reads are repeated until their time is over, writes are sent
    once. A token that has expired is renewed.

    Args:
        endpoints: `host:port` of members; the others are turned to when one fails.
        username, password: whom to log in as; "" for nobody.
        tls: files for encrypted connections; None for plain text.
        prefix: put before every key, so that several systems can share a cluster; callers never see it.
        request_timeout: seconds that a call may take in all.
        connect_timeout: seconds to wait for a connection to one of several members.
        watch_silence: seconds of silence after which a watch asks for a sign of life, and again until it gives up.
        max_message_bytes: largest reply accepted; longer reads come in pages.
        interceptors: for the unary calls, such as tracing.

    Raises:
        errors.Invalid: there is no endpoint, or one is not `host:port`.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        username: str = "",
        password: str = "",
        tls: Tls | None = None,
        prefix: str = "",
        request_timeout: float = 5.0,
        connect_timeout: float = 1.0,
        watch_silence: float = 10.0,
        max_message_bytes: int = 32 << 20,
        interceptors: Sequence[grpc.aio.UnaryUnaryClientInterceptor] = (),
    ) -> None:
        for endpoint in endpoints:
            host, _, port = endpoint.rpartition(":")
            if not (host and port.isdecimal() and 0 < int(port) < 65536):
                raise invalid("endpoints", f"{endpoint!r} is not host:port")
        if not endpoints:
            raise invalid("endpoints", "must name at least one host:port")
        self._prefix = encode(prefix)
        self._silence = watch_silence
        self._version_checked = False
        self._connection = EtcdConnection(
            endpoints,
            username=username,
            password=password,
            tls=tls,
            request_timeout=request_timeout,
            connect_timeout=connect_timeout,
            max_message_bytes=max_message_bytes,
            interceptors=interceptors,
        )

    async def get(self, key: str) -> Entry | None:
        reply = await self._range(pb.RangeRequest(key=self._prefix + encode(check_key(key))))
        return self._entry(reply.kvs[0]) if reply.kvs else None

    async def range(self, prefix: str, *, start_after: str = "", limit: int = 0, revision: int = 0) -> Page:
        check_range(start_after, limit, revision)
        start, end = self._bounds(prefix)
        if start_after:
            start = max(start, self._prefix + encode(start_after) + b"\0")
        for _ in range(3):
            try:
                return await self._pages(start, end, limit, revision)
            except CompactedError:
                if revision:
                    raise
        raise Unavailable("the store is compacted faster than this range can be read", reason="COMPACTED")

    async def txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> TxnResult:
        check_txn(compares, operations)
        request = pb.TxnRequest(
            compare=[c for compare in compares for c in self._compares(compare)],
            success=[self._operation(operation) for operation in operations],
        )
        call = self._connection.write if operations else self._connection.read
        reply = await call(lambda m, metadata, seconds: m.kv.Txn(request, metadata=metadata, timeout=seconds))
        return TxnResult(reply.succeeded, reply.header.revision)

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        check_revision(from_revision, "from_revision")
        start, end = self._bounds(prefix)
        watch = EtcdWatch(self._connection, start, end, from_revision, silence=self._silence)
        async with aclosing(watch.batches()) as batches:
            async for batch in batches:
                yield WatchBatch(batch.revision, tuple(map(self._event, batch.events)))

    async def grant_lease(self, ttl: float) -> int:
        request = pb.LeaseGrantRequest(TTL=math.ceil(check_ttl(ttl)))
        # Repeated like a read: a lease that was made and not heard of ends by itself.
        reply = await self._connection.read(
            lambda m, metadata, seconds: m.lease.LeaseGrant(request, metadata=metadata, timeout=seconds)
        )
        return reply.ID

    async def renew_lease(self, lease: int) -> float:
        async def attempt(member: Member, metadata: Metadata, seconds: float) -> int:
            call = member.lease.LeaseKeepAlive(metadata=metadata, timeout=seconds)
            try:
                with suppress(asyncio.InvalidStateError):  # the call has failed; reading it says why
                    await call.write(pb.LeaseKeepAliveRequest(ID=lease))
                reply = await call.read()
                if not isinstance(reply, pb.LeaseKeepAliveResponse):
                    raise Unavailable("the store did not answer the renewal of the lease")
                return reply.TTL
            except asyncio.CancelledError:  # whoever keeps a lease cannot wait long: try elsewhere next time
                self._connection.failed(member)
                raise
            finally:
                call.cancel()

        ttl = await self._connection.read(attempt)
        if ttl <= 0:
            raise NotFound(f"lease {lease} has ended", reason="LEASE_NOT_FOUND", metadata={"lease": str(lease)})
        return float(ttl)

    async def revoke_lease(self, lease: int) -> None:
        request = pb.LeaseRevokeRequest(ID=lease)
        try:  # a second one does no harm
            await self._connection.read(
                lambda m, metadata, seconds: m.lease.LeaseRevoke(request, metadata=metadata, timeout=seconds)
            )
        except NotFound:
            return

    async def compact(self, revision: int) -> None:
        request = pb.CompactionRequest(revision=check_revision(revision, "revision"))
        try:  # a second one does no harm
            await self._connection.read(
                lambda m, metadata, seconds: m.kv.Compact(request, metadata=metadata, timeout=seconds)
            )
        except OutOfRange as error:
            if error.reason != "COMPACTED":
                raise

    async def check(self) -> None:
        half = self._connection.timeout / 2
        if not self._version_checked:
            await self._check_version(half)
        await self._range(pb.RangeRequest(key=self._bounds("")[0], keys_only=True), timeout=half)

    async def close(self) -> None:
        await self._connection.close()

    async def _check_version(self, timeout: float) -> None:
        status = await self._connection.read(
            lambda m, metadata, seconds: m.maintenance.Status(pb.StatusRequest(), metadata=metadata, timeout=seconds),
            timeout=timeout,
        )
        parts = status.version.split(".")[:2]
        if not all(part.isdecimal() for part in parts) or tuple(map(int, parts)) < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise FailedPrecondition(f"etcd {wanted} or later is needed, not {status.version}", reason="STORE_TOO_OLD")
        self._version_checked = True

    async def _range(self, request: pb.RangeRequest, *, timeout: float | None = None) -> pb.RangeResponse:
        try:
            return await self._connection.read(
                lambda m, metadata, seconds: m.kv.Range(request, metadata=metadata, timeout=seconds), timeout=timeout
            )
        except OutOfRange as error:
            if error.reason == "COMPACTED":
                raise CompactedError(request.revision + 1) from error
            raise

    async def _pages(self, start: bytes, end: bytes, limit: int, revision: int) -> Page:
        """All pages at one revision, in smaller ones when the replies are too large."""
        entries: list[Entry] = []
        size = PAGE
        while True:
            count = min(size, limit - len(entries)) if limit else size
            request = pb.RangeRequest(key=start, range_end=end, limit=count, revision=revision)
            try:
                reply = await self._range(request)
            except ReplyTooLarge as error:
                if size == 1:
                    raise Exhausted(f"one entry is larger than this client accepts: {error}") from error
                size = max(1, min(size, count) // 4)
                continue
            revision = revision or reply.header.revision
            entries += map(self._entry, reply.kvs)
            if not reply.more or len(entries) == limit:
                return Page(tuple(entries), revision, reply.more)
            start = reply.kvs[-1].key + b"\0"

    def _bounds(self, prefix: str) -> tuple[bytes, bytes]:
        """All keys with `prefix` as a range: a zero byte stands for the first key, and for no end."""
        raw = self._prefix + encode(prefix)
        return raw or b"\0", prefix_end(raw) or b"\0"

    def _compares(self, compare: Compare) -> list[pb.Compare]:
        key = self._prefix + encode(compare.key)
        found = []
        if compare.mod_revision is not None:
            found.append(pb.Compare(key=key, target=pb.Compare.MOD, mod_revision=compare.mod_revision))
        if compare.create_revision is not None:
            found.append(pb.Compare(key=key, target=pb.Compare.CREATE, create_revision=compare.create_revision))
        return found

    def _operation(self, operation: Operation) -> pb.RequestOp:
        if isinstance(operation, Put):
            key = self._prefix + encode(operation.key)
            return pb.RequestOp(request_put=pb.PutRequest(key=key, value=operation.value, lease=operation.lease))
        if not operation.prefix:
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=self._prefix + encode(operation.key)))
        start, end = self._bounds(operation.key)
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=start, range_end=end))

    def _entry(self, kv: pb.KeyValue) -> Entry:
        key = decode(kv.key[len(self._prefix) :])
        return Entry(key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)

    def _event(self, event: pb.Event) -> Event:
        return Event(EventType.DELETE if event.type == pb.Event.DELETE else EventType.PUT, self._entry(event.kv))
