"""One watch over a cluster of etcd: every event once and in order, over any number of broken streams."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

import grpc

from tidemill.api.compat.etcd.v3 import etcd_pb2 as pb
from tidemill.errors import Exhausted, PermissionDenied, TidemillError, Unauthenticated, Unavailable
from tidemill.kv.base import CompactedError
from tidemill.kv.etcd_connection import Backoff, EtcdConnection, Member, Metadata, closed
from tidemill.kv.etcd_status import ReplyTooLarge, details, is_token_refused, translate

_log = logging.getLogger(__name__)

MAX_SILENCE = 300.0
"""Longest silence, in seconds, that is borne after several streams in a row seemed stuck."""


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Events of whole revisions, and the revision that they reach."""

    revision: int
    events: Sequence[pb.Event]


class _Broken(Exception):
    """The stream has ended and a new one shall be made."""


class _Place:
    """How far a watch has come in the history of the store.

    A response's header tells the revision of the store, which in a catch-up is far ahead of the events (etcd sends at
    most 1000 revisions at once, all with the same header): the place moves by events, and by empty responses for this
    watcher. Answers to progress requests do not move it: until etcd 3.4.25 they could overtake events.
    """

    def __init__(self, from_revision: int) -> None:
        self.next = from_revision
        """First revision that may still bring something."""
        self._delivered = from_revision - 1
        self._held: list[pb.Event] = []

    def begin_stream(self) -> int:
        """The revision to start a stream at: one before the next, whose events will be dropped.

        A compaction at exactly the start could have swallowed a deletion (before etcd 3.4.36 and 3.5.18); one at an
        earlier revision cannot, and a later one is reported.
        """
        self._held.clear()
        return max(1, self.next - 1)

    def take(self, response: pb.WatchResponse, watch_id: int) -> RawBatch | None:
        """What of a response can be delivered: whole revisions, and only what was not delivered before."""
        if response.events:
            fresh = [event for event in response.events if event.kv.mod_revision > self._delivered]
            pending = self._held + fresh
            self._held = []
            if response.fragment and pending:  # its last revision may go on in the next part
                last = pending[-1].kv.mod_revision
                self._held = [event for event in pending if event.kv.mod_revision == last]
                pending = pending[: -len(self._held)]
            if not pending:
                return None
            self._delivered = pending[-1].kv.mod_revision
            self.next = max(self.next, self._delivered + 1)
            return RawBatch(self._delivered, pending)
        if not response.created and response.watch_id == watch_id and response.header.revision >= self.next:
            self.next = response.header.revision + 1
            return RawBatch(response.header.revision, ())
        return None


