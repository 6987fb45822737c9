"""ONNX Runtime behind the interface of runtimes."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.support import onnxmodels
from tidemill.errors import Internal, Invalid
from tidemill.inference.calls import Array
from tidemill.inference.configuration import Configuration
from tidemill.inference.runtimes.base import Settings
from tidemill.inference.runtimes.onnx import OnnxRuntime
from tidemill.tensors.dtypes import DataType

ARRAYS: dict[DataType, tuple[int, Array]] = {
    DataType.BOOL: (TensorProto.BOOL, np.array([[True, False]])),
    DataType.UINT8: (TensorProto.UINT8, np.array([[0, 255]], np.uint8)),
    DataType.UINT16: (TensorProto.UINT16, np.array([[0, 65535]], np.uint16)),
    DataType.UINT32: (TensorProto.UINT32, np.array([[0, 2**32 - 1]], np.uint32)),
    DataType.UINT64: (TensorProto.UINT64, np.array([[0, 2**64 - 1]], np.uint64)),
    DataType.INT8: (TensorProto.INT8, np.array([[-128, 127]], np.int8)),
    DataType.INT16: (TensorProto.INT16, np.array([[-1, 5]], np.int16)),
    DataType.INT32: (TensorProto.INT32, np.array([[-1, 5]], np.int32)),
    DataType.INT64: (TensorProto.INT64, np.array([[-(2**63), 2**63 - 1]], np.int64)),
    DataType.FP16: (TensorProto.FLOAT16, np.array([[0.5, 65504]], np.float16)),
    DataType.FP32: (TensorProto.FLOAT, np.array([[0.1, -3e38]], np.float32)),
    DataType.FP64: (TensorProto.DOUBLE, np.array([[0.1, 1e300]], np.float64)),
    DataType.BF16: (TensorProto.BFLOAT16, np.array([[1.5, -(2.0**100)]], np.float32)),
}


def load(data: bytes, settings: Settings | None = None) -> OnnxRuntime:
    return OnnxRuntime.load({"model.onnx": data}, settings or Settings())


@pytest.mark.parametrize("kind", ARRAYS)
def test_every_element_type_goes_in_and_out(kind: DataType) -> None:
    number, array = ARRAYS[kind]
    runtime = load(onnxmodels.identity(number))
    assert [spec.datatype for spec in runtime.signature.inputs] == [kind]
    (found,) = runtime.run({"x": array}, ["y"])
    assert found.dtype == kind.numpy
    np.testing.assert_array_equal(found, array)


def test_strings_go_in_as_bytes() -> None:
    runtime = load(onnxmodels.identity(TensorProto.STRING))
    x = np.array([[b"", "naïve\0✓".encode()]], dtype=object)
    (y,) = runtime.run({"x": x}, ["y"])
    assert y.tolist() == [["", "naïve\0✓"]]
    with pytest.raises(Invalid, match="UTF-8"):
        runtime.run({"x": np.array([[b"\xff", b""]], dtype=object)}, ["y"])


def test_outputs_come_in_the_order_asked_for() -> None:
    runtime = load(onnxmodels.sums())
    assert runtime.signature.output_names == ("total", "difference")
    a, b = np.full((1, 4), 7, np.int32), np.full((1, 4), 2, np.int32)
    found = runtime.run({"a": a, "b": b}, ["difference", "total"])
    assert [int(array[0, 0]) for array in found] == [5, 9]
    assert len(runtime.run({"a": a, "b": b}, ["total"])) == 1


def test_an_operator_that_fails_is_a_fault_with_its_cause() -> None:
    runtime = load(onnxmodels.reshape())
    with pytest.raises(Internal) as failed:
        runtime.run({"x": np.zeros(6, np.float32), "shape": np.array([4, 4])}, ["y"])
    assert "4,4" in str(failed.value.__cause__)
    assert "onnxruntime" not in failed.value.message


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            onnxmodels.model(
                [helper.make_node("Nope", ["x"], ["y"])], [onnxmodels.tensor("x")], [onnxmodels.tensor("y")]
            ),
            id="operator",
        ),
        pytest.param(
            onnxmodels.model(
                [helper.make_node("Op", ["x"], ["y"], domain="my.ops")],
                [onnxmodels.tensor("x")],
                [onnxmodels.tensor("y")],
            ),
            id="domain",
        ),
    ],
)
def test_unknown_operators_are_refused(data: Any) -> None:
    with pytest.raises(Invalid, match="refuses the model"):
        load(data.SerializeToString())


def test_outputs_that_are_no_tensors_are_refused() -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["n", 2])
    with pytest.raises(Invalid, match="cannot be sent"):
        load(onnxmodels.model([node], [onnxmodels.tensor("x")], [output]).SerializeToString())


def test_unknown_provider_is_refused_by_name() -> None:
    with pytest.raises(Invalid, match="NopeExecutionProvider"):
        load(onnxmodels.scale(2), Settings(providers=(("NopeExecutionProvider", {}),)))


def test_devices_are_those_that_the_session_got() -> None:
    assert load(onnxmodels.scale(2)).devices == ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        (["card.md", "net.onnx"], "net.onnx"),
        (["model.onnx", "model.fp16.onnx"], "model.onnx"),
        (["a.onnx", "b.onnx"], None),
        (["model.safetensors"], None),
    ],
)
def test_selects_the_model_file(paths: list[str], chosen: str | None) -> None:
    if chosen is not None:
        assert OnnxRuntime.select(paths)[0] == chosen
        return
    with pytest.raises(Invalid, match=r"model\.onnx"):
        OnnxRuntime.select(paths)


def test_selects_files_of_weights_with_the_model() -> None:
    paths = ["model.onnx", "model.onnx.data", "onnx__MatMul_12", "fc.bias", "card.md", "labels.txt", "w/part.bin"]
    assert set(OnnxRuntime.select(paths)) == set(paths) - {"card.md", "labels.txt"}
    assert OnnxRuntime.select(["net/a.onnx", "net/a.data", "other/b.data"]) == ("net/a.onnx", "net/a.data")


@pytest.mark.parametrize("where", onnxmodels.EXTERNAL)
def test_models_with_weights_elsewhere_are_refused(where: str) -> None:
    with pytest.raises(Invalid, match="external data"):
        load(onnxmodels.external(where))


W = np.array([1, 2, 40], np.float32).tobytes()


@pytest.mark.parametrize("where", [where for where in onnxmodels.EXTERNAL if where != "tensors"])
@pytest.mark.parametrize("said", [{"offset": 8, "length": 4}, {"offset": 8}])
def test_weights_in_the_models_own_files_are_used(where: str, said: dict[str, Any]) -> None:
    outside = onnxmodels.external_tensor(location="w/w.bin", **said)
    files = {"net/model.onnx": onnxmodels.external(where, outside), "net/w/w.bin": W}
    runtime = OnnxRuntime.load(files, Settings())
    files.clear()
    assert runtime.run({"x": np.array([2], np.float32)}, ["y"])[0].tolist() == [42]


@pytest.fixture(scope="module")
def opened() -> list[str]:
    """Names of opened files of weights; the hook stays, as hooks do."""
    found: list[str] = []
    sys.addaudithook(
        lambda event, args: found.append(str(args[0])) if event == "open" and str(args[0]).endswith("w.bin") else None
    )
    return found


@pytest.fixture
def outside_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]) -> list[str]:
    """What is opened of a directory, which is the working directory and holds what a model may ask for."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/w.bin").write_bytes(W)
    (tmp_path / "link.bin").symlink_to(tmp_path / "real/w.bin")
    (tmp_path / "parent").symlink_to(tmp_path / "real")
    os.link(tmp_path / "real/w.bin", tmp_path / "hard.bin")
    monkeypatch.chdir(tmp_path)
    opened.clear()
    return opened


