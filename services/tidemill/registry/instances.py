"""Live instances: each lives by a lease of its own, so that it vanishes when nobody renews it."""

import logging
import secrets
from dataclasses import replace

from tidemill import names
from tidemill.clock import Clock
from tidemill.errors import Exhausted, NotFound, Stale, TidemillError, Unavailable
from tidemill.kv.base import Compare, Entry, Kv, Put
from tidemill.registry import keys
from tidemill.registry.checks import check_instance, check_service
from tidemill.registry.commit import commit
from tidemill.registry.models import Instance
from tidemill.registry.records import decode, encode

LOG = logging.getLogger(__name__)
MAX_INSTANCES = 1000
ATTEMPTS = 10
"""How often a registration is tried anew when others register under the same name meanwhile."""


class Instances:
    """Registers, renews, withdraws and lists instances."""

    def __init__(self, kv: Kv, clock: Clock) -> None:
        self._kv = kv
        self._clock = clock

    async def register(self, instance: Instance) -> Instance:
        """Announce an instance in place of an earlier one of the same name.

        Raises:
            Invalid: a field is wrong.
            Exhausted: reason TOO_MANY_INSTANCES.
            Unavailable: the store is, as for the others; or others keep registering under the same name.
        """
        check_instance(instance)
        key = keys.instance(instance.identifier)
        lease = await self._kv.grant_lease(instance.ttl)
        created = replace(instance, create_time=int(self._clock.now() * 1e6), nonce=secrets.token_hex(8))
        put = Put(key, encode(created), lease)
        for _ in range(ATTEMPTS):
            old = await self._kv.get(key)
            if old is None:
                await self._check_room()
            guard = Compare(key, mod_revision=old.mod_revision if old else 0)
            try:
                registered = await commit(self._kv, guard, [put], put)
            except NotFound as error:
                raise Unavailable("the store took longer than the instance lives", retry_after=1.0) from error
            if registered:
                await self._end(old)
                return created
        raise Unavailable(f"others keep registering as {instance.name}", reason="CONTENTION", retry_after=1.0)

    async def renew(self, identifier: str, etag: str) -> Instance:
        """Start an instance's time again.

        Raises:
            NotFound: it has ended.
            Stale: reason INSTANCE_REPLACED, when its etag is not `etag`.
        """
        entry, instance = await self._find(identifier, etag)
        try:
            await self._kv.renew_lease(entry.lease)
        except NotFound as error:
            raise _not_found(identifier) from error
        return instance

    async def deregister(self, identifier: str, etag: str) -> None:
        """Withdraw an instance at once; raises as `renew` does."""
        entry, _ = await self._find(identifier, etag)
        await self._kv.revoke_lease(entry.lease)  # deletes this registration and not what may have replaced it

    async def list(self, service: str) -> list[Instance]:
        """Live instances of a service, or for "" of all, in order of name."""
        if service:
            check_service(service, "service")
        page = await self._kv.range(keys.instances(service))
        return [decode(Instance, entry.value) for entry in page.entries]

    async def _find(self, identifier: str, etag: str) -> tuple[Entry, Instance]:
        names.check(identifier)
        entry = await self._kv.get(keys.instance(identifier))
        if entry is None:
            raise _not_found(identifier)
        instance = decode(Instance, entry.value)
        if etag not in ("", etag_of(instance)):
            raise Stale(
                f"{instance.name} was registered anew by another process",
                reason="INSTANCE_REPLACED",
                metadata={"instance": identifier, "address": instance.address},
            )
        return entry, instance

    async def _check_room(self) -> None:
        page = await self._kv.range(keys.INSTANCES, limit=MAX_INSTANCES)
        if len(page.entries) >= MAX_INSTANCES:
            raise Exhausted(f"there are {MAX_INSTANCES} instances already", reason="TOO_MANY_INSTANCES")

    async def _end(self, replaced: Entry | None) -> None:
        """End the lease of a registration that was replaced; if that fails it ends by itself."""
        if replaced is None or not replaced.lease:
            return
        try:
            await self._kv.revoke_lease(replaced.lease)
        except TidemillError as error:
            LOG.warning("the lease of a replaced instance is left to end by itself: %s", error.message)


def etag_of(instance: Instance) -> str:
    """The etag of a registration."""
    return f'"{instance.nonce}"'


def _not_found(identifier: str) -> NotFound:
    return NotFound(
        f"instances/{identifier} is not registered", reason="INSTANCE_NOT_FOUND", metadata={"instance": identifier}
    )
