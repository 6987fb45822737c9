"""Serving a directory of models alone: which programs `tidemill serve` runs, on which ports."""

from dataclasses import dataclass
from pathlib import Path

from tidemill.cli.stack import CHILD, INFERENCE, MOST_OFFSET, OIP_REST, OPS
from tidemill.cli.supervisor import Program
from tidemill.errors import invalid

REST_LARGEST, REST_BUFFERED = 1024, 512
"""MiB of the largest body over REST, and of all that are in memory at a time, unless one is larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Inference and its REST, over a model repository.

    Args:
        repository: its directory.
        control: when models come and go: none, poll or explicit.
        poll_seconds: from one look at it to the next.
        load: models to load at the start with explicit control.
        memory: most bytes of model files that are loaded together; 0 = any.
        shared_memory: whether clients may name shared memory.
        name: of the server, as clients see it.
        mirror_encoding: whether typed requests are answered by typed elements.
        fronts: processes that answer requests; 0 = one a core.
        largest: most MiB of the tensors in a request or an answer; over REST at most `REST_LARGEST`.
        port_offset: added to every port.
    """

    repository: Path
    control: str = "none"
    poll_seconds: float = 15.0
    load: tuple[str, ...] = ()
    memory: int = 0
    shared_memory: bool = False
    name: str = "tidemill"
    mirror_encoding: bool = False
    fronts: int = 0
    largest: int = 64
    port_offset: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.port_offset <= MOST_OFFSET:
            raise invalid("port-offset", f"must be in [0, {MOST_OFFSET}]")
        if self.load and self.control != "explicit":
            raise invalid("load-model", "needs --model-control explicit")

    def address(self, port: int) -> str:
        """Where `port` is found on this machine."""
        return f"127.0.0.1:{port + self.port_offset}"

    def programs(self) -> list[Program]:
        """The two services."""
        inference = {
            "TIDEMILL_INFERENCE_MODEL_REPOSITORY": str(self.repository),
            "TIDEMILL_INFERENCE_MODEL_CONTROL": self.control,
            "TIDEMILL_INFERENCE_POLL_SECONDS": str(self.poll_seconds),
            "TIDEMILL_INFERENCE_LOAD_MODELS": ",".join(self.load),
            "TIDEMILL_INFERENCE_MAX_MODEL_MEMORY": str(self.memory),
            "TIDEMILL_INFERENCE_ALLOW_CLIENT_SHM": str(self.shared_memory).lower(),
            "TIDEMILL_INFERENCE_SERVER_NAME": self.name,
            "TIDEMILL_INFERENCE_MIRROR_ENCODING": str(self.mirror_encoding).lower(),
            "TIDEMILL_INFERENCE_FRONTS": str(self.fronts),
            "TIDEMILL_INFERENCE_MAX_MESSAGE_BYTES": str(self.largest << 20),
            "TIDEMILL_INFERENCE_SECOND_PORT": "",
        }
        body = min(self.largest, REST_LARGEST)
        gateway = {
            "TIDEMILL_GATEWAY_INFERENCE_ONLY": "true",
            "TIDEMILL_GATEWAY_MAX_BODY_MIB": str(body),
            "TIDEMILL_GATEWAY_MAX_BUFFERED_MIB": str(max(REST_BUFFERED, body)),
            "TIDEMILL_INFERENCE_ADDRESS": self.address(INFERENCE),
        }
        return [self._program("inference", INFERENCE, inference, 0), self._program("gateway", OIP_REST, gateway, 1)]

    def _program(self, service: str, port: int, environment: dict[str, str], tier: int) -> Program:
        prefix = f"TIDEMILL_{service.upper()}"
        ops = OPS[service] + self.port_offset
        ports = {f"{prefix}_PORT": str(port + self.port_offset), f"{prefix}_OPS_PORT": str(ops)}
        return Program(
            name=service,
            module=f"tidemill.{service}",
            environment={**CHILD, **ports, **environment},
            ready_url=f"http://127.0.0.1:{ops}/readyz",
            tier=tier,
        )
