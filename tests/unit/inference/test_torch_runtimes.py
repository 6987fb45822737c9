"""PyTorch models behind the interface of runtimes."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Self

import numpy as np
import pytest
import torch

from tests.support import torchmodels
from tests.support.torchmodels import exported, rows, scripted, traced
from tidemill.errors import Internal, Invalid
from tidemill.inference.calls import Array
from tidemill.inference.configuration import Configuration, TensorConfiguration
from tidemill.inference.runtimes._torch import Options, TorchRuntime
from tidemill.inference.runtimes.base import Settings
from tidemill.inference.runtimes.torchexport import TorchexportRuntime
from tidemill.inference.runtimes.torchscript import TorchscriptRuntime
from tidemill.inference.signatures import FREE, Signature, TensorSpec
from tidemill.tensors.dtypes import DataType

AUTO = torch.export.Dim.AUTO
X = np.array([[1, 2], [3, 4]], np.float32)
ARRAYS: dict[DataType, Array] = {
    DataType.BOOL: np.array([[True, False]]),
    DataType.UINT8: np.array([[0, 255]], np.uint8),
    DataType.UINT16: np.array([[0, 65535]], np.uint16),
    DataType.UINT32: np.array([[0, 2**32 - 1]], np.uint32),
    DataType.UINT64: np.array([[0, 2**64 - 1]], np.uint64),
    DataType.INT8: np.array([[-128, 127]], np.int8),
    DataType.INT16: np.array([[-1, 5]], np.int16),
    DataType.INT32: np.array([[-1, 5]], np.int32),
    DataType.INT64: np.array([[-(2**63), 2**63 - 1]], np.int64),
    DataType.FP16: np.array([[0.5, 65504]], np.float16),
    DataType.FP32: np.array([[0.1, -3e38]], np.float32),
    DataType.FP64: np.array([[0.1, 1e300]], np.float64),
    DataType.BF16: np.array([[1.5, -(2.0**100)]], np.float32),
}


class Sums(torch.nn.Module):
    """(a + b, a - b), or with a scale (scale * (a + b), a - b)."""

    def forward(
        self, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = a + b
        if scale is not None:
            total = total * scale
        return total, a - b


class Dictionary(torch.nn.Module):
    """{"total": a + b, "difference": a - b} of {"a": a, "b": b}."""

    def forward(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"total": tensors["a"] + tensors["b"], "difference": tensors["a"] - tensors["b"]}


class Pieces(torch.nn.Module):
    """[x, 2 * x]."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, 2 * x]


class Stateful(torch.nn.Module):
    """Gives its own weight, and makes its input zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.zero_()
        return self.weight


class Product(torch.nn.Module):
    """a @ b."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b


class Threads(TorchRuntime):
    """Says how many threads a run has."""

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        return tuple(paths)

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        specs = (TensorSpec("n", DataType.INT64, ()),)
        return cls(Signature(specs, specs), Options.of(settings), [])

    def _call(self, copy: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, object]:
        return {"n": torch.tensor(torch.get_num_threads())}


def configuration(
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    kind: DataType = DataType.FP32,
    dims: tuple[int, ...] = (-1, 2),
    **more: Any,
) -> Configuration:
    def tensors(names: Sequence[str]) -> tuple[TensorConfiguration, ...]:
        return tuple(TensorConfiguration(name=name, datatype=kind, dims=dims) for name in names)

    return Configuration(name="m", backend="torch", inputs=tensors(inputs), outputs=tensors(outputs), **more)


def script(module: torch.nn.Module, *args: Any, **kwargs: Any) -> TorchscriptRuntime:
    settings = Settings(trusted=True, configuration=configuration(*args, **kwargs))
    return TorchscriptRuntime.load({"model.pt": scripted(module)}, settings)


def export(data: bytes, found: Configuration | None = None) -> TorchexportRuntime:
    return TorchexportRuntime.load({"model.pt2": data}, Settings(trusted=True, configuration=found))


@cache
def exported_sums() -> bytes:
    return exported(Sums(), (rows(3, 2), rows(3, 2)), ({0: AUTO}, {0: AUTO}))


@pytest.mark.parametrize("kind", ARRAYS)
def test_every_element_type_goes_in_and_out(kind: DataType) -> None:
    runtime = script(torchmodels.Identity(), ["x"], ["y"], kind=kind)
    (found,) = runtime.run({"x": ARRAYS[kind]}, ["y"])
    assert found.dtype == kind.numpy
    np.testing.assert_array_equal(found, ARRAYS[kind])


