"""Settings of the training service."""

from dataclasses import dataclass
from pathlib import Path

from tidemill.config import setting
from tidemill.errors import invalid
from tidemill.kv.etcd_connection import Tls
from tidemill.rpc.config import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig(ServerConfig):
    """Settings of the training service."""

    port: int = setting("gRPC port; 0 = a free one", 7103)
    ops_port: int = setting("HTTP port of /metrics, /healthz and /readyz; 0 = a free one", 9103)
    data: str = setting("directory of the logs of jobs and of their workers' files", "tidemill-data/training")
    store: str = setting(
        "where jobs are kept: sqlite:FILE, sqlite:///ABSOLUTE/FILE, sqlite::memory: or etcd://HOST:PORT,HOST:PORT",
        "sqlite:tidemill-data/training.db",
    )
    store_user: str = setting("user of etcd; empty = no login", "", secret=True)
    store_password: str = setting("password of etcd", "", secret=True)
    store_ca: str = setting("PEM file of who signed etcd's certificates; empty = no TLS", "")
    store_cert: str = setting("PEM file of the own certificate for etcd", "")
    store_key: str = setting("PEM file of the key of the own certificate", "")
    registry_address: str = setting("host:port of the registry", "127.0.0.1:7101", env="TIDEMILL_REGISTRY_ADDRESS")
    artifacts_address: str = setting(
        "host:port of the artifact service", "127.0.0.1:7102", env="TIDEMILL_ARTIFACTS_ADDRESS"
    )
    max_running: int = setting("jobs at work at once; others wait", 1)
    max_jobs: int = setting("jobs that may wait or be at work; more are refused", 1000)
    shard_wait_seconds: float = setting("longest wait of a job for enough parameter shards", 300.0)
    lease_seconds: float = setting("seconds after which another training service takes over from a silent one", 5.0)
    launcher: str = setting("what starts workers: local, or ray for the machines of a Ray cluster", "local")
    launcher_options: tuple[str, ...] = setting("what that launcher alone is told, as name=value; see the README", ())
    worker_command: tuple[str, ...] = setting("program and arguments of a worker; empty = this Python's", ())
    worker_fork: bool = setting("fork workers from a process that has imported what they need (local launcher)", True)
    worker_threads: int = setting("threads that a worker computes with", 1)
    worker_start_seconds: float = setting("longest silence of a worker after its start", 120.0)
    worker_silence_seconds: float = setting("longest silence of a worker later on", 30.0)
    worker_abandoned_seconds: float = setting(
        "seconds that workers go on after this service has died, until another one looks after them", 120.0
    )
    worker_grace_seconds: float = setting("seconds between asking a worker to end and killing it", 5.0)
    log_lines: int = setting("lines of workers that are kept of a job", 200_000)
    log_bytes: int = setting("bytes of lines that are kept of a job", 64 << 20)

    def __post_init__(self) -> None:
        ServerConfig.__post_init__(self)
        for field in ("max_running", "max_jobs", "worker_threads", "log_lines", "log_bytes"):
            if getattr(self, field) < 1:
                raise invalid(field, "must be at least 1")
        for field in ("worker_start_seconds", "worker_silence_seconds", "worker_abandoned_seconds"):
            if not getattr(self, field) > 0:
                raise invalid(field, "must be above 0 seconds")
        if not self.shard_wait_seconds >= 0:
            raise invalid("shard_wait_seconds", "must not be negative")
        if not 0 <= self.worker_grace_seconds <= 60:
            raise invalid("worker_grace_seconds", "must be in [0, 60]")
        if not 1 <= self.lease_seconds <= 3600:
            raise invalid("lease_seconds", "must be in [1, 3600]")
        self._check_store()

    def _check_store(self) -> None:
        if bool(self.store_user) != bool(self.store_password):
            raise invalid("store_user", "and store_password belong together")
        if bool(self.store_cert) != bool(self.store_key):
            raise invalid("store_cert", "and store_key belong together")
        if self.store_cert and not self.store_ca:
            raise invalid("store_cert", "needs store_ca")
        for field in ("store_ca", "store_cert", "store_key"):
            path = getattr(self, field)
            if path and not Path(path).is_file():
                raise invalid(field, f"{path} is not a file")

    @property
    def tls(self) -> Tls | None:
        """How to encrypt the way to etcd; None for plain text."""
        if not self.store_ca:
            return None
        cert, key = (Path(path) if path else None for path in (self.store_cert, self.store_key))
        return Tls(ca=Path(self.store_ca), cert=cert, key=key)
