"""The settings that every service has."""

import ipaddress
from dataclasses import dataclass

from tidemill.config import setting
from tidemill.errors import invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of a service process; each service inherits them and sets its own ports."""

    host: str = setting("address to listen on", "127.0.0.1", env="TIDEMILL_HOST")
    port: int = setting("gRPC port; 0 = a free one", 0)
    ops_port: int = setting("HTTP port of /metrics, /healthz and /readyz; 0 = a free one", 0)
    advertise: str = setting("host:port that others reach this process at; empty = host and port", "")
    allow_insecure_bind: bool = setting(
        "listen on other addresses than loopback, without TLS, and let everybody in: closed networks only",
        False,
        env="TIDEMILL_ALLOW_INSECURE_BIND",
    )
    drain_seconds: float = setting(
        "longest time to finish calls in work after SIGTERM", 10.0, env="TIDEMILL_DRAIN_SECONDS"
    )
    linger_seconds: float = setting(
        "time after SIGTERM for which calls are still taken, while health says NOT_SERVING: longer than balancers need "
        "to see that",
        0.0,
        env="TIDEMILL_LINGER_SECONDS",
    )
    traces: str = setting("where spans go: none, file:<directory> or otlp:<host:port>", "none", env="TIDEMILL_TRACES")
    trace_sample: float = setting("part of new traces that are kept, 0 to 1", 1.0, env="TIDEMILL_TRACE_SAMPLE")
    log_level: str = setting("lowest level logged", "INFO", env="TIDEMILL_LOG_LEVEL")
    log_style: str = setting("json or text", "json", env="TIDEMILL_LOG_STYLE")
    announce_file: str = setting("file to write the chosen ports to, as JSON, once ready; empty = off", "")

    def __post_init__(self) -> None:
        for field in ("port", "ops_port"):
            if not 0 <= getattr(self, field) <= 65535:
                raise invalid(field, "must be in [0, 65535]")
        for field in ("linger_seconds", "drain_seconds"):
            if not 0 <= getattr(self, field) <= 3600:
                raise invalid(field, "must be in [0, 3600]")
        if not 0 <= self.trace_sample <= 1:
            raise invalid("trace_sample", "must be in [0, 1]")
        if self.log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise invalid("log_level", "must be DEBUG, INFO, WARNING or ERROR")
        if self.log_style not in ("json", "text"):
            raise invalid("log_style", "must be json or text")
        if not self.allow_insecure_bind and not is_loopback(self.host):
            raise invalid("host", f"{self.host} is not loopback: set allow_insecure_bind if the network is closed")


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
