"""ONNX models in ONNX Runtime."""

import ctypes
import itertools
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from tidemill.errors import Internal, Invalid
from tidemill.inference.calls import Array
from tidemill.inference.runtimes import _onnxproviders as providers
from tidemill.inference.runtimes._onnxfile import Whole, gather
from tidemill.inference.runtimes.base import Provider, Runtime, Settings
from tidemill.inference.signatures import FREE, Signature, TensorSpec
from tidemill.tensors import codec
from tidemill.tensors.dtypes import DataType

_TYPES = {
    "tensor(bool)": DataType.BOOL,
    "tensor(uint8)": DataType.UINT8,
    "tensor(uint16)": DataType.UINT16,
    "tensor(uint32)": DataType.UINT32,
    "tensor(uint64)": DataType.UINT64,
    "tensor(int8)": DataType.INT8,
    "tensor(int16)": DataType.INT16,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
    "tensor(float16)": DataType.FP16,
    "tensor(float)": DataType.FP32,
    "tensor(double)": DataType.FP64,
    "tensor(bfloat16)": DataType.BF16,
    "tensor(string)": DataType.BYTES,
}
# ONNX Runtime's own exceptions share no base class; its Python layer adds two of the language's.
_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
)
_WEIGHTS = frozenset({"", ".data", ".onnx_data", ".bin", ".raw", ".weight", ".weights", ".bias"})
"""Endings of files of weights: exporters write one for all, or one for each tensor with the tensor's name."""
_BFLOAT16 = 16
_SILENT = 4


class OnnxRuntime(Runtime):
    """One ONNX model. Its weights lie in it or in files beside it, and its operators are those of ONNX Runtime.

    Strings are UTF-8 in ONNX Runtime: BYTES inputs must be. On several GPUs there is one session for each, and runs
    take turns on them.
    """

    platform = "onnxruntime_onnx"
    stateless = True

    def __init__(self, sessions: "Sequence[onnxruntime.InferenceSession]") -> None:
        self._session = sessions[0]
        self._others = tuple(sessions[1:])
        self._turn = itertools.cycle(sessions)
        self._signature = Signature(_specs(self._session.get_inputs()), _specs(self._session.get_outputs()))
        every = (*self._signature.inputs, *self._signature.outputs)
        self._narrow = any(spec.datatype is DataType.BF16 for spec in every)
        self._texts = frozenset(spec.name for spec in self._signature.inputs if spec.datatype is DataType.BYTES)

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        """`model.onnx`, or else the only file with that ending; and files beside or below it that may hold its weights.

        Raises:
            Invalid: there is no model, or more than one.
        """
        model = _model_of(paths)
        return (model, *(path for path in paths if path != model and _may_hold_weights(path, model)))

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        """The model in these files.

        Raises:
            Invalid: it is broken, keeps weights elsewhere, needs operators that are not there, or has inputs or
                outputs that are no tensors; or an execution provider is unknown.
        """
        whole = gather(_model_of(list(files)), files)
        wanted = providers.wanted(settings, onnxruntime.get_available_providers())
        try:
            first, *others = settings.gpus or (None,)
            sessions = [_session(whole, settings, providers.on(first, wanted))]
            if not providers.is_gpu(sessions[0].get_providers()[0]):
                others = []  # fallen back to the CPU, where one session is as good as several
            return cls([*sessions, *(_session(whole, settings, providers.on(gpu, wanted)) for gpu in others)])
        except _ERRORS as error:
            raise Invalid(f"ONNX Runtime refuses the model: {_first_line(error)}", reason="MODEL_REFUSED") from error

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Return when every execution provider of the server's is one that this build of ONNX Runtime has.

        Raises:
            Invalid: one is unknown.
        """
        providers.wanted(settings, onnxruntime.get_available_providers())

    @property
    def signature(self) -> Signature:
        """Inputs and outputs as the file declares them."""
        return self._signature

    @property
    def devices(self) -> tuple[str, ...]:
        """The execution providers that each session got, which may be fewer than were asked for."""
        return tuple(name for session in (self._session, *self._others) for name in session.get_providers())

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """The named outputs, in this order.

        Raises:
            Invalid: BYTES that are not UTF-8, or shapes that do not fit each other.
            Internal: an operator failed.
        """
        session = next(self._turn) if self._others else self._session
        feeds = {name: _decoded(name, array) for name, array in inputs.items()} if self._texts else inputs
        try:
            if self._narrow:
                return self._run_values(session, feeds, outputs)
            found: list[Array] = session.run(outputs, feeds)
        except _state.InvalidArgument as error:
            raise Invalid(f"the model refuses the inputs: {_first_line(error)}", reason="INPUTS_REFUSED") from error
        except _ERRORS as error:
            raise Internal("the model failed on these inputs", reason="EXECUTION_FAILED") from error
        return found

    def _run_values(
        self, session: "onnxruntime.InferenceSession", inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> list[Array]:
        """`run` for models with bfloat16, which numpy does not know."""
        specs = self._signature.input
        values = {name: _to_value(array, specs[name].datatype) for name, array in inputs.items()}
        return [_from_value(value) for value in session.run_with_ort_values(outputs, values)]

    def close(self) -> None:
        """Free the sessions."""
        del self._session, self._others, self._turn


def _model_of(paths: Sequence[str]) -> str:
    """The model's file. Raises Invalid."""
    found = [path for path in paths if path.endswith(".onnx")]
    if "model.onnx" in found:
        return "model.onnx"
    if len(found) != 1:
        raise Invalid(
            f"an onnx artifact needs model.onnx or exactly one .onnx file, not {len(found)}", reason="MODEL_REFUSED"
        )
    return found[0]


