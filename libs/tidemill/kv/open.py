"""A key-value store from its URL."""

from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote, urlsplit

import grpc

from tidemill.clock import Clock
from tidemill.errors import Invalid, invalid
from tidemill.kv.base import Kv
from tidemill.kv.etcd import EtcdKv
from tidemill.kv.etcd_connection import Tls
from tidemill.kv.sqlite import SqliteKv


async def open_kv(
    url: str,
    *,
    clock: Clock | None = None,
    username: str = "",
    password: str = "",
    tls: Tls | None = None,
    interceptors: Sequence[grpc.aio.UnaryUnaryClientInterceptor] = (),
) -> Kv:
    """Open the store that `url` names; an etcd need not be up yet.

    | URL | store |
    |---|---|
    | `sqlite:///var/lib/tidemill/registry.db` | the file with this absolute path |
    | `sqlite:registry.db` | the file with this relative path |
    | `sqlite::memory:` | memory |
    | `etcd://host:port,host:port?prefix=tidemill/` | a cluster; all keys get the prefix |

    Args:
        url: see above.
        clock: what the leases of an embedded store expire by.
        username, password, tls: for etcd; they have no place in a URL, which ends up in logs.
        interceptors: for the calls to etcd, such as tracing.

    Raises:
        errors.Invalid: the URL is none of these, or has options that its store does not know.
        errors.FailedPrecondition, errors.Unavailable: see `SqliteKv.open`.
    """
    if url.startswith("sqlite:"):
        if username or password or tls or interceptors:
            raise invalid("kv", "user, password, TLS and interceptors are for etcd, not for sqlite")
        return await SqliteKv.open(_sqlite_path(url), clock=clock)
    if url.startswith("etcd:"):
        endpoints, prefix = _etcd_parts(url)
        return EtcdKv(
            endpoints, username=username, password=password, tls=tls, prefix=prefix, interceptors=interceptors
        )
    raise invalid("kv", "must be sqlite:///file, sqlite::memory: or etcd://host:port", reason="INVALID_URL")


def _sqlite_path(url: str) -> str:
    if url == "sqlite::memory:":
        return ":memory:"
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment or not parts.path.strip("/"):
        raise invalid(
            "kv", "must be sqlite:///absolute/file, sqlite:relative/file or sqlite::memory:", reason="INVALID_URL"
        )
    return unquote(parts.path)


def _etcd_parts(url: str) -> tuple[list[str], str]:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise Invalid("kv: user and password do not belong into the URL", reason="INVALID_URL")
    if parts.path.strip("/") or parts.fragment:
        raise invalid("kv", "must be etcd://host:port[,host:port][?prefix=...]", reason="INVALID_URL")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = options.pop("prefix", "")
    if options:
        raise invalid("kv", f"unknown options: {', '.join(sorted(options))}", reason="INVALID_URL")
    return parts.netloc.split(","), prefix
