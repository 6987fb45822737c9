"""Settings of one shard of the parameter server."""

from dataclasses import dataclass

from tidemill.config import setting
from tidemill.errors import invalid
from tidemill.rpc.config import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(ServerConfig):
    """Settings of one shard of the parameter server."""

    port: int = setting("gRPC port; 0 = a free one", 7104)
    ops_port: int = setting("HTTP port of /metrics, /healthz and /readyz; 0 = a free one", 9104)
    shard: int = setting("number of this process among the shards, for its instance name and label", 0)
    registry_address: str = setting(
        "host:port of the registry to announce this process to; empty = do not",
        "127.0.0.1:7101",
        env="TIDEMILL_REGISTRY_ADDRESS",
    )
    instance_ttl: float = setting("seconds after which a killed shard counts as gone", 10.0)
    max_bytes: int = setting(
        "most bytes of all groups together: versions, optimizer state and a round of gradients", 4 << 30
    )
    max_groups: int = setting("most groups", 64)
    threads: int = setting(
        "threads for pulls and short calls; pushes and loads have as many again, less reserved_threads", 96
    )
    waiting_pulls: int = setting("most pulls that wait for a version at a time; each holds a thread", 64)
    reserved_threads: int = setting(
        "threads that neither pulls nor pushes and loads take, so that other calls go on", 16
    )
    silence_seconds: float = setting("longest time that a push or load may send nothing", 30.0)
    shared_memory: bool = setting(
        "whether workers on this host share memory with this shard, in place of messages", True
    )
    data: str = setting("data directory, for groups that outlive this process; empty = there are no such groups", "")
    log_bytes: int = setting(
        "bytes of steps in the log of a group after which its whole state is written anew; at least 4 times its size",
        256 << 20,
    )
    optimizer_threads: int = setting("threads of PyTorch for one operation; more processes scale better", 1)
    lanes: int = setting("blocks that a step works on at the same time; 0 = as many as there are cores, at most 4", 0)

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is a new class, which the zero-argument form does not know.
        ServerConfig.__post_init__(self)
        for field in ("max_bytes", "max_groups", "log_bytes", "waiting_pulls", "reserved_threads", "optimizer_threads"):
            if getattr(self, field) < 1:
                raise invalid(field, "must be at least 1")
        if not 0 <= self.lanes <= 64:
            raise invalid("lanes", "must be in [0, 64]")
        if not 0 < self.silence_seconds <= 3600:
            raise invalid("silence_seconds", "must be above 0 and at most 3600")
        if self.shard < 0:
            raise invalid("shard", "must not be negative")
        if not 2 <= self.instance_ttl <= 3600:
            raise invalid("instance_ttl", "must be in [2, 3600]")
        if self.threads <= self.waiting_pulls + self.reserved_threads:
            raise invalid("threads", "must be more than waiting_pulls and reserved_threads together")
