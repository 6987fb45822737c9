"""The decision whether a call may go on; every server asks it before the call's handler.

Health, reflection and the HTTP port of operations (`/metrics`, `/healthz`, `/readyz`) do not ask: probes and scrapers
carry no credentials, and these show nothing of the data, only whether the process works, how much, and its public
contract. Who may reach them is decided by the address that a server listens on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tidemill.errors import PermissionDenied


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls."""

    name: str


class Authorizer(Protocol):
    """Decides about one call. It lies below both front doors: gRPC and REST share it."""

    def authorize(self, method: str, metadata: Mapping[str, str], peer: str) -> Principal:
        """The caller of `method` (`/package.Service/Method`), when it may go on.

        Args:
            method: full name of the RPC, exactly as registered.
            metadata: request headers, keys in lower case.
            peer: gRPC's name of the other end, for example `ipv4:127.0.0.1:5678`.

        Raises:
            Unauthenticated, PermissionDenied: when it may not.
        """


class LoopbackOnly:
    """Lets in whoever calls from this machine: the policy of the embedded mode."""

    def authorize(self, method: str, metadata: Mapping[str, str], peer: str) -> Principal:
        """The local caller.

        Raises:
            PermissionDenied: the call comes from another machine.
        """
        if peer.startswith(("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "unix:")):
            return Principal("local")
        raise PermissionDenied("calls from other machines are not allowed here", reason="NOT_LOOPBACK")


class AllowAll:
    """Lets everybody in: for networks that the operator has declared closed (`--allow-insecure-bind`)."""

    def authorize(self, method: str, metadata: Mapping[str, str], peer: str) -> Principal:
        """The anonymous caller."""
        return Principal("anonymous")
