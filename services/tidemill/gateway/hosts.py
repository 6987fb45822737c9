"""Which names a request may address this server by: a page that rebinds its own name to loopback is turned away."""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.requests import Request

from tidemill.gateway.problems import Refused

_OWN = frozenset({"localhost", "127.0.0.1", "::1"})


class Hosts:
    """Checks the `Host` and `Origin` headers.

    Args:
        names: names accepted besides those of this machine.
        anything: accept every name.
    """

    def __init__(self, names: Iterable[str] = (), *, anything: bool = False) -> None:
        self._names = _OWN | {name.lower() for name in names}
        self._anything = anything

    def check(self, request: Request) -> None:
        """Return when the request is addressed to this server, and no page of another site made it.

        Raises:
            Refused: with status 421 for a foreign `Host`, 403 for a foreign `Origin`.
        """
        host = request.headers.get("host", "")
        if not self._anything and not self._known(host):
            raise Refused(421, "this server is not known by the name in the Host header", reason="UNKNOWN_HOST")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "pages of other sites may not call this server", reason="CROSS_ORIGIN")

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False