@pytest.mark.parametrize("where", onnxmodels.EXTERNAL)
@pytest.mark.parametrize(
    "said",
    [
        {"location": "../w.bin"},
        {"location": "/etc/passwd"},
        {"location": "a/../w.bin"},
        {"location": "./w.bin"},
        {"location": "link.bin"},
        {"location": "parent/w.bin"},
        {"location": "hard.bin"},
        {"location": "real/w.bin"},
        {"location": "model.onnx"},
        {"location": "*/_ORT_MEM_ADDR_/*", "offset": 4096, "length": 4},
        {"location": "w.bin\0.txt"},
        {"location": "w.bin", "offset": -8, "length": 4},
        {"location": "w.bin", "offset": 2**63, "length": 4},
        {"location": "w.bin", "offset": 2**64 - 4, "length": 4},
        {"location": "w.bin", "offset": 12, "length": 4},
        {"location": "w.bin", "offset": 4, "length": 2**40},
        {"location": "w.bin", "offset": 0, "length": 0},
        {"location": "w.bin", "offset": 0, "length": 8},
        {"location": "w.bin", "offset": "0x4", "length": 4},
        {"location": "w.bin", "basepath": "/etc"},
        {"location": ""},
    ],
)
def test_external_data_that_is_not_the_models_own_is_refused_unopened(
    where: str, said: dict[str, Any], outside_of_files: list[str]
) -> None:
    files = {"model.onnx": onnxmodels.external(where, onnxmodels.external_tensor(**said)), "w.bin": W}
    if said["location"] == "*/_ORT_MEM_ADDR_/*":
        files["*/_ORT_MEM_ADDR_/*"] = bytes(8192)
    with pytest.raises(Invalid, match="external data"):
        OnnxRuntime.load(files, Settings())
    assert outside_of_files == []


