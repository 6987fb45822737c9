"""Settings of the gateway."""

from dataclasses import dataclass

from tidemill.config import setting
from tidemill.errors import invalid
from tidemill.rpc.config import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig(ServerConfig):
    """What the gateway can be told."""

    port: int = setting("HTTP port of everything: management API, documents, both inference protocols", 8080)
    ops_port: int = setting("HTTP port of /metrics, /healthz and /readyz; 0 = a free one", 9106)
    oip_port: int = setting("HTTP port of the Open Inference Protocol alone; 0 = a free one", 8000)
    tfs_port: int = setting("HTTP port of the TensorFlow Serving REST API alone; 0 = a free one", 8501)
    registry_address: str = setting("host:port of the registry", "127.0.0.1:7101", env="TIDEMILL_REGISTRY_ADDRESS")
    artifacts_address: str = setting(
        "host:port of the artifact service", "127.0.0.1:7102", env="TIDEMILL_ARTIFACTS_ADDRESS"
    )
    training_address: str = setting(
        "host:port of the training service", "127.0.0.1:7103", env="TIDEMILL_TRAINING_ADDRESS"
    )
    inference_address: str = setting(
        "host:port of the inference service", "127.0.0.1:8001", env="TIDEMILL_INFERENCE_ADDRESS"
    )
    inference_only: bool = setting(
        "serve the Open Inference Protocol on the first port and nothing else; call no other service than inference",
        False,
    )
    allowed_hosts: tuple[str, ...] = setting(
        "names that the Host header may carry besides this machine's own; with allow_insecure_bind empty = any", ()
    )
    timeout_seconds: float = setting("longest time of a request that does not stream, unless it asks for less", 30.0)
    max_body_mib: int = setting("largest body of an inference request, in MiB; uploads have no limit here", 64)
    max_buffered_mib: int = setting("largest sum of the bodies held in memory at a time, in MiB", 512)
    max_requests: int = setting("most requests in work at a time, streams included", 512)
    max_connections: int = setting("most connections of each port at a time", 1024)

    def __post_init__(self) -> None:
        ServerConfig.__post_init__(self)
        for field in ("oip_port", "tfs_port"):
            if not 0 <= getattr(self, field) <= 65535:
                raise invalid(field, "must be in [0, 65535]")
        if not 0 < self.timeout_seconds <= 3600:
            raise invalid("timeout_seconds", "must be in (0, 3600]")
        if not 1 <= self.max_body_mib <= 1024:
            raise invalid("max_body_mib", "must be in [1, 1024]")
        if self.max_buffered_mib < self.max_body_mib:
            raise invalid("max_buffered_mib", "must not be less than max_body_mib")
        for field in ("max_requests", "max_connections"):
            if getattr(self, field) < 1:
                raise invalid(field, "must be positive")
