"""The graph of an ensemble: which step gives what to which, and whether the models in it fit each other."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter

from tidemill.errors import Invalid
from tidemill.inference.configuration import Configuration, Step
from tidemill.inference.signatures import FREE, TensorSpec

_PLANS = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to be done for some outputs of an ensemble.

    Args:
        outputs: for each step to run, by its index, the model's outputs that are needed.
        waits: for each step to run, how many of its tensors other steps give.
        readers: for each tensor, the steps to run that read it.
        uses: for each tensor, how many steps read it, and whether it is asked for.
    """

    outputs: Mapping[int, tuple[str, ...]]
    waits: Mapping[int, int]
    readers: Mapping[str, tuple[int, ...]]
    uses: Mapping[str, int]


class Dataflow:
    """The steps of an ensemble and the tensors between them.

    Args:
        configuration: of the ensemble.

    Raises:
        Invalid: a tensor comes from nowhere or from several places, or steps wait for each other.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self.steps: tuple[Step, ...] = configuration.steps
        self._makers: dict[str, int] = {}
        given = configuration.signature.input
        for index, step in enumerate(self.steps):
            for tensor in step.outputs.values():
                if tensor in self._makers or tensor in given:
                    raise self._refused(f"tensor '{tensor}' comes from more than one place")
                self._makers[tensor] = index
        read = [tensor for step in self.steps for tensor in step.inputs.values()]
        for tensor in (*read, *configuration.signature.output):
            if tensor not in self._makers and tensor not in given:
                raise self._refused(f"tensor '{tensor}' comes from nowhere")
        self._before = {
            index: {self._makers[tensor] for tensor in step.inputs.values() if tensor in self._makers}
            for index, step in enumerate(self.steps)
        }
        try:
            TopologicalSorter(self._before).prepare()
        except CycleError as error:
            raise self._refused("its steps wait for each other") from error
        self.plan = lru_cache(_PLANS)(self._plan)

    def check(self, models: Sequence[Configuration]) -> None:
        """Return when these models can run as the steps, in their order.

        Raises:
            Invalid: one lacks a tensor, needs another, is decoupled, takes smaller batches than the ensemble; or two
                that share a tensor differ about it.
        """
        ensemble = self._configuration
        for step, model in zip(self.steps, models, strict=True):
            self._check_step(step, model)
        made = dict(ensemble.signature.input)
        for step, model in zip(self.steps, models, strict=True):
            for name, tensor in step.outputs.items():
                made[tensor] = model.signature.output[name]
        for step, model in zip(self.steps, models, strict=True):
            for name, tensor in step.inputs.items():
                self._check_same(made[tensor], model.signature.input[name], f"input '{name}' of model '{step.model}'")
        for spec in ensemble.signature.outputs:
            self._check_same(made[spec.name], spec, f"output '{spec.name}'")

    def _check_step(self, step: Step, model: Configuration) -> None:
        ensemble = self._configuration
        if model.decoupled:
            raise self._refused(f"model '{step.model}' is decoupled; a step must give one answer to each request")
        if 0 < model.max_batch < ensemble.max_batch:
            raise Invalid(
                f"ensemble '{ensemble.name}' allows maximum batch size {ensemble.max_batch}, but it contains model "
                f"'{step.model}' which only allows maximum batch size to be {model.max_batch}",
                reason="ENSEMBLE_REFUSED",
            )
        optional = {tensor.name for tensor in ensemble.inputs if tensor.optional}
        for name, tensor in step.inputs.items():
            if name not in model.signature.input:
                raise self._refused(f"model '{step.model}' has no input '{name}'")
            if tensor in optional and name in model.required:
                raise self._refused(f"input '{tensor}' is optional, but input '{name}' of model '{step.model}' is not")
        if missing := sorted(model.required - step.inputs.keys()):
            raise self._refused(f"input '{missing[0]}' of model '{step.model}' is not mapped")
        if unknown := [name for name in step.outputs if name not in model.signature.output]:
            raise self._refused(f"model '{step.model}' has no output '{unknown[0]}'")

    def _check_same(self, made: TensorSpec, read: TensorSpec, where: str) -> None:
        if made.datatype is not read.datatype:
            raise self._refused(
                f"{where} is {read.datatype.name}, but the tensor that it is mapped to {made.datatype.name}"
            )
        if not made.shape or not read.shape:
            return
        if len(made.shape) != len(read.shape) or any(
            FREE not in pair and pair[0] != pair[1] for pair in zip(made.shape, read.shape, strict=True)
        ):
            raise self._refused(
                f"{where} has shape {list(read.shape)}, but the tensor that it is mapped to {list(made.shape)}"
            )

    def _plan(self, wanted: frozenset[str]) -> Plan:
        """What has to be done for these outputs of the ensemble."""
        needed: set[int] = set()
        waiting = [self._makers[tensor] for tensor in wanted if tensor in self._makers]
        while waiting:
            index = waiting.pop()
            if index not in needed:
                needed.add(index)
                waiting += self._before[index]
        chosen = sorted(needed)
        readers: dict[str, list[int]] = {}
        for index in chosen:
            for tensor in set(self.steps[index].inputs.values()):
                readers.setdefault(tensor, []).append(index)
        return Plan(
            outputs={index: self._needed(index, readers.keys() | wanted) for index in chosen},
            waits={
                index: sum(1 for tensor in set(self.steps[index].inputs.values()) if tensor in self._makers)
                for index in chosen
            },
            readers={tensor: tuple(indices) for tensor, indices in readers.items()},
            uses=Counter({tensor: len(indices) for tensor, indices in readers.items()}) + Counter(wanted),
        )

    def _needed(self, index: int, tensors: Collection[str]) -> tuple[str, ...]:
        return tuple(name for name, tensor in self.steps[index].outputs.items() if tensor in tensors)

    def _refused(self, problem: str) -> Invalid:
        return Invalid(f"ensemble '{self._configuration.name}': {problem}", reason="ENSEMBLE_REFUSED")