def _may_hold_weights(path: str, model: str) -> bool:
    """Whether exporters give files of weights such a name. Which of them the model uses, stands in the model."""
    folder = posixpath.dirname(model)
    if folder and not path.startswith(f"{folder}/"):
        return False
    name, ending = posixpath.basename(path), posixpath.splitext(path)[1]
    return name.startswith(posixpath.basename(model)) or ending in _WEIGHTS


def _session(whole: Whole, settings: Settings, chosen: Sequence[Provider]) -> "onnxruntime.InferenceSession":
    options = _options(settings)
    if whole.files:
        names, contents = list(whole.files), list(whole.files.values())
        options.add_external_initializers_from_files_in_memory(names, contents, list(map(len, contents)))
    return onnxruntime.InferenceSession(whole.data, options, providers=[(name, dict(own)) for name, own in chosen])


def _options(settings: Settings) -> "onnxruntime.SessionOptions":
    options = onnxruntime.SessionOptions()
    own = settings.configuration.threads if settings.configuration is not None else 0
    options.intra_op_num_threads = own or settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT  # every error is raised as well
    # Otherwise bytes in ONNX Runtime's own format would be taken too, and those are not checked here.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _specs(arguments: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """Raises Invalid when one is no tensor of a known type."""
    for argument in arguments:
        if argument.type not in _TYPES:
            raise Invalid(f"{argument.name!r} is of type {argument.type}, which cannot be sent", reason="MODEL_REFUSED")
    return tuple(
        TensorSpec(
            argument.name,
            _TYPES[argument.type],
            tuple(dimension if isinstance(dimension, int) else FREE for dimension in argument.shape),
        )
        for argument in arguments
    )


def _decoded(name: str, array: Array) -> Array:
    if array.dtype != object:
        return array
    try:
        texts = np.array([element.decode() for element in array.ravel()], dtype=object)
    except UnicodeDecodeError as error:
        raise Invalid(f"input {name!r} must be UTF-8, as ONNX asks of strings", reason="NOT_UTF8") from error
    return texts.reshape(array.shape)


def _to_value(array: Array, datatype: DataType) -> "onnxruntime.OrtValue":
    if datatype is not DataType.BF16:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    halves = np.frombuffer(codec.encode(array, DataType.BF16), "<u2").reshape(array.shape)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(halves, _BFLOAT16)


def _from_value(value: "onnxruntime.OrtValue") -> Array:
    if value.element_type() != _BFLOAT16:
        found: Array = value.numpy()
        return found
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return codec.decode(DataType.BF16, value.shape(), data)


def _first_line(error: Exception) -> str:
    """What the error says, without ONNX Runtime's own prefix and source files."""
    text = str(error).strip().split("\n")[0]
    return (text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text)[:300]
