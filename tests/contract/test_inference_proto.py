"""Our Open Inference Protocol is, on the wire, the one that tritonclient speaks, and both live in one process."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from tests.support.protoshape import Shape, shape
from tests.support.venvs import ROOT, venv
from tidemill.api.compat.inference import model_config_pb2, service_pb2
from tidemill.api.registry.v1 import registry_pb2
from tidemill.rpc.methods import methods
from tidemill.rpc.reflectionpool import reflection_pool

pytestmark = pytest.mark.timeout(600)

# KServe's server answers a load and an unload with these; for all other clients the messages are empty.
EXTRA_FIELDS = {
    "inference.RepositoryModelLoadResponse": {
        "model_name": (1, FieldDescriptorProto.TYPE_STRING),
        "isLoaded": (2, FieldDescriptorProto.TYPE_BOOL),
    },
    "inference.RepositoryModelUnloadResponse": {
        "model_name": (1, FieldDescriptorProto.TYPE_STRING),
        "isUnloaded": (2, FieldDescriptorProto.TYPE_BOOL),
    },
}
SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]


@pytest.fixture(scope="module")
def python() -> Path:
    return venv("tritonclient")


@pytest.fixture(scope="module")
def theirs(python: Path) -> Shape:
    modules = ["tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2"]
    script = ROOT / "tests" / "support" / "protoshape.py"
    done = subprocess.run([python, script, *modules], capture_output=True, check=True, timeout=60)
    found: Shape = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def ours() -> Shape:
    return shape([service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR])


def test_messages_are_tritonclients_but_for_the_listed_fields(ours: Shape, theirs: Shape) -> None:
    assert len(theirs["messages"]) > 100
    for message, fields in EXTRA_FIELDS.items():
        for field, expected in fields.items():
            assert field not in theirs["messages"][message]
            declared = ours["messages"][message].pop(field)
            assert (declared["number"], declared["type"]) == expected
    assert ours["messages"] == theirs["messages"]


def test_enums_services_and_syntax_are_tritonclients(ours: Shape, theirs: Shape) -> None:
    assert ours["enums"] == theirs["enums"]
    assert ours["services"] == theirs["services"]
    assert len(ours["services"]["inference.GRPCInferenceService"]) == 20
    assert ours["syntax"] == theirs["syntax"]


@pytest.mark.parametrize("first", ["tidemill.api.compat.inference.service_pb2", "tritonclient.grpc"])
def test_our_server_answers_tritonclient_in_one_process(python: Path, first: str) -> None:
    script = ROOT / "tests" / "support" / "beside_tritonclient.py"
    program = f"import {first}, runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "libs")}
    done = subprocess.run([python, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "doubled": [2.0, 4.0, 6.0],
        "type": model_config_pb2.TYPE_FP32,
        "apart": True,
        "same": True,
    }


def test_the_default_pool_stays_free_for_other_stubs() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest")


def test_method_table_gives_the_classes_of_the_stubs() -> None:
    table = {method.name: method for method in methods(SERVICE)}
    assert len(table) == 20
    infer, stream = table["ModelInfer"], table["ModelStreamInfer"]
    assert infer.path == "/inference.GRPCInferenceService/ModelInfer"
    assert infer.request is service_pb2.ModelInferRequest
    assert stream.response is service_pb2.ModelStreamInferResponse
    assert (infer.client_streaming, infer.server_streaming) == (False, False)
    assert (stream.client_streaming, stream.server_streaming) == (True, True)


def test_reflection_describes_services_of_both_pools() -> None:
    registry = next(iter(registry_pb2.DESCRIPTOR.services_by_name.values()))
    pool = reflection_pool([SERVICE, registry])
    for service in (SERVICE, registry):
        found = pool.FindFileContainingSymbol(service.full_name)
        assert found.name == service.file.name
    assert pool.FindMessageTypeByName("inference.ModelConfig").fields_by_name["max_batch_size"].number == 4