@pytest.mark.parametrize("kind", [kind for kind in ARRAYS if kind in (DataType.BF16, DataType.FP16, DataType.BOOL)])
def test_exported_models_know_their_types(kind: DataType) -> None:
    types = {DataType.BF16: torch.bfloat16, DataType.FP16: torch.float16, DataType.BOOL: torch.bool}
    runtime = export(exported(torchmodels.Identity(), (rows(1, 2).to(types[kind]),)))
    assert runtime.signature.inputs == (TensorSpec("x", kind, (1, 2)),)
    (found,) = runtime.run({"x": ARRAYS[kind]}, ["OUTPUT__0"])
    np.testing.assert_array_equal(found, ARRAYS[kind])


def test_strings_are_refused() -> None:
    with pytest.raises(Invalid, match="no strings"):
        script(torchmodels.Identity(), ["x"], ["y"], kind=DataType.BYTES)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["a", "b"], ["OUTPUT__0", "OUTPUT__1"]),
        (["b", "a"], ["total", "difference"]),
        (["INPUT__0", "INPUT__1"], ["total", "difference"]),
        (["right__1", "left__0"], ["minus__1", "plus__0"]),
        (["first", "second"], ["total", "difference"]),
    ],
)
@pytest.mark.parametrize("kind", ["script", "export"])
def test_tensors_are_found_by_name_by_number_or_by_place(kind: str, inputs: list[str], outputs: list[str]) -> None:
    if kind == "script":
        runtime: Any = script(Sums(), inputs, outputs)
    else:
        runtime = export(exported_sums(), configuration(inputs, outputs))
    assert [spec.name for spec in runtime.signature.inputs] == inputs
    values = {name: X if name in ("a", "INPUT__0", "left__0", "first") else X + 1 for name in inputs}
    total, difference = sorted(outputs, key=lambda name: name in ("difference", "OUTPUT__1", "minus__1"))
    found = runtime.run(values, [difference, total])
    np.testing.assert_array_equal(found[0], np.full((2, 2), -1))
    np.testing.assert_array_equal(found[1], 2 * X + 1)


def test_optional_arguments_may_be_configured_or_not() -> None:
    runtime = script(Sums(), ["a", "b", "scale"], ["total"])
    assert runtime.run({"a": X, "b": X, "scale": X}, ["total"])[0].tolist() == (2 * X * X).tolist()
    assert runtime.run({"a": X, "b": X}, ["total"])[0].tolist() == (2 * X).tolist()


def test_dictionaries_have_tensors_by_key() -> None:
    runtime = script(Dictionary(), ["b", "a"], ["difference", "total"])
    found = runtime.run({"a": X, "b": X}, ["total", "difference"])
    assert [array.tolist() for array in found] == [(2 * X).tolist(), (0 * X).tolist()]


def test_lists_have_tensors_by_place() -> None:
    runtime = script(Pieces(), ["x"], ["OUTPUT__1", "OUTPUT__0"])
    assert runtime.run({"x": X}, ["OUTPUT__1"])[0].tolist() == (2 * X).tolist()


def test_exported_dictionaries_name_their_tensors() -> None:
    shapes = ({"a": {0: AUTO}, "b": {0: AUTO}},)
    runtime = export(exported(Dictionary(), ({"b": rows(3, 2), "a": rows(3, 2)},), shapes))
    assert {spec.name for spec in runtime.signature.inputs} == {"a", "b"}
    assert set(runtime.signature.output_names) == {"total", "difference"}
    assert runtime.run({"a": X, "b": X}, ["total"])[0].tolist() == (2 * X).tolist()
    with pytest.raises(Invalid, match="refuses the inputs"):
        runtime.run({"a": X, "b": X[:1]}, ["total"])


def test_an_exported_model_tells_its_signature() -> None:
    runtime = export(exported_sums())
    spec = (DataType.FP32, (FREE, 2))
    assert runtime.signature.inputs == (TensorSpec("a", *spec), TensorSpec("b", *spec))
    assert runtime.signature.outputs == (TensorSpec("OUTPUT__0", *spec), TensorSpec("OUTPUT__1", *spec))


