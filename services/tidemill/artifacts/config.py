"""Settings of the artifact service: where bytes are kept, and how much of them."""

from dataclasses import dataclass

from tidemill.config import setting
from tidemill.errors import invalid
from tidemill.rpc.config import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactsConfig(ServerConfig):
    """Settings of the artifact service."""

    port: int = setting("gRPC port; 0 = a free one", 7102)
    ops_port: int = setting("HTTP port of /metrics, /healthz and /readyz; 0 = a free one", 9102)
    registry_address: str = setting(
        "host:port of the registry to announce this process to, and whose model versions are protected; empty = do not",
        "127.0.0.1:7101",
        env="TIDEMILL_REGISTRY_ADDRESS",
    )
    data: str = setting(
        "directory of uploads in work, and of everything with the store `directory`", "tidemill-data/artifacts"
    )
    store: str = setting("what keeps the objects: directory or s3", "directory")

    max_blob_bytes: int = setting("largest blob", 64 << 30)
    max_uploads: int = setting("most uploads in work at a time", 256)
    upload_idle_seconds: float = setting("time after which an upload without news is given up", 86400.0)
    upload_start_seconds: float = setting("time after which an upload without a byte is given up", 300.0)
    writer_stall_seconds: float = setting("silence after which another call may go on with an upload", 5.0)
    reference_grace_seconds: float = setting(
        "time for which a reference of a model version that does not exist stays", 600.0
    )
    min_free_bytes: int = setting("disk space that uploads leave free", 256 << 20)

    s3_endpoint: str = setting("host:port of the S3 server", "")
    s3_bucket: str = setting("bucket for all objects; no other service process may use it", "tidemill")
    s3_region: str = setting("region of the bucket", "us-east-1")
    s3_secure: bool = setting("speak TLS with the S3 server", True)
    s3_ca_file: str = setting("certificate authorities to trust, a PEM file; empty = the usual ones", "")
    s3_create_bucket: bool = setting("create the bucket when it does not exist", False)
    s3_timeout: float = setting("seconds without an answer after which a request to S3 is given up", 20.0)
    s3_access_key: str = setting("access key of the S3 server", "", secret=True)
    s3_secret_key: str = setting("secret key of the S3 server", "", secret=True)

    def __post_init__(self) -> None:
        ServerConfig.__post_init__(self)
        if not self.data:
            raise invalid("data", "must name a directory")
        for field in (
            "max_blob_bytes",
            "max_uploads",
            "upload_idle_seconds",
            "upload_start_seconds",
            "writer_stall_seconds",
            "reference_grace_seconds",
            "s3_timeout",
        ):
            if getattr(self, field) <= 0:
                raise invalid(field, "must be positive")
        if self.min_free_bytes < 0:
            raise invalid("min_free_bytes", "must not be negative")
        if self.s3_endpoint and self.store == "directory":
            raise invalid("s3_endpoint", "is of use only with another store than directory, such as s3")