class EtcdWatch:
    """A watch on [key, end).

    Args:
        connection: the cluster.
        key, end: the range, in etcd's terms.
        from_revision: first revision of interest.
        silence: seconds without any message after which the server is asked for a sign of life, and after which the
            stream is given up when that does not come.
    """

    def __init__(
        self, connection: EtcdConnection, key: bytes, end: bytes, from_revision: int, *, silence: float
    ) -> None:
        self._connection = connection
        self._key = key
        self._end = end
        self._place = _Place(from_revision)
        self._least_silence = silence
        self._silence = silence
        self._backoff = Backoff()
        self._login_tried = False
        self._troubled = False
        self._asking: asyncio.Task[None] | None = None

    async def batches(self) -> AsyncGenerator[RawBatch, None]:
        """All changes, for ever; see `Kv.watch`."""
        first = True
        while True:
            try:
                async with aclosing(self._stream(check_history=not first)) as stream:
                    async for batch in stream:
                        yield batch
            except _Broken as broken:
                if not self._troubled:
                    _log.warning("watch at revision %d needs a new stream: %s", self._place.next, broken)
                self._troubled = True
            first = False
            await asyncio.sleep(self._backoff.next())

    async def _stream(self, *, check_history: bool) -> AsyncGenerator[RawBatch, None]:
        """Changes until the stream ends, which raises `_Broken`."""
        loop = asyncio.get_running_loop()
        try:
            member, metadata = await self._connection.session(loop.time() + self._connection.timeout)
            if check_history:
                await self._check_history()
        except Unavailable as error:
            if self._connection.closed:
                raise
            raise _Broken(error.message) from error
        try:
            call = member.watch.Watch(metadata=metadata)
        except grpc.aio.UsageError:
            raise closed() from None
        watch_id = 0
        try:
            await self._send(call, pb.WatchRequest(create_request=self._create_request()))
            while True:
                response = await self._receive(call, member, metadata)
                if response.canceled:
                    raise self._canceled(response, metadata)
                if response.created:
                    watch_id = response.watch_id
                    self._login_tried = False
                    if self._troubled:
                        _log.info("watch at revision %d goes on", self._place.next)
                    self._troubled = False
                    continue
                self._silence = self._least_silence
                self._backoff.reset()
                if batch := self._place.take(response, watch_id):
                    yield batch
        finally:
            call.cancel()
            if self._asking:
                self._asking.cancel()
                self._asking = None

    def _create_request(self) -> pb.WatchCreateRequest:
        return pb.WatchCreateRequest(
            key=self._key,
            range_end=self._end,
            start_revision=self._place.begin_stream(),
            progress_notify=True,
            fragment=True,
        )

    async def _check_history(self) -> None:
        """Refuse to go on when the store is younger than what was seen: it was wiped or restored from a backup."""
        request = pb.RangeRequest(key=self._key, range_end=self._end, limit=1, keys_only=True)
        reply = await self._connection.read(
            lambda member, metadata, seconds: member.kv.Range(request, metadata=metadata, timeout=seconds)
        )
        if reply.header.revision < self._place.next - 1:
            raise CompactedError(self._place.next)

    async def _send(self, call: "Call", request: pb.WatchRequest) -> None:
        # A stream that has ended says why when it is read.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(request)

    async def _receive(self, call: "Call", member: Member, metadata: Metadata) -> pb.WatchResponse:
        """The next response. Raises `_Broken` when a new stream may help, else what the caller of `watch` shall see."""
        read = asyncio.ensure_future(call.read())
        try:
            if not (await asyncio.wait({read}, timeout=self._silence))[0]:
                if self._asking is None or self._asking.done():
                    question = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
                    self._asking = asyncio.create_task(self._send(call, question))
                if not (await asyncio.wait({read}, timeout=self._silence))[0]:
                    self._connection.failed(member)
                    silence, self._silence = self._silence, min(2 * self._silence, MAX_SILENCE)
                    raise _Broken(f"no sign of life from {member.address} for {2 * silence:.1f} s")
            response = read.result()
        except grpc.aio.AioRpcError as error:
            self._connection.failed(member)
            raise self._failure(error, metadata) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            raise (closed() if self._connection.closed else _Broken("canceled")) from None
        finally:
            read.cancel()
        if not isinstance(response, pb.WatchResponse):
            raise _Broken(f"{member.address} has ended the stream")
        return response

    def _failure(self, error: grpc.aio.AioRpcError, metadata: Metadata) -> Exception:
        if self._connection.closed:
            return closed()
        if self._token_may_help(details(error), metadata):
            return _Broken(details(error))
        problem = translate(error)
        if isinstance(problem, ReplyTooLarge):
            return Exhausted(f"one event is larger than this client accepts: {problem}", reason="REPLY_TOO_LARGE")
        return _Broken(details(error)) if isinstance(problem, Unavailable) else problem

    def _canceled(self, response: pb.WatchResponse, metadata: Metadata) -> Exception:
        """Why the server has ended the watch."""
        reason = response.cancel_reason
        if response.compact_revision or "compacted" in reason:
            return CompactedError(response.compact_revision or self._place.next)
        if self._token_may_help(reason, metadata):
            return _Broken(reason)
        return _refusal(reason)

    def _token_may_help(self, text: str, metadata: Metadata) -> bool:
        """Whether a refusal may be due to a token that has expired: true once between two successes.

        Some versions of etcd say "permission denied" for that, too.
        """
        if self._login_tried or not (is_token_refused(text) or "permission denied" in text):
            return False
        self._login_tried = True
        return self._connection.renew_token("invalid auth token", metadata)


def _refusal(reason: str) -> TidemillError:
    if "permission denied" in reason:
        return PermissionDenied(f"the store refused the watch: {reason}", reason="STORE_PERMISSION_DENIED")
    if is_token_refused(reason):
        return Unauthenticated(f"the store does not accept the user: {reason}", reason="STORE_LOGIN_REFUSED")
    return Unavailable(f"the store ended the watch: {reason or 'no reason given'}", reason="WATCH_CANCELED")


Call = grpc.aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse]