def test_the_signature_of_a_script_has_the_dimension_of_the_batch_and_reshaped_ones() -> None:
    x = TensorConfiguration(name="x", datatype=DataType.FP32, dims=(4,), reshape=(2, 2))
    y = TensorConfiguration(name="y", datatype=DataType.FP32, dims=(2, 2))
    found = Configuration(name="m", backend="torch", max_batch=4, inputs=(x,), outputs=(y,))
    data = {"model.pt": scripted(torchmodels.Scale())}
    runtime = TorchscriptRuntime.load(data, Settings(trusted=True, configuration=found))
    assert runtime.signature.inputs == (TensorSpec("x", DataType.FP32, (-1, 2, 2)),)


def test_exported_models_load_at_the_same_time() -> None:
    data = exported_sums()
    with ThreadPoolExecutor(4) as pool:
        runtimes = list(pool.map(export, [data] * 8))
    assert {runtime.signature.inputs for runtime in runtimes} == {runtimes[0].signature.inputs}


def test_scripts_load_at_the_same_time() -> None:
    data = traced(Sums(), rows(1, 2), rows(1, 2))
    with ThreadPoolExecutor(4) as pool:
        runtimes = list(pool.map(lambda _: TorchscriptRuntime.load({"m.pt": data}, Settings(trusted=True)), range(8)))
    assert {runtime.signature.inputs for runtime in runtimes} == {runtimes[0].signature.inputs}


class Flat(torch.nn.Module):
    """All elements in one row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 4)


class Mean(torch.nn.Module):
    """The mean, without dimensions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean()


def from_trace(*args: Any, configured: Configuration | None = None, strict: bool = True) -> TorchscriptRuntime:
    data = {"model.pt": traced(*args, strict=strict)}
    return TorchscriptRuntime.load(data, Settings(trusted=True, configuration=configured))


def test_a_traced_model_tells_its_signature() -> None:
    runtime = from_trace(Sums(), rows(1, 2), torch.ones(1, 2, dtype=torch.float64))
    assert runtime.signature.inputs == (
        TensorSpec("a", DataType.FP32, (FREE, 2)),
        TensorSpec("b", DataType.FP64, (FREE, 2)),
    )
    assert runtime.signature.outputs == (
        TensorSpec("OUTPUT__0", DataType.FP64, (FREE, 2)),
        TensorSpec("OUTPUT__1", DataType.FP64, (FREE, 2)),
    )
    given: dict[str, Array] = {"a": X, "b": X.astype(np.float64)}
    assert [array.tolist() for array in runtime.run(given, ["OUTPUT__1", "OUTPUT__0"])] == [
        (X - X).tolist(),
        (X + X).tolist(),
    ]


def test_a_traced_model_whose_rows_are_fixed_has_the_shapes_of_its_trace() -> None:
    assert from_trace(Flat(), rows(1, 2, 2)).signature == Signature(
        (TensorSpec("x", DataType.FP32, (1, 2, 2)),), (TensorSpec("OUTPUT__0", DataType.FP32, (1, 4)),)
    )
    assert from_trace(Mean(), rows(2)).signature.outputs == (TensorSpec("OUTPUT__0", DataType.FP32, ()),)


def test_a_traced_dictionary_names_its_tensors() -> None:
    runtime = from_trace(torchmodels.Named(), rows(1, 2), strict=False)
    assert runtime.signature.outputs == (TensorSpec("y", DataType.FP32, (FREE, 2)),)
    assert runtime.run({"x": X}, ["y"])[0].tolist() == (2 * X).tolist()


def test_what_is_configured_counts_for_a_traced_model_too() -> None:
    runtime = from_trace(Sums(), rows(1, 2), rows(1, 2), configured=configuration(["b", "a"], ["OUTPUT__1"]))
    assert list(runtime.signature.input) == ["b", "a"]
    assert runtime.run({"a": X, "b": 3 * X}, ["OUTPUT__1"])[0].tolist() == (-2 * X).tolist()


@pytest.mark.parametrize(
    ("inputs", "outputs", "problem"),
    [
        (["a"], ["t"], "no input is configured for the argument 'b'"),
        (["a", "b", "c", "d"], ["t"], "do not fit"),
        (["INPUT__0", "INPUT__7"], ["t"], "do not fit"),
        (["a", "b"], ["x", "y", "z"], "do not fit"),
        (["a", "b"], ["OUTPUT__2"], "do not fit"),
        ([], [], r"forward is \(a: Tensor, b: Tensor, scale: Optional\[Tensor\]\) -> Tuple\[Tensor, Tensor\]"),
    ],
)
def test_a_configuration_that_does_not_fit_a_script_is_refused(
    inputs: list[str], outputs: list[str], problem: str
) -> None:
    with pytest.raises(Invalid, match=problem):
        script(Sums(), inputs, outputs)


