"""Settings of the registry service."""

from dataclasses import dataclass
from pathlib import Path

from tidemill.config import setting
from tidemill.errors import invalid
from tidemill.kv.etcd_connection import Tls
from tidemill.rpc.config import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig(ServerConfig):
    """Settings of the registry service."""

    port: int = setting("gRPC port; 0 = a free one", 7101)
    ops_port: int = setting("HTTP port of /metrics, /healthz and /readyz; 0 = a free one", 9101)
    store: str = setting(
        "where everything is kept: sqlite:FILE, sqlite:///ABSOLUTE/FILE, sqlite::memory: or etcd://HOST:PORT,HOST:PORT",
        "sqlite:tidemill-data/registry.db",
    )
    store_user: str = setting("user of etcd; empty = no login", "", secret=True)
    store_password: str = setting("password of etcd", "", secret=True)
    store_tls: bool = setting("encrypt the way to etcd", False)
    store_ca: str = setting("PEM file of who signed etcd's certificates; empty = whom the system trusts", "")
    store_cert: str = setting("PEM file of the own certificate for etcd", "")
    store_key: str = setting("PEM file of the key of the own certificate", "")
    event_retention: int = setting("newest events of the log that are kept at least", 100_000)
    heartbeat: float = setting("seconds between signs of life on a watch, at most 30", 15.0)

    def __post_init__(self) -> None:
        ServerConfig.__post_init__(self)
        if self.event_retention < 1:
            raise invalid("event_retention", "must be at least 1")
        if not 0 < self.heartbeat <= 30:
            raise invalid("heartbeat", "must be above 0 and at most 30 seconds: clients give up after a minute")
        if bool(self.store_user) != bool(self.store_password):
            raise invalid("store_user", "and store_password belong together")
        if bool(self.store_cert) != bool(self.store_key):
            raise invalid("store_cert", "and store_key belong together")
        for field in ("store_ca", "store_cert", "store_key"):
            path = getattr(self, field)
            if path and not self.store_tls:
                raise invalid(field, "is of use only with store_tls")
            if path and not Path(path).is_file():
                raise invalid(field, f"{path} is not a file")

    @property
    def tls(self) -> Tls | None:
        """How to encrypt the way to etcd; None for plain text."""
        if not self.store_tls:
            return None
        ca, cert, key = (Path(path) if path else None for path in (self.store_ca, self.store_cert, self.store_key))
        return Tls(ca=ca, cert=cert, key=key)
