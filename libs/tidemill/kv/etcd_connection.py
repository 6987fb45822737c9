"""Connections to the members of an etcd cluster: fail-over, tokens, deadlines, and who may be asked twice."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import grpc

from tidemill.api.compat.etcd.v3 import etcd_pb2 as pb
from tidemill.api.compat.etcd.v3 import etcd_pb2_grpc as rpc
from tidemill.errors import TidemillError, Unavailable
from tidemill.kv.etcd_status import details, is_token_refused, translate

T = TypeVar("T")
Metadata: TypeAlias = tuple[tuple[str, str], ...]

_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),  # etcd refuses more than one ping in 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_send_message_length", 4 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files for an encrypted connection, in PEM."""

    ca: Path | None = None
    """Who signed the servers' certificates; None trusts the system's authorities."""
    cert: Path | None = None
    """The client's own certificate, with `key`, when the servers want one."""
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """The files' content, as gRPC wants it."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes() if self.ca else None,
            private_key=self.key.read_bytes() if self.key else None,
            certificate_chain=self.cert.read_bytes() if self.cert else None,
        )


_BARE: Metadata = (("hasleader", "true"),)


class Backoff:
    """Delays that double, up to a limit, and of which up to a half is left to chance."""

    def __init__(self, first: float = 0.05, limit: float = 2.0) -> None:
        self._first = first
        self._limit = limit
        self._tries = 0

    def reset(self) -> None:
        """Begin again with the first delay."""
        self._tries = 0

    def next(self) -> float:
        """The next delay in seconds."""
        delay: float = min(self._limit, self._first * 2**self._tries)
        self._tries = min(self._tries + 1, 16)
        return delay * random.uniform(0.5, 1.0)


class Member:
    """One endpoint: its channel and stubs."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.kv = rpc.KVStub(channel)
        self.watch = rpc.WatchStub(channel)
        self.lease = rpc.LeaseStub(channel)
        self.auth = rpc.AuthStub(channel)
        self.maintenance = rpc.MaintenanceStub(channel)

    async def connect(self, seconds: float, *, patient: bool) -> bool:
        """Whether a connection stands within `seconds`; unless `patient`, the first failure decides."""
        ready, failed = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE
        try:
            async with asyncio.timeout(seconds):
                while (state := self.channel.get_state(try_to_connect=True)) is not ready:
                    if state is grpc.ChannelConnectivity.SHUTDOWN or (state is failed and not patient):
                        return False
                    await self.channel.wait_for_state_change(state)
        except (TimeoutError, grpc.aio.UsageError):
            return False
        return True


Attempt: TypeAlias = Callable[[Member, Metadata, float], Awaitable[T]]
"""One try of a call: where, with which metadata, in how many seconds at most."""


