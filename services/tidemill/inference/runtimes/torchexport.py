"""Models that `torch.export` saved, in PyTorch."""

import logging
import threading
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Self

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from tidemill.errors import Invalid
from tidemill.inference.configuration import Configuration, TensorConfiguration
from tidemill.inference.runtimes import _torch
from tidemill.inference.runtimes._torch import ERRORS, TYPES, Options, TorchRuntime
from tidemill.inference.runtimes.base import Settings
from tidemill.inference.signatures import FREE, Signature, TensorSpec

LOG = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()  # PyTorch reads an archive with state that belongs to the whole process


class TorchexportRuntime(TorchRuntime):
    """One exported program. Types and shapes stand in its graph, and dimensions that were exported as dynamic are free.

    Inputs have the names of `forward`'s arguments, or of the keys where it takes one dictionary. Outputs have the names
    of the keys where it gives a dictionary, or else `OUTPUT__0` and so on. A configuration may call them otherwise: by
    number (`INPUT__0`) or in the same order.
    """

    platform = "torch_aoti"

    def __init__(self, programs: Sequence["_Program"], signature: Signature, options: Options) -> None:
        super().__init__(signature, options, [tensor for program in programs for tensor in program.state])
        self._programs = list(programs)

    @classmethod
    def select(cls, paths: Sequence[str]) -> tuple[str, ...]:
        """`model.pt2`, or else the only file with that ending. Raises Invalid."""
        return _torch.select_file(paths, "model.pt2")

    @classmethod
    def load(cls, files: Mapping[str, bytes], settings: Settings) -> Self:
        """The model in the one file.

        Raises:
            Invalid: it is broken, or not from a trusted source; it takes or gives something other than tensors; or the
                configuration says something else than the file.
        """
        _torch.check_trusted(settings)
        (data,) = files.values()
        _torch.check_archive(data)
        options = Options.of(settings)
        try:
            with _one_at_a_time:
                exported = torch.export.load(BytesIO(data))
                programs = [_Program(_moved(exported, device), settings.configuration) for device in options.devices]
        except ERRORS as error:
            raise _torch.refused(error) from error
        return cls(programs, programs[0].signature, options)

    def _call(self, copy: int, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, object]:
        return self._programs[copy].run(tensors)

    def close(self) -> None:
        """Free the model."""
        self._programs.clear()


class _Program:
    """An exported program on one device, and where its inputs and outputs lie in what it is called with and gives.

    Raises:
        Invalid: one is no tensor that can be sent, or the configuration does not fit.
    """

    def __init__(self, exported: ExportedProgram, configuration: Configuration | None) -> None:
        self._module = exported.module()
        self.state = [*exported.state_dict.values(), *_tensors(exported.constants.values())]
        spec: Any = exported.call_spec.in_spec
        values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
        own, self._leaves = _inputs(exported, spec, values)
        self._input_spec = spec
        results = _outputs(exported, exported.call_spec.out_spec, values)
        declared = configuration.inputs if configuration is not None else ()
        given = configuration.outputs if configuration is not None else ()
        self.signature = Signature(
            _renamed(tuple(spec for spec, _ in own), declared, "input"),
            _renamed(tuple(spec for spec, _ in results), given, "output"),
        )
        self._inputs = _placed(self.signature.inputs, own, declared)
        self._outputs = _placed(self.signature.outputs, results, given)

    def run(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, object]:
        """All outputs by name.

        Raises:
            Invalid: the program's guards refuse the shapes.
        """
        leaves = list(self._leaves)
        for name, tensor in tensors.items():
            leaves[self._inputs[name]] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._input_spec)
        try:
            found = self._module(*args, **kwargs)
        except AssertionError as error:
            raise Invalid(f"the model refuses the inputs: {str(error)[:300]}", reason="INPUTS_REFUSED") from error
        parts = pytree.tree_leaves(found)
        return {name: parts[place] for name, place in self._outputs.items()}


Placed = list[tuple[TensorSpec, int]]


def _inputs(exported: ExportedProgram, tree: Any, values: Mapping[str, Any]) -> tuple[Placed, list[Any]]:
    """Each tensor that the program takes, with its place among the leaves of its arguments; and those leaves."""
    found: Placed = []
    leaves: list[Any] = []
    keys = _keys(tree.child(0).child(0)) if _one_argument(tree) else None
    for spec in exported.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        argument, place = spec.arg, len(leaves)
        leaves.append(argument.value if isinstance(argument, ConstantArgument) else None)
        if isinstance(argument, ConstantArgument):
            continue
        name = keys[place] if keys is not None else argument.name
        if not isinstance(argument, TensorArgument):
            raise Invalid(f"input {name!r} of the model is no tensor", reason="MODEL_REFUSED")
        found.append((_spec(name, values[argument.name]), place))
    return found, leaves


def _outputs(exported: ExportedProgram, tree: Any, values: Mapping[str, Any]) -> Placed:
    """Each tensor that the program gives, with its place among the leaves of its result."""
    found: Placed = []
    keys = _keys(tree)
    place = -1
    for spec in exported.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            continue
        place += 1
        if isinstance(spec.arg, TensorArgument):
            name = keys[place] if keys is not None else f"OUTPUT__{len(found)}"
            found.append((_spec(name, values[spec.arg.name]), place))
    return found


def _one_argument(tree: Any) -> bool:
    """Whether the only argument is a positional one."""
    return bool(tree.child(0).num_children == 1 and tree.child(1).num_children == 0)


def _keys(tree: Any) -> list[str] | None:
    """Names of the leaves where they are the values of one dictionary."""
    if tree.type is not dict or tree.num_leaves != tree.num_children:
        return None
    return [str(key) for key in tree.context]


def _spec(name: str, value: Any) -> TensorSpec:
    if not isinstance(value, torch.Tensor) or value.dtype not in TYPES:
        raise Invalid(f"{name!r} of the model is no tensor that can be sent", reason="MODEL_REFUSED")
    shape = tuple(dimension if isinstance(dimension, int) else FREE for dimension in value.shape)
    return TensorSpec(name, TYPES[value.dtype], shape)


def _renamed(
    specs: tuple[TensorSpec, ...], declared: Sequence[TensorConfiguration], what: str
) -> tuple[TensorSpec, ...]:
    """The tensors in the configuration's names and order, if it lists them."""
    if not declared:
        return specs
    names = [tensor.name for tensor in declared]
    own = [spec.name for spec in specs]
    try:
        chosen = _torch.places(names, own)
    except ValueError as error:
        raise Invalid(f"the configuration does not fit the model's {what}s: {error}", reason="MODEL_REFUSED") from error
    if what == "input" and (missing := [spec.name for place, spec in enumerate(specs) if place not in chosen]):
        raise Invalid(f"the configuration lacks the model's input {missing[0]!r}", reason="MODEL_REFUSED")
    return tuple(
        TensorSpec(name, specs[place].datatype, specs[place].shape) for name, place in zip(names, chosen, strict=True)
    )


def _placed(specs: tuple[TensorSpec, ...], own: Placed, declared: Sequence[TensorConfiguration]) -> dict[str, int]:
    """Where among the leaves each tensor of the signature lies."""
    names = [spec.name for spec in specs]
    chosen = _torch.places(names, [spec.name for spec, _ in own]) if declared else range(len(names))
    return {name: own[place][1] for name, place in zip(names, chosen, strict=True)}


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def _moved(exported: ExportedProgram, device: torch.device) -> ExportedProgram:
    return exported if device.type == "cpu" else move_to_device_pass(exported, str(device))
