"""What PyTorch runtimes share: tensors to and from numpy, devices, threads, and one way to run."""

import itertools
import zipfile
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch

from tidemill.errors import Internal, Invalid
from tidemill.inference.calls import Array
from tidemill.inference.configuration import BATCH, Configuration, TensorConfiguration
from tidemill.inference.runtimes.base import Runtime, Settings
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.tensors.dtypes import DataType

TYPES = {
    torch.bool: DataType.BOOL,
    torch.uint8: DataType.UINT8,
    torch.uint16: DataType.UINT16,
    torch.uint32: DataType.UINT32,
    torch.uint64: DataType.UINT64,
    torch.int8: DataType.INT8,
    torch.int16: DataType.INT16,
    torch.int32: DataType.INT32,
    torch.int64: DataType.INT64,
    torch.float16: DataType.FP16,
    torch.float32: DataType.FP32,
    torch.float64: DataType.FP64,
    torch.bfloat16: DataType.BF16,
}
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)
"""What PyTorch raises about a file or inputs that it does not like; it has no class of its own for them."""
_THREADS = "INTRA_OP_THREAD_COUNT"
_INFERENCE_MODE = "INFERENCE_MODE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a model is run, from the server's settings and the version's configuration.

    Args:
        devices: one copy of the model lies on each.
        threads: inside of one run.
        inference_mode: whether tensors may be made without what autograd needs; a model that calls autograd itself
            says no.
    """

    devices: tuple[torch.device, ...]
    threads: int
    inference_mode: bool

    @classmethod
    def of(cls, settings: Settings) -> "Options":
        """Raises Invalid for a GPU that is not there, or a parameter with no meaning."""
        configuration = settings.configuration
        parameters = configuration.parameters if configuration is not None else {}
        own = configuration.threads if configuration is not None else 0
        told = parameters.get(_THREADS, "0")
        if not told.isdecimal():
            raise Invalid(f"parameter {_THREADS} must be a number, not {told[:40]!r}", reason="MODEL_REFUSED")
        mode = parameters.get(_INFERENCE_MODE, "true").lower()
        if mode not in ("true", "false"):
            raise Invalid(f"parameter {_INFERENCE_MODE} must be true or false", reason="MODEL_REFUSED")
        return cls(
            devices=_devices(settings.gpus),
            threads=own or int(told) or settings.threads,
            inference_mode=mode == "true",
        )


class TorchRuntime(Runtime):
    """One PyTorch model, with a copy on each of its devices; runs take turns on them.

    Args:
        signature: what it takes and gives, in the names of requests.
        options: how it is run.
        state: tensors that belong to the model: an output that is one of them is copied.
    """

    def __init__(self, signature: Signature, options: Options, state: Iterable[torch.Tensor]) -> None:
        for spec in (*signature.inputs, *signature.outputs):
            if spec.datatype is DataType.BYTES:
                raise Invalid(f"{spec.name!r} is BYTES; PyTorch models take no strings", reason="MODEL_REFUSED")
        self._signature = signature
        self._options = options
        self._state = frozenset(tensor.untyped_storage().data_ptr() for tensor in state)
        self._turn = itertools.count()

    @property
    def signature(self) -> Signature:
        """As the file and the configuration say."""
        return self._signature

    @property
    def devices(self) -> tuple[str, ...]:
        """`CPU`, or `cuda:N` for each copy."""
        return tuple("CPU" if device.type == "cpu" else str(device) for device in self._options.devices)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """The named outputs, in this order.

        Raises:
            Invalid: the model's own guards refuse the shapes.
            Internal: it failed, or gave something other than it declares.
        """
        turn = next(self._turn) % len(self._options.devices)
        device = self._options.devices[turn]
        specs = self._signature.input
        # The number is one for each thread that runs; setting it also makes it that of threads that torch sees anew.
        if torch.get_num_threads() != self._options.threads:
            torch.set_num_threads(self._options.threads)
        try:
            with torch.inference_mode() if self._options.inference_mode else torch.no_grad():
                tensors = {name: _tensor(array, specs[name].datatype, device) for name, array in inputs.items()}
                found = self._call(turn, tensors)
                return [self._array(name, found) for name in outputs]
        except ERRORS as error:
            raise Internal("the model failed on these inputs", reason="EXECUTION_FAILED") from error

    @abstractmethod
    def _call(self, copy: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, object]:
        """All outputs by name, made by the copy with this index. Raises Invalid or one of `ERRORS`."""

    def _array(self, name: str, found: Mapping[str, object]) -> Array:
        tensor, spec = found.get(name), self._signature.output[name]
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"output {name!r} is no tensor but {type(tensor).__name__}")
        if TYPES.get(tensor.dtype) is not spec.datatype:
            raise TypeError(f"output {name!r} is {tensor.dtype}, but {spec.datatype.name} is declared")
        if tensor.untyped_storage().data_ptr() in self._state:
            tensor = tensor.clone()
        if tensor.dtype is torch.bfloat16:
            tensor = tensor.float()
        array: Array = tensor.detach().cpu().contiguous().numpy()
        return array


def check_trusted(settings: Settings) -> None:
    """Return when the files may hold code. Raises Invalid."""
    if not settings.trusted:
        raise Invalid(
            "a PyTorch model holds code: it is loaded from trusted sources only, which are the operator's repository "
            "and exports of this platform",
            reason="UNTRUSTED",
        )


def check_archive(data: bytes) -> None:
    """Return when this is a whole archive, as PyTorch writes all models. Raises Invalid."""
    if not zipfile.is_zipfile(BytesIO(data)):
        raise Invalid("the file is not a whole PyTorch archive", reason="MODEL_REFUSED")


def select_file(paths: Sequence[str], name: str) -> tuple[str, ...]:
    """`name`, or else the only file with its ending.

    Raises:
        Invalid: there is none, or more than one.
    """
    ending = name[name.rindex(".") :]
    found = [path for path in paths if path.endswith(ending)]
    if name in found:
        return (name,)
    if len(found) != 1:
        raise Invalid(f"needs {name} or exactly one {ending} file, not {len(found)}", reason="MODEL_REFUSED")
    return tuple(found)


def refused(error: Exception) -> Invalid:
    """What PyTorch says about a file that it cannot load."""
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return Invalid(f"PyTorch refuses the model: {text[:300]}", reason="MODEL_REFUSED")


def spec_of(tensor: TensorConfiguration, configuration: Configuration) -> TensorSpec:
    """An input or output as the model sees it: with its reshaped dimensions, and that of the batch."""
    dims = tensor.dims if tensor.reshape is None else tensor.reshape
    return TensorSpec(tensor.name, tensor.datatype, (*((BATCH,) if configuration.max_batch else ()), *dims))


def numbered(names: Sequence[str]) -> list[int] | None:
    """The numbers of names that all end in `__<number>`; None when one does not, or two have the same."""
    parts = [name.rpartition("__") for name in names]
    if not all(before and number.isdecimal() and len(number) < 4 for before, _, number in parts):
        return None
    numbers = [int(number) for *_, number in parts]
    return numbers if len(set(numbers)) == len(numbers) else None


def places(names: Sequence[str], own: Sequence[str]) -> list[int]:
    """Which of the model's `own` tensors each configured name means: by name, by its number, or by its place.

    The order of these rules is that of Triton's PyTorch backend.

    Raises:
        ValueError: a number is too large, or there are more names than tensors.
    """
    if set(names) <= set(own):
        return [own.index(name) for name in names]
    found = numbered(names)
    found = list(range(len(names))) if found is None else found
    if found and max(found) >= len(own):
        raise ValueError(f"{', '.join(names)} do not fit {len(own)} tensors ({', '.join(own)})")
    return found


def _devices(gpus: Sequence[int]) -> tuple[torch.device, ...]:
    if not gpus or not torch.cuda.is_available():
        return (torch.device("cpu"),)
    count = torch.cuda.device_count()
    if missing := [gpu for gpu in gpus if not 0 <= gpu < count]:
        raise Invalid(f"there is no GPU {missing[0]}; there are {count}", reason="MODEL_REFUSED")
    return tuple(torch.device("cuda", gpu) for gpu in gpus)


def _tensor(array: Array, datatype: DataType, device: torch.device) -> torch.Tensor:
    """A tensor with its own memory: a model may change its inputs, and others may hold the array."""
    tensor = torch.from_numpy(np.array(array, order="C"))
    if datatype is DataType.BF16:
        tensor = tensor.to(torch.bfloat16)
    return tensor.to(device)