class EtcdConnection:
    """The members of one cluster.

    Args:
        endpoints: `host:port` of members; one is used until it fails, then the next.
        username, password: whom to log in as; "" for nobody.
        tls: how to encrypt; None for plain text.
        request_timeout: seconds that a call may take in all.
        connect_timeout: seconds to wait for a connection to one of several members.
        max_message_bytes: largest reply accepted.
        interceptors: for the unary calls, such as tracing.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        username: str,
        password: str,
        tls: Tls | None,
        request_timeout: float,
        connect_timeout: float,
        max_message_bytes: int,
        interceptors: Sequence[grpc.aio.ClientInterceptor],
    ) -> None:
        self.timeout = request_timeout
        self.closed = False
        self._addresses = list(endpoints)
        self._username = username
        self._password = password
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._options = [*_OPTIONS, ("grpc.max_receive_message_length", max_message_bytes)]
        self._interceptors = list(interceptors)
        self._members: list[Member] = []
        self._current = 0
        self._token = ""
        self._login = asyncio.Lock()

    async def read(self, attempt: Attempt[T], *, timeout: float | None = None) -> T:
        """Make a call that may be made twice, again and again until it succeeds or its time is over.

        Raises:
            Unavailable: no member answered in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (timeout or self.timeout)
        backoff = Backoff()
        renewed = False
        while True:
            member, metadata = await self.session(deadline)
            seconds = min(max(0.001, deadline - loop.time()), max(1.0, self.timeout / 2))
            try:
                return await self._guarded(partial(attempt, member, metadata, seconds))
            except grpc.aio.AioRpcError as error:
                if not renewed and self.renew_token(details(error), metadata):
                    renewed = True
                    continue
                problem = translate(error)
                if not isinstance(problem, Unavailable):
                    raise problem from error
                self.failed(member)
                pause = backoff.next()
                if loop.time() + pause >= deadline:
                    raise problem from error
                await asyncio.sleep(pause)

    async def write(self, attempt: Attempt[T]) -> T:
        """Make a call that must not be made twice. It is sent once, over a connection that stands.

        Only a request that the server refused for its token is sent again: that one was not applied.

        Raises:
            Unavailable: reason OUTCOME_UNKNOWN, when it was sent and the answer did not come; any other reason: it was
                not applied.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        renewed = False
        while True:
            member, metadata = await self.session(deadline)
            try:
                seconds = max(0.001, deadline - loop.time())
                return await self._guarded(partial(attempt, member, metadata, seconds), write=True)
            except grpc.aio.AioRpcError as error:
                if not renewed and self.renew_token(details(error), metadata):
                    renewed = True
                    continue
                problem = translate(error, write=True)
                if isinstance(problem, Unavailable):
                    self.failed(member)
                raise problem from error

    async def session(self, deadline: float) -> tuple[Member, Metadata]:
        """A connected member, and the metadata for calls to it.

        Raises:
            Unavailable: no member could be reached before `deadline` (of the loop's clock).
            Unauthenticated: the user is not accepted.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        while True:
            member = await self.ready(deadline)
            try:
                return member, await self._metadata(member, max(0.001, deadline - loop.time()))
            except grpc.aio.AioRpcError as error:
                problem = translate(error)
                pause = backoff.next()
                if not isinstance(problem, Unavailable) or loop.time() + pause >= deadline:
                    raise problem from error
                self.failed(member)
                await asyncio.sleep(pause)

    async def ready(self, deadline: float) -> Member:
        """A connected member, the current one if possible.

        Raises:
            Unavailable: there is none before `deadline` (of the loop's clock).
        """
        loop = asyncio.get_running_loop()
        several = len(self._addresses) > 1
        while True:
            for _ in self._addresses:
                member = self._member()
                left = deadline - loop.time()
                if await member.connect(min(left, self._connect_timeout) if several else left, patient=not several):
                    return member
                self.failed(member)
                if self.closed:
                    raise closed()
            if loop.time() + 0.1 >= deadline:
                raise Unavailable(f"cannot connect to {' or '.join(self._addresses)}")
            await asyncio.sleep(0.1)

    def failed(self, member: Member) -> None:
        """Turn to the next member, unless somebody has already done so."""
        if self._members and self._members[self._current] is member:
            self._current = (self._current + 1) % len(self._members)

    def renew_token(self, text: str, metadata: Metadata) -> bool:
        """Whether a call with this metadata was refused, with this text, for its token; the next one gets another."""
        if not self._username or not is_token_refused(text):
            return False
        if dict(metadata).get("token", "") == self._token:
            self._token = ""
        return True

    async def close(self) -> None:
        """End all calls and connections."""
        self.closed = True
        for member in self._members:
            await member.channel.close()

    def _member(self) -> Member:
        if self.closed:
            raise closed()
        if not self._members:
            credentials = self._tls.credentials() if self._tls else None
            for address in self._addresses:
                if credentials:
                    channel = grpc.aio.secure_channel(address, credentials, self._options, None, self._interceptors)
                else:
                    channel = grpc.aio.insecure_channel(address, self._options, None, self._interceptors)
                self._members.append(Member(address, channel))
        return self._members[self._current]

    async def _metadata(self, member: Member, timeout: float) -> Metadata:
        """What goes with every call: that a member cut off from the others shall refuse it, and the token."""
        if not self._username:
            return _BARE
        async with self._login:
            if not self._token:
                request = pb.AuthenticateRequest(name=self._username, password=self._password)
                try:
                    reply = await self._guarded(partial(member.auth.Authenticate, request, timeout=timeout))
                except grpc.aio.AioRpcError as error:
                    if "authentication is not enabled" not in details(error):
                        raise
                    return _BARE
                self._token = reply.token
            return (*_BARE, ("token", self._token))

    async def _guarded(self, call: Callable[[], Awaitable[T]], *, write: bool = False) -> T:
        """Await a call; `close` meanwhile is an error of the store, not the caller's cancellation."""
        try:
            return await call()
        except (asyncio.CancelledError, grpc.aio.UsageError):
            task = asyncio.current_task()
            if not self.closed or (task and task.cancelling()):
                raise
            raise closed(write=write) from None


def closed(*, write: bool = False) -> TidemillError:
    """The error of a call to a closed store."""
    return Unavailable("the store is closed", reason="OUTCOME_UNKNOWN" if write else "CLOSED")
