"""Unmodified clients, in environments of their own, against `tidemill serve` over a directory of models."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.clients import Served, failures, outcomes, served
from tests.support.cudastandin import compile_standin, opened
from tests.support.nodepackages import node_modules
from tests.support.up import processes_of
from tests.support.venvs import ROOT
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("clients")]
TWO_PROCESSES = pytest.mark.parametrize("server", [2], ids=["two processes"], indirect=True)
"""For clients of which each call may end in another process, and that show nothing more of one."""
MIRRORED = ("simple", "simple_identity", "colours")


@pytest.fixture(scope="module", params=[2, 1], ids=["two processes", "one process"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of one or two processes that answer."""
    with served(tmp_path_factory.mktemp("clients"), "--fronts", str(request.param)) as running:
        yield running


def test_tritonclient_over_grpc(server: Served) -> None:
    found = server.python("tritonclient", "triton_grpc")
    assert failures(found) == {}
    assert len(found) == 43


def test_tritonclient_over_http(server: Served) -> None:
    found = server.python("tritonclient", "triton_http")
    assert failures(found) == {}
    assert len(found) == 13


@TWO_PROCESSES
def test_kserve(server: Served) -> None:
    found = server.python("kserve", "kserve_client")
    assert failures(found) == {}
    assert len(found) == 9


@TWO_PROCESSES
def test_node(server: Served) -> None:
    program = ROOT / "tests" / "support" / "clientprograms" / "node_client.js"
    environment = {**os.environ, "NODE_PATH": str(node_modules())}
    found = outcomes(["node", str(program), server.grpc, str(ROOT / "protos")], environment)
    assert failures(found) == {}
    assert len(found) == 8


def test_typed_requests_are_answered_raw(server: Served) -> None:
    answer = _ask(server, _typed())
    assert [np.frombuffer(raw, np.int32).tolist() for raw in answer.raw_output_contents] == [[2] * 16, [0] * 16]
    assert not any(output.HasField("contents") for output in answer.outputs)


def test_encodings_are_mirrored_on_request(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As MLServer and KServe do: typed requests get typed answers, raw ones raw answers."""
    folder = tmp_path_factory.mktemp("mirror")
    with served(folder, "--fronts", "2", "--mirror-encoding", models=MIRRORED) as running:
        for _ in range(6):  # connections, which end in both processes
            typed = _ask(running, _typed())
            assert not typed.raw_output_contents
            assert [list(output.contents.int_contents) for output in typed.outputs] == [[2] * 16, [0] * 16]
            raw = _typed()
            for tensor in raw.inputs:
                tensor.ClearField("contents")
                raw.raw_input_contents.append(np.ones(16, np.int32).tobytes())
            answer = _ask(running, raw)
            assert len(answer.raw_output_contents) == 2
            assert not any(output.HasField("contents") for output in answer.outputs)
        checks = ("grpc_raw", "grpc_typed", "grpc_typed_texts", "rest_infer")
        found = running.python("kserve", "kserve_client", *checks)
        assert failures(found) == {}
        assert sorted(found) == sorted(checks)


def _typed() -> Any:
    """A request for the model `simple` with typed elements, as MLServer's clients make it."""
    request: Any = pb.ModelInferRequest(model_name="simple", id="typed")
    for name in ("INPUT0", "INPUT1"):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        tensor.contents.int_contents.extend([1] * 16)
    return request


def _ask(server: Served, request: Any) -> Any:
    """The answer, over a connection of its own."""
    with grpc.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return pg.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)


def test_tritonclient_with_memory_of_gpus(tmp_path: Path) -> None:
    """CUDA's library is found on the loader's path, where a stand-in for it lies; nothing stays open."""
    libraries = compile_standin(tmp_path / "libraries")
    variables = {"LD_LIBRARY_PATH": str(libraries), "CUDA_STANDIN_LIBRARIES": str(libraries)}
    with served(tmp_path, "--fronts", "2", models=("simple",), environment=variables) as running:
        found = running.python("tritonclient", "triton_cuda", variables=variables)
        assert failures(found) == {}
        assert sorted(found) == ["over_grpc", "over_http"]
        processes = [number for number in processes_of(tmp_path) if number != os.getpid()]
        assert processes
        assert [opened(number) for number in processes] == [0] * len(processes)
