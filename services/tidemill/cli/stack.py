"""The embedded stack: which programs `tidemill up` runs, on which ports, over which data directory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tidemill.cli.supervisor import Program
from tidemill.errors import invalid

REGISTRY, ARTIFACTS, TRAINING, PARAMETERS = 7101, 7102, 7103, 7104
INFERENCE, INFERENCE_SECOND = 8001, 8500
OIP_REST, TFS_REST, MANAGEMENT = 8000, 8501, 8080
OPS = {"registry": 9101, "artifacts": 9102, "training": 9103, "parameters": 9104, "inference": 8002, "gateway": 9106}
SHARD_STRIDE = 10
MOST_OFFSET, MOST_SHARDS = 50000, 16
SERVICES = {
    "registry": "TIDEMILL_REGISTRY_ADDRESS",
    "artifacts": "TIDEMILL_ARTIFACTS_ADDRESS",
    "training": "TIDEMILL_TRAINING_ADDRESS",
    "inference": "TIDEMILL_INFERENCE_ADDRESS",
    "gateway": "TIDEMILL_GATEWAY_URL",
}
"""The variable that says where a service is."""
CHILD = {
    "TIDEMILL_LOG_STYLE": "text",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "GRPC_VERBOSITY": "NONE",  # its own lines have no form; every error is logged by whoever gets it
    "PYTHONUNBUFFERED": "1",
}
"""Variables of every process that a supervisor starts."""
_TIERS = {"registry": 0, "artifacts": 1, "parameters": 2}
"""What others need while they stop has a lower tier; the rest is in the highest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Where the embedded stack lives.

    Args:
        data: directory of everything that is kept.
        port_offset: added to every port.
        shards: number of parameter-server processes.
    """

    data: Path
    port_offset: int = 0
    shards: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.port_offset <= MOST_OFFSET:
            raise invalid("port-offset", f"must be in [0, {MOST_OFFSET}]")
        if not 1 <= self.shards <= MOST_SHARDS:
            raise invalid("shards", f"must be in [1, {MOST_SHARDS}]")

    def address(self, port: int) -> str:
        """Where `port` is found on this machine."""
        return f"127.0.0.1:{port + self.port_offset}"

    @property
    def addresses(self) -> dict[str, str]:
        """The variables by which services and commands find each other."""
        ports = {"registry": REGISTRY, "artifacts": ARTIFACTS, "training": TRAINING, "inference": INFERENCE}
        found = {SERVICES[service]: self.address(port) for service, port in ports.items()}
        return {**found, SERVICES["gateway"]: f"http://{self.address(MANAGEMENT)}"}

    def shard(self, number: int) -> str:
        """Where a shard of the parameter server is found."""
        return self.address(PARAMETERS + number * SHARD_STRIDE)

    @property
    def traces(self) -> Path:
        """Where spans are kept."""
        return self.data / "traces"

    def programs(self) -> list[Program]:
        """The services, in order of dependency."""
        shared = {
            **self.addresses,
            "TIDEMILL_TRACES": f"file:{self.traces}",
            **CHILD,
            # Many small processes: without this each keeps an arena of malloc for every thread.
            "MALLOC_ARENA_MAX": "2",
        }
        made = [
            self._program("registry", REGISTRY, {"TIDEMILL_REGISTRY_STORE": f"sqlite:///{self.data}/registry.db"}),
            self._program("artifacts", ARTIFACTS, {"TIDEMILL_ARTIFACTS_DATA": str(self.data / "artifacts")}),
        ]
        made += [self._shard(number) for number in range(self.shards)]
        training = {
            "TIDEMILL_TRAINING_STORE": f"sqlite:///{self.data}/training.db",
            "TIDEMILL_TRAINING_DATA": str(self.data / "training"),
        }
        inference = {
            "TIDEMILL_INFERENCE_DATA": str(self.data / "inference"),
            "TIDEMILL_INFERENCE_SECOND_PORT": str(INFERENCE_SECOND + self.port_offset),
        }
        gateway = {
            "TIDEMILL_GATEWAY_OIP_PORT": str(OIP_REST + self.port_offset),
            "TIDEMILL_GATEWAY_TFS_PORT": str(TFS_REST + self.port_offset),
        }
        made += [
            self._program("training", TRAINING, training),
            self._program("inference", INFERENCE, inference),
            self._program("gateway", MANAGEMENT, gateway),
        ]
        return [replace(program, environment={**shared, **program.environment}) for program in made]

    def _program(
        self, service: str, port: int, environment: Mapping[str, str], name: str = "", shift: int = 0
    ) -> Program:
        ops = OPS[service] + self.port_offset + shift
        prefix = f"TIDEMILL_{service.upper()}"
        ports = {f"{prefix}_PORT": str(port + self.port_offset + shift), f"{prefix}_OPS_PORT": str(ops)}
        return Program(
            name=name or service,
            module=f"tidemill.{service}",
            environment={**ports, **environment},
            ready_url=f"http://127.0.0.1:{ops}/readyz",
            tier=_TIERS.get(service, max(_TIERS.values()) + 1),
        )

    def _shard(self, number: int) -> Program:
        environment = {
            "TIDEMILL_PARAMETERS_SHARD": str(number),
            "TIDEMILL_PARAMETERS_DATA": str(self.data / f"parameters-{number}"),
        }
        return self._program("parameters", PARAMETERS, environment, f"parameters-{number}", number * SHARD_STRIDE)
