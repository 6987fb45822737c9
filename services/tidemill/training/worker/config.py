"""The settings of a worker process, given by its launcher."""

from dataclasses import dataclass

from tidemill.config import setting
from tidemill.errors import invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Settings of one worker process; everything about the job comes from the training service."""

    training_address: str = setting(
        "host:port of the training service", "127.0.0.1:7103", env="TIDEMILL_TRAINING_ADDRESS"
    )
    token: str = setting("secret that this process alone was given", secret=True)
    data: str = setting("directory for the job's files, which the processes of a job may share")
    threads: int = setting("threads that compute; the same for all workers of a job", 1)
    heartbeat_seconds: float = setting("seconds between signs of life", 1.0)
    patience_seconds: float = setting("longest time that a service may be out of reach", 60.0)
    host: str = setting("address of this machine at which other workers of the job reach this one", "127.0.0.1")
    collective_seconds: float = setting("longest time that workers wait for each other in one exchange", 1800.0)
    max_dataset_bytes: int = setting("most bytes that a data set may have, unpacked", 2 << 30)
    traces: str = setting("where spans go: none, file:<directory> or otlp:<host:port>", "none", env="TIDEMILL_TRACES")
    log_level: str = setting("lowest level logged", "INFO", env="TIDEMILL_LOG_LEVEL")

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 1024:
            raise invalid("threads", "must be in [1, 1024]")
        if not 0 < self.heartbeat_seconds <= 60:
            raise invalid("heartbeat_seconds", "must be in (0, 60]")
        if not 0 <= self.patience_seconds <= 86400:
            raise invalid("patience_seconds", "must be in [0, 86400]")
        if not self.host or len(self.host) > 255 or not self.host.isprintable():
            raise invalid("host", "must be an address or a name of this machine")
        if not 1 <= self.collective_seconds <= 86400:
            raise invalid("collective_seconds", "must be in [1, 86400]")
        if self.max_dataset_bytes < 1:
            raise invalid("max_dataset_bytes", "must be at least 1")
        if self.log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise invalid("log_level", "must be DEBUG, INFO, WARNING or ERROR")