@pytest.mark.parametrize(("inputs", "outputs"), [(["a"], ["t"]), (["a", "b"], ["OUTPUT__2"])])
def test_a_configuration_that_does_not_fit_an_exported_model_is_refused(inputs: list[str], outputs: list[str]) -> None:
    with pytest.raises(Invalid, match="the configuration"):
        export(exported_sums(), configuration(inputs, outputs))


@pytest.mark.parametrize("kind", [TorchscriptRuntime, TorchexportRuntime])
def test_only_trusted_files_are_opened(kind: Any) -> None:
    with pytest.raises(Invalid, match="trusted sources only"):
        kind.load({"model": b""}, Settings())


def test_outputs_of_another_type_than_declared_are_a_fault() -> None:
    runtime = script(torchmodels.Identity(), ["x"], ["y"])
    with pytest.raises(Internal) as failed:
        runtime.run({"x": X.astype(np.float64)}, ["y"])
    assert "float64" not in failed.value.message

    class Cast(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.double()

    with pytest.raises(Internal) as failed:
        script(Cast(), ["x"], ["y"]).run({"x": X}, ["y"])
    assert "float64" in str(failed.value.__cause__)


def test_an_operator_that_fails_is_a_fault_with_its_cause() -> None:
    runtime = script(Product(), ["a", "b"], ["y"])
    with pytest.raises(Internal) as failed:
        runtime.run({"a": X, "b": np.ones((3, 2), np.float32)}, ["y"])
    assert "shapes cannot be multiplied" in str(failed.value.__cause__)
    assert failed.value.reason == "EXECUTION_FAILED"


def test_models_that_change_inputs_or_give_their_own_weights_share_nothing() -> None:
    runtime = script(Stateful(), ["x"], ["y"], dims=(2,))
    x = np.ones(2, np.float32)
    (y,) = runtime.run({"x": x}, ["y"])
    assert x.tolist() == [1, 1]
    y[:] = 7
    assert runtime.run({"x": x}, ["y"])[0].tolist() == [1, 1]


def test_runs_have_the_threads_of_their_model_whoever_else_runs() -> None:
    own = configuration(["n"], ["n"], parameters={"INTRA_OP_THREAD_COUNT": "2"})
    one = Threads.load({}, Settings())
    two = Threads.load({}, Settings(threads=2))
    other = Threads.load({}, Settings(configuration=own))
    jobs = [(one, 1), (two, 2), (other, 2)] * 20
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: int(job[0].run({"n": np.array(0)}, ["n"])[0]), jobs))
    assert found == [count for _, count in jobs]


@pytest.mark.parametrize(
    "parameters", [{"INTRA_OP_THREAD_COUNT": "many"}, {"INTRA_OP_THREAD_COUNT": "-1"}, {"INFERENCE_MODE": "perhaps"}]
)
def test_parameters_without_meaning_are_refused(parameters: dict[str, str]) -> None:
    with pytest.raises(Invalid, match="must be"):
        script(torchmodels.Scale(), ["x"], ["y"], parameters=parameters)


def test_gpus_that_are_not_there_leave_the_cpu() -> None:
    if torch.cuda.is_available():
        settings = Settings(trusted=True, gpus=(0,), configuration=configuration(["x"], ["y"]))
        assert TorchscriptRuntime.load({"m": scripted(torchmodels.Scale())}, settings).devices == ("cuda:0",)
        return
    settings = Settings(trusted=True, gpus=(3,), configuration=configuration(["x"], ["y"]))
    assert TorchscriptRuntime.load({"m": scripted(torchmodels.Scale())}, settings).devices == ("CPU",)


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [(["card.md", "net.pt"], "net.pt"), (["model.pt", "other.pt"], "model.pt"), (["a.pt", "b.pt"], None)],
)
def test_selects_the_model_file(paths: list[str], chosen: str | None) -> None:
    if chosen is not None:
        assert TorchscriptRuntime.select(paths) == (chosen,)
        return
    with pytest.raises(Invalid, match=r"model\.pt"):
        TorchscriptRuntime.select(paths)
