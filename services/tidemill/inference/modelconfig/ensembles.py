"""Checks of models that are made of others."""

from graphlib import CycleError, TopologicalSorter

from tidemill import names
from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.inference.inputs import shown
from tidemill.inference.modelconfig.tensors import check_name, refuse

MOST_STEPS = 256


def check_ensemble(message: pb.ModelConfig, folder: str) -> None:
    """Return when the steps make a graph without cycles that gives every output. Raises Invalid."""
    steps = message.ensemble_scheduling.step
    if not 1 <= len(steps) <= MOST_STEPS:
        raise refuse(f"an ensemble must have 1 to {MOST_STEPS} steps, not {len(steps)}")
    if message.instance_group:
        raise refuse("an ensemble has no instance_group: its steps do")
    if not message.input or not message.output:
        raise refuse("an ensemble must declare its inputs and outputs")
    makers: dict[str, int] = {}
    given = {tensor.name for tensor in message.input}
    for index, step in enumerate(steps):
        _check_step(step, folder)
        for tensor in step.output_map.values():
            if tensor in makers or tensor in given:
                raise refuse(f"ensemble tensor '{shown(tensor)}' comes from more than one place")
            makers[tensor] = index
    graph: dict[int, set[int]] = {}
    for index, step in enumerate(steps):
        missing = [tensor for tensor in step.input_map.values() if tensor not in makers and tensor not in given]
        if missing:
            raise refuse(f"ensemble tensor '{shown(missing[0])}', an input of '{step.model_name}', comes from nowhere")
        graph[index] = {makers[tensor] for tensor in step.input_map.values() if tensor in makers}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise refuse("the steps of the ensemble wait for each other") from error
    for output in message.output:
        if output.name not in makers:
            raise refuse(f"output '{output.name}' of the ensemble comes from no step")


def _check_step(step: pb.ModelEnsembling.Step, folder: str) -> None:
    names.check(step.model_name, "model_name")
    if step.model_name == folder:
        raise refuse("an ensemble cannot be a step of itself")
    if step.model_namespace:
        raise refuse("model_namespace is not offered: there is one repository")
    if step.model_version < -1:
        raise refuse(f"step '{step.model_name}' has model_version {step.model_version}; -1 leaves it to the server")
    if not step.input_map or not step.output_map:
        raise refuse(f"step '{step.model_name}' must have an input_map and an output_map")
    for name, tensor in (*step.input_map.items(), *step.output_map.items()):
        check_name(name, f"a tensor of step '{step.model_name}'")
        check_name(tensor, f"an ensemble tensor of step '{step.model_name}'")
