"""Keeps one instance of a service announced at the registry."""

import logging
from collections.abc import Callable, Mapping

from tidemill import errors
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.clients.backoff import Backoff
from tidemill.clients.registry import RegistryClient
from tidemill.clock import Clock, SystemClock
from tidemill.telemetry.startup import StartUp

LOG = logging.getLogger(__name__)
TTL = 15.0
"""Seconds after which an instance that says nothing more counts as gone."""
WITHDRAW_TIMEOUT = 2.0
"""Seconds that a stopping process waits for the registry; otherwise its lease ends by itself."""
_FINAL = (errors.Invalid, errors.PermissionDenied, errors.Unauthenticated, errors.Unimplemented)


class Registration:
    """An announcement that lasts as long as `run` runs; give `run` to the App as a task and `withdraw` as a stopper.

    Args:
        registry: where to announce; stays the caller's to close.
        service: name of the service, without dots.
        instance_id: distinguishes its instances; a process that starts again uses the same one.
        address: `host:port` where it answers, or what tells it once the port is open.
        labels: what others should know of it.
        ttl: seconds after which it counts as gone when it cannot renew, 2 to 3600.
        clock: times the renewals.
    """

    def __init__(
        self,
        registry: RegistryClient,
        *,
        service: str,
        instance_id: str,
        address: str | Callable[[], str],
        labels: Mapping[str, str] | None = None,
        ttl: float = TTL,
        clock: Clock | None = None,
    ) -> None:
        self._registry = registry
        self._service = service
        self._instance_id = instance_id
        self._address = address
        self._labels = dict(labels or {})
        self._ttl = ttl
        self._clock = clock or SystemClock()
        self._current: pb.Instance | None = None
        self._withdrawn = False

    @property
    def registered(self) -> bool:
        """Whether the last word from the registry was that this instance is announced."""
        return self._current is not None

    async def run(self) -> None:
        """Register, renew every third of the time to live, and register again when it was lost, for ever.

        A registry that is away is waited for. When another process registers under the same name, this one leaves the
        name to it and takes it again only when it is free.

        Raises:
            Invalid, PermissionDenied, Unauthenticated, Unimplemented: the registry will never accept this instance.
        """
        backoff = Backoff(0.1, max(0.1, min(2.0, self._ttl / 3)))
        start_up = StartUp(self._clock)
        while True:
            try:
                if not self._withdrawn:
                    await self._announce()
                backoff.reset()
                pause = self._ttl / 3
            except _FINAL:
                raise
            except errors.TidemillError as error:
                LOG.log(
                    start_up.level,
                    "cannot announce this instance yet: %s",
                    error.message,
                    extra={"reason": error.reason},
                )
                pause = backoff.next()
            await self._clock.sleep(pause)

    async def withdraw(self) -> None:
        """End the announcement at once; if the registry is away it ends by itself. `run` does not renew it any more."""
        self._withdrawn = True
        current, self._current = self._current, None
        if current is None:
            return
        try:
            await self._registry.deregister_instance(current.name, etag=current.etag, timeout=WITHDRAW_TIMEOUT)
        except errors.TidemillError as error:
            LOG.info("this instance's announcement is left to end by itself: %s", error.message)

    async def _announce(self) -> None:
        if self._current is not None:
            try:
                await self._registry.renew_instance(self._current.name, etag=self._current.etag, timeout=self._ttl / 3)
                return
            except errors.NotFound:
                LOG.warning("this instance's announcement had ended: announcing again")
                self._current = None
            except errors.Stale:
                LOG.warning("another process is announced as %s", self._current.name)
                return
        await self._register()

    async def _register(self) -> None:
        address = self._address if isinstance(self._address, str) else self._address()
        registered = await self._registry.register_instance(
            self._service,
            self._instance_id,
            address,
            labels=self._labels,
            ttl=self._ttl,
            timeout=max(1.0, self._ttl / 3),
        )
        self._current = registered
        LOG.info("announced", extra={"instance": registered.name, "address": address})
        if self._withdrawn:  # while the call was on its way
            await self.withdraw()
