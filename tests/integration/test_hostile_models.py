"""Models that name files outside of what is theirs: not served, and nothing outside is opened."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import onnxmodels
from tests.support.modelfolders import JSON, Folder
from tests.support.watched import Touched, Watched, watched
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg

TENSORS = (
    'input { name: "x" data_type: TYPE_FP32 dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: 1 %s } '
    'platform: "onnxruntime_onnx" max_batch_size: 0 %s'
)


def links(at: str, to: str) -> Callable[[Watched, str], None]:
    """A model of which a part is a link into the directory outside."""

    def make(made: Watched, name: str) -> None:
        folder = Folder(made.models)
        folder.put(
            name, {"1/model.onnx": onnxmodels.external("initializer", onnxmodels.external_tensor(location="w.bin"))}
        )
        target = made.models / name / at
        if target.is_dir():
            (target / "model.onnx").unlink()
            target.rmdir()
        else:
            target.unlink(missing_ok=True)
        target.symlink_to(Path(os.path.relpath(made.outside, target.parent)) / to)

    return make


def external(location: str, where: str = "initializer") -> Callable[[Watched, str], None]:
    """A model whose weight lies there; `OUTSIDE` stands for the directory outside."""

    def make(made: Watched, name: str) -> None:
        place = location.replace("OUTSIDE", str(made.outside))
        data = onnxmodels.external(where, onnxmodels.external_tensor(location=place))
        Folder(made.models).put(name, {"1/model.onnx": data})

    return make


def configured(label: str = "", more: str = "") -> Callable[[Watched, str], None]:
    """A model whose configuration names files outside."""

    def make(made: Watched, name: str) -> None:
        config = (TENSORS % (label, more)).replace("OUTSIDE", str(made.outside))
        Folder(made.models).version(name, 1, onnxmodels.scale(2, shape=(1,)), config)

    return make


WARM = 'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 input_data_file: "%s" } } }'
MODELS: dict[str, Callable[[Watched, str], None]] = {
    "weights-above": external("../../../outside/w.bin"),
    "weights-absolute": external("OUTSIDE/w.bin"),
    "weights-around": external("x/../../../../outside/w.bin"),
    "weights-in-a-loop": external("../../../outside/w.bin", "loop"),
    "weights-in-a-function": external("OUTSIDE/w.bin", "function"),
    "weights-linked": links("1/w.bin", "w.bin"),
    "file-linked": links("1/model.onnx", "model.onnx"),
    "version-linked": links("1", ""),
    "configuration-linked": links("config.pbtxt", "config.pbtxt"),
    "labels-above": configured('label_filename: "../../outside/w.bin"'),
    "labels-absolute": configured('label_filename: "OUTSIDE/w.bin"'),
    "file-above": configured(more='default_model_filename: "../../../outside/model.onnx"'),
    "file-absolute": configured(more='default_model_filename: "OUTSIDE/model.onnx"'),
    "sample-above": configured(more=WARM % "../../../outside/w.bin"),
    "sample-absolute": configured(more=WARM % "OUTSIDE/w.bin"),
    "library-absolute": configured(more='model_operations { op_library_filename: "OUTSIDE/w.bin" }'),
}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    def prepare(made: Watched) -> None:
        Folder(made.models).version("m", 1, onnxmodels.scale(2))

    with watched(tmp_path_factory.mktemp("watched"), "inference", prepare=prepare) as running:
        for name, make in MODELS.items():
            make(running, name)
        yield running


@pytest.fixture
def stub(process: Watched) -> Iterator[Any]:
    with grpc.insecure_channel(process.address("inference")) as channel:
        yield pg.GRPCInferenceServiceStub(channel)


def refused(stub: Any, request: Any) -> str:
    """Why a model is not loaded."""
    with pytest.raises(grpc.RpcError) as raised:
        stub.RepositoryModelLoad(request, timeout=20)
    error: Any = raised.value
    return str(error.details())


@pytest.mark.parametrize("name", MODELS)
def test_models_of_a_repository(process: Watched, stub: Any, name: str) -> None:
    since = process.mark()
    with Touched(process.outside) as touched:
        text = refused(stub, pb.RepositoryModelLoadRequest(model_name=name))
        assert touched.names() == []
    assert str(process.models) not in text
    assert process.trespasses(since) == []
    assert not stub.ModelReady(pb.ModelReadyRequest(name=name), timeout=20).ready


@pytest.mark.parametrize("where", onnxmodels.EXTERNAL)
def test_models_of_a_request(process: Watched, stub: Any, where: str) -> None:
    since = process.mark()
    with Touched(process.outside) as touched:
        for location in ("../../outside/w.bin", "../outside/w.bin", f"{process.outside}/w.bin", "/proc/self/environ"):
            data = onnxmodels.external(where, onnxmodels.external_tensor(location=location))
            request: Any = pb.RepositoryModelLoadRequest(model_name="sent")
            request.parameters["config"].string_param = JSON
            request.parameters["file:1/model.onnx"].bytes_param = data
            refused(stub, request)
        assert touched.names() == []
    assert process.trespasses(since) == []


def test_what_is_opened_outside_is_seen(process: Watched, stub: Any) -> None:
    """Without that, nothing above would say anything."""
    since = process.mark()
    Folder(process.models).version("fresh", 1, onnxmodels.scale(2))
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="fresh"), timeout=20)
    assert [event for event in process.events(since) if event[0] == "open" and "model.onnx" in event[1]]
    assert not process._inside(f"{process.outside}/w.bin")
    assert not process._inside(f"{process.models}/../outside/w.bin")
    assert not process._inside(f"{process.models}/weights-linked/1/w.bin")
    with Touched(process.outside) as touched:
        (process.models / "weights-linked/1/w.bin").read_bytes()
        assert "w.bin" in touched.names()
