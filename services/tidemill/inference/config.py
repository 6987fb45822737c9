"""Settings of the inference service: where models come from, how they run, and who it says it is."""

from dataclasses import dataclass
from pathlib import Path

from tidemill import names
from tidemill.config import available_cores, setting
from tidemill.errors import invalid
from tidemill.rpc.config import ServerConfig

LARGEST_MESSAGE = 2047 << 20
"""What protobuf's messages can hold, with room for what a message has beside its tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig(ServerConfig):
    """Settings of the inference service."""

    port: int = setting("gRPC port; 0 = a free one", 8001)
    second_port: int | None = setting("a second gRPC port with the same services; 0 = a free one, empty = off", 8500)
    ops_port: int = setting("HTTP port of /metrics, /healthz and /readyz; 0 = a free one", 8002)
    registry_address: str = setting(
        "host:port of the registry, whose aliases say what is served",
        "127.0.0.1:7101",
        env="TIDEMILL_REGISTRY_ADDRESS",
    )
    artifacts_address: str = setting(
        "host:port of the artifact service, where models come from",
        "127.0.0.1:7102",
        env="TIDEMILL_ARTIFACTS_ADDRESS",
    )
    data: str = setting("directory of the model cache and of what was served last; not used with a repository", "")

    model_repository: str = setting(
        "directory of models in Triton's layout, to serve in place of what the registry says; empty = the registry", ""
    )
    model_control: str = setting(
        "when models of the repository come and go: none (all at the start), poll (as it changes) or explicit "
        "(by request)",
        "none",
    )
    load_models: tuple[str, ...] = setting("models to load at the start with explicit control; * = all", ())
    poll_seconds: float = setting("time from one look at the repository to the next", 15.0)

    trust_jobs: bool = setting(
        "load code, as TorchScript and torch.export hold it, of versions that the registry says a job has made; only "
        "where nobody but the training service can make versions there",
        False,
    )

    server_name: str = setting("name of the server in the metadata of the Open Inference Protocol", "tidemill")
    default_alias: str = setting("alias that serves requests without a version, of a model that has it", "champion")
    fronts: int = setting(
        "processes that answer requests; each holds copies of the models that are small and without state; 0 = one a "
        "core",
        0,
    )
    front_model_bytes: int = setting("largest model of which each of these processes holds a copy", 256 << 20)
    threads: int = setting("requests in work at a time in each process; a batch is made of these", 64)
    running: int = setting(
        "requests that compute at a time in each process, those that wait for a batch or another process not among "
        "them; 0 = two a core, shared by the processes",
        0,
    )
    max_waiting: int = setting("requests in work and waiting together; more are refused", 1024)
    max_streams: int = setting(
        "streams of requests at a time, each of which holds a thread; 0 = half of the threads", 0
    )
    stream_idle_seconds: float = setting("seconds after which a stream is ended that brings no request", 600.0)
    mirror_encoding: bool = setting(
        "answer requests with typed elements by typed elements, as clients of KServe and MLServer expect", False
    )
    allow_client_shm: bool = setting(
        "let clients on this host name shared memory, also of GPUs, to read tensors from and write them to", False
    )
    response_cache_bytes: int = setting(
        "memory for answers that are kept, of models whose configuration asks for it; 0 = none is kept", 64 << 20
    )
    max_message_bytes: int = setting("most bytes of tensors in a request or an answer", 64 << 20)

    trace_sample: float = setting(
        "part of the requests without a trace that begin one, 0 to 1; recording costs more than a small model",
        0.01,
        env="TIDEMILL_TRACE_SAMPLE",
    )

    providers: tuple[str, ...] = setting(
        "execution providers of ONNX Runtime, the preferred first", ("CPUExecutionProvider",)
    )
    intra_op_threads: int = setting("threads inside of one run of a model", 1)
    load_concurrency: int = setting("versions that load at a time", 2)
    max_model_bytes: int = setting("largest model that is loaded", 2 << 30)
    max_model_memory: int = setting(
        "most bytes of model files that are loaded together, both versions of a swap counted; 0 = any", 0
    )
    cache_bytes: int = setting("disk space above which blobs that are not served are removed", 10 << 30)

    def __post_init__(self) -> None:
        ServerConfig.__post_init__(self)
        if not self.data and not self.model_repository:
            raise invalid("data", "must name a directory")
        if self.model_repository and not Path(self.model_repository).is_dir():
            raise invalid("model_repository", f"{self.model_repository} is no directory")
        if self.model_control not in ("none", "poll", "explicit"):
            raise invalid("model_control", "must be none, poll or explicit")
        if not 0.1 <= self.poll_seconds <= 86400:
            raise invalid("poll_seconds", "must be in [0.1, 86400]")
        if self.load_models and self.model_control != "explicit":
            raise invalid("load_models", "is for explicit model control")
        if self.second_port is not None and not 0 <= self.second_port <= 65535:
            raise invalid("second_port", "must be in [0, 65535]")
        for field in (
            "threads",
            "max_waiting",
            "max_message_bytes",
            "intra_op_threads",
            "load_concurrency",
            "max_model_bytes",
        ):
            if getattr(self, field) < 1:
                raise invalid(field, "must be at least 1")
        for field in (
            "fronts",
            "running",
            "front_model_bytes",
            "max_streams",
            "cache_bytes",
            "response_cache_bytes",
            "max_model_memory",
        ):
            if getattr(self, field) < 0:
                raise invalid(field, "must not be negative")
        if self.max_message_bytes > LARGEST_MESSAGE:
            raise invalid("max_message_bytes", f"must be at most {LARGEST_MESSAGE}")
        if self.stream_idle_seconds <= 0:
            raise invalid("stream_idle_seconds", "must be positive")
        if not self.providers:
            raise invalid("providers", "must name at least one")
        names.check(self.default_alias, "default_alias")

    @property
    def processes(self) -> int:
        """How many processes answer requests."""
        return self.fronts or available_cores()

    @property
    def one_a_core(self) -> bool:
        """Whether each core has a process of its own, which so loses nothing when it does one thing at a time."""
        return self.processes >= available_cores()

    @property
    def computing(self) -> int:
        """How many requests compute at a time in each process."""
        return self.running or max(2, 2 * available_cores() // self.processes)
