"""The compose file is valid, asks for its secrets, and gives every service an environment that works."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import compose
import grpc
import numpy as np
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from tests.support.etcd import EtcdServer, running_etcd
from tests.support.ports import free_ports
from tests.support.s3 import S3Server, running_s3
from tests.support.up import ROOT
from tests.support.wait import until
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.inference import InferenceClient
from tidemill.clients.training import TrainingClient

COMPOSE = Path(compose.__file__).parent / "docker-compose"
OURS = ("registry", "artifacts", "parameters-0", "parameters-1", "training", "inference", "gateway")
SERVED = {"registry": "7101", "artifacts": "7102", "training": "7103", "inference": "8001"}


def config(**variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [COMPOSE, "-f", ROOT / "compose.yaml", "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def described() -> Any:
    done = config(MINIO_ROOT_USER="someone", MINIO_ROOT_PASSWORD="something-long")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("missing", ["MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"])
def test_there_are_no_default_secrets(missing: str) -> None:
    given = {"MINIO_ROOT_USER": "a", "MINIO_ROOT_PASSWORD": "b"}
    del given[missing]
    done = config(**given)
    assert done.returncode != 0
    assert missing in done.stderr


def test_the_example_of_the_secrets_lists_every_one_and_gives_none() -> None:
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["MINIO_ROOT_USER=", "MINIO_ROOT_PASSWORD="]


def test_every_container_is_bounded_and_reachable_from_this_machine_alone(described: Any) -> None:
    for name, service in described["services"].items():
        assert service["mem_limit"], name
        assert service["cpus"], name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name
        assert service["healthcheck"]["test"], name
        if name not in OURS:
            assert ":latest" not in service["image"], name
            assert ":" in service["image"], name


def test_services_wait_for_what_they_need(described: Any) -> None:
    for name, service in described["services"].items():
        conditions = {needed["condition"] for needed in service.get("depends_on", {}).values()}
        assert conditions == ({"service_healthy"} if name in OURS or conditions else set()), name


def test_what_is_kept_lies_in_volumes_with_names(described: Any) -> None:
    kept = set()
    for name, service in described["services"].items():
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume", name
            kept.add(volume["source"])
        if name in OURS:
            assert service["read_only"], name
            data = [value for key, value in service["environment"].items() if key.endswith("_DATA")]
            assert data == [volume["target"] for volume in service.get("volumes", [])], name
    assert kept == set(described["volumes"])


def test_one_image_recipe_makes_every_service(described: Any) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in OURS:
        extra = described["services"][name]["build"]["args"]["EXTRA"]
        assert extra == name.split("-")[0]
        assert extra in extras
    assert "\nARG EXTRA\n" in (ROOT / "Dockerfile").read_text()


def test_metrics_and_spans_have_somewhere_to_go(described: Any) -> None:
    contents = {name: yaml.safe_load(file["content"]) for name, file in described["configs"].items()}
    (job,) = contents["prometheus"]["scrape_configs"]
    targets = {target for group in job["static_configs"] for target in group["targets"]}
    checks = {name: described["services"][name]["healthcheck"]["test"][3] for name in OURS}
    ports = {name: re.findall(r"127\.0\.0\.1:(\d+)/readyz", check) for name, check in checks.items()}
    assert targets == {f"{name}:{port}" for name, (port,) in ports.items()}
    collector = contents["collector"]
    assert set(collector["service"]["extensions"]) == set(collector["extensions"])
    checked = described["services"]["collector"]["healthcheck"]["test"][-1]
    assert checked == f"http://{collector['extensions']['health_check']['endpoint']}/"
    for pipeline in collector["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(collector[kind])
    host, _, port = collector["exporters"]["otlp/jaeger"]["endpoint"].partition(":")
    assert (host in described["services"], port) == (True, "4317")
    taken = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    for name in OURS:
        assert described["services"][name]["environment"]["TIDEMILL_TRACES"] == f"otlp:collector:{taken}"


class Containers:
    """The services as processes, each with nothing but the environment that compose gives it.

    Only names that a network of containers would resolve, ports and volumes are replaced by what this machine has.
    """

    def __init__(self, folder: Path, described: Any, etcd: EtcdServer, s3: S3Server, collector: str) -> None:
        self._folder = folder
        folder.mkdir()
        self._processes: list[subprocess.Popen[bytes]] = []
        ports = iter(free_ports(2 * len(OURS) + 4))
        self.addresses = {name: f"127.0.0.1:{next(ports)}" for name in OURS}
        self._names = {
            f"{name}:{SERVED.get(name, '7104' if name.startswith('parameters') else '8080')}": address
            for name, address in self.addresses.items()
        }
        self._names |= {"etcd:2379": etcd.address, "minio:9000": s3.endpoint, "collector:4317": collector}
        self._names |= {"0.0.0.0": "127.0.0.1"}
        self._ops = {name: next(ports) for name in OURS}
        self._extra = {
            "inference": {"TIDEMILL_INFERENCE_SECOND_PORT": str(next(ports))},
            "gateway": {
                "TIDEMILL_GATEWAY_OIP_PORT": str(next(ports)),
                "TIDEMILL_GATEWAY_TFS_PORT": str(next(ports)),
            },
        }
        self._described = described

    @property
    def predict_address(self) -> str:
        """Where the gateway serves `:predict`."""
        return f"127.0.0.1:{self._extra['gateway']['TIDEMILL_GATEWAY_TFS_PORT']}"

    def environment(self, name: str) -> dict[str, str]:
        """What compose gives, with names replaced."""
        volume = self._folder / name
        volume.mkdir(parents=True, exist_ok=True)
        given = {}
        for variable, value in self._described["services"][name]["environment"].items():
            text = str(volume) if value == "/data" else value
            for inside, outside in self._names.items():
                text = text.replace(inside, outside)
            given[variable] = text
        prefix = f"TIDEMILL_{name.split('-')[0].upper()}"
        port = self.addresses[name].rpartition(":")[2]
        ports = {f"{prefix}_PORT": port, f"{prefix}_OPS_PORT": str(self._ops[name])}
        return {**given, **ports, **self._extra.get(name, {}), "PATH": os.environ["PATH"]}

    def start(self) -> None:
        """Start all of them, in no order, and wait until their health checks pass."""
        for name in OURS:
            with (self._folder / f"{name}.log").open("wb") as log:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", f"tidemill.{name.split('-')[0]}"],
                        env=self.environment(name),
                        cwd=self._folder,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
        deadline = time.monotonic() + 60
        for name in OURS:
            while self.health(name) != 0:
                assert time.monotonic() < deadline, (self._folder / f"{name}.log").read_text()[-3000:]

    def health(self, name: str) -> int:
        """Exit status of the very health check that compose would run."""
        kind, python, *arguments = self._described["services"][name]["healthcheck"]["test"]
        assert (kind, python) == ("CMD", "python")
        code = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{self._ops[name]}", arguments[1])
        return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30).returncode

    def stop(self) -> list[int]:
        """SIGTERM to all; their exit statuses."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        statuses = []
        for process in self._processes:
            try:
                statuses.append(process.wait(25))
            except subprocess.TimeoutExpired:
                process.kill()
                statuses.append(process.wait())
        return statuses