@pytest.mark.parametrize("dims", [(-1,), (2**40,), (2**32, 2**32), (1,) * 70])
def test_external_data_with_a_shape_that_it_cannot_have_is_refused(dims: tuple[int, ...]) -> None:
    outside = onnxmodels.external_tensor(location="w.bin", dims=dims)
    files = {"model.onnx": onnxmodels.external("initializer", outside), "w.bin": W}
    with pytest.raises(Invalid, match="external data"):
        OnnxRuntime.load(files, Settings())


def test_threads_and_providers_are_those_of_the_configuration() -> None:
    assert load(onnxmodels.scale(2), configured(threads=2)).devices == ("CPUExecutionProvider",)
    with pytest.raises(Invalid, match="NopeExecutionProvider"):
        load(onnxmodels.scale(2), configured(providers=(("NopeExecutionProvider", {}),)))


def test_options_that_name_files_are_for_trusted_configurations() -> None:
    chosen = (("CPUExecutionProvider", {"trt_engine_cache_path": "/tmp"}),)
    with pytest.raises(Invalid, match="trusted sources only"):
        load(onnxmodels.scale(2), configured(providers=chosen))


def test_gpus_that_are_not_there_leave_one_session_on_the_cpu() -> None:
    runtime = load(onnxmodels.scale(2), Settings(gpus=(0, 1)))
    if "CUDAExecutionProvider" not in runtime.devices:
        assert runtime.devices == ("CPUExecutionProvider",)
    assert runtime.run({"x": np.ones((1, 2), np.float32)}, ["y"])[0].tolist() == [[2, 2]]


def test_unknown_providers_of_the_server_are_found_without_a_model() -> None:
    OnnxRuntime.check(Settings())
    with pytest.raises(Invalid, match="NopeExecutionProvider"):
        OnnxRuntime.check(Settings(providers=(("NopeExecutionProvider", {}),)))


def configured(**more: Any) -> Settings:
    return Settings(configuration=Configuration(name="m", backend="onnx", **more))