class Collector(otlp_grpc.TraceServiceServicer):
    """Takes spans as the collector would, and remembers whose they were."""

    def __init__(self) -> None:
        self.services: set[str] = set()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        for spans in request.resource_spans:
            for attribute in spans.resource.attributes:
                if attribute.key == "service.name":
                    self.services.add(attribute.value.string_value)
        return otlp.ExportTraceServiceResponse()


@contextlib.contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    otlp_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.mark.timeout(300)
async def test_the_services_work_with_the_environment_that_compose_gives_them(tmp_path: Path) -> None:
    with (
        running_etcd(tmp_path / "etcd") as etcd,
        running_s3(tmp_path / "s3") as s3,
        collecting() as (collector, collector_address),
    ):
        done = config(MINIO_ROOT_USER=s3.access_key, MINIO_ROOT_PASSWORD=s3.secret_key)
        containers = Containers(tmp_path / "containers", json.loads(done.stdout), etcd, s3, collector_address)
        try:
            containers.start()
            await _use(containers)
            wanted = {"registry", "artifacts", "parameters", "training", "inference", "gateway", "worker"}
            await until(lambda: collector.services >= wanted, 30, f"spans of {wanted}, not {collector.services}")
        finally:
            statuses = containers.stop()
        assert statuses == [0] * len(OURS)


async def _use(containers: Containers) -> None:
    spec = {
        "model": {"name": "mlp"},
        "dataset": {"builtin": "iris"},
        "workers": 2,
        "shards": 2,
        "epochs": 2,
        "register_as": "models/iris",
        "alias": "champion",
    }
    async with TrainingClient(containers.addresses["training"]) as training:
        job = await training.wait_job((await training.create_job(spec)).name)
    assert job.state == pb.Job.STATE_SUCCEEDED, job.error
    async with ArtifactsClient(containers.addresses["artifacts"]) as artifacts:
        assert (await artifacts.get_artifact(job.result.artifact)).references
    async with InferenceClient(containers.addresses["inference"]) as inference:
        await until(lambda: inference.model_ready("iris"), 30)
        result = await inference.infer("iris", {"x": np.zeros((2, 4), "f4")})
    assert result.outputs["y"].shape == (2, 3)
    jobs = await asyncio.to_thread(_rest, containers.addresses["gateway"], "/api/v1/jobs")
    assert [listed["name"] for listed in jobs["jobs"]] == [job.name]
    rows = {"instances": [[0.0] * 4] * 2}
    answer = await asyncio.to_thread(_rest, containers.predict_address, "/v1/models/iris:predict", rows)
    np.testing.assert_allclose(answer["predictions"], result.outputs["y"], atol=1e-6)


def _rest(address: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)
