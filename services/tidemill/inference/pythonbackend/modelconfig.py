"""A configuration as the dictionary that models know, and what a model makes of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tidemill.errors import Invalid
from tidemill.inference.configuration import (
    Configuration,
    DynamicBatching,
    QueuePolicy,
    SequenceBatching,
    TensorConfiguration,
)
from tidemill.tensors.dtypes import DataType


def to_dict(configuration: Configuration) -> dict[str, Any]:
    """The configuration in the names of the protocol's message."""
    found: dict[str, Any] = {
        "name": configuration.name,
        "platform": configuration.platform,
        "backend": "python",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": configuration.max_batch,
        "input": [
            {**_tensor(tensor), "format": "FORMAT_NONE", "allow_ragged_batch": False, "optional": tensor.optional}
            for tensor in configuration.inputs
        ],
        "output": [{**_tensor(tensor), "label_filename": ""} for tensor in configuration.outputs],
        "instance_group": [
            {
                "name": f"{configuration.name}_0",
                "kind": "KIND_GPU" if configuration.gpus else "KIND_CPU",
                "count": max(1, configuration.instances),
                "gpus": list(configuration.gpus),
            }
        ],
        "default_model_filename": "model.py",
        "parameters": {name: {"string_value": value} for name, value in configuration.parameters.items()},
        "model_transaction_policy": {"decoupled": configuration.decoupled},
        "response_cache": {"enable": configuration.cache},
    }
    if configuration.dynamic is not None:
        found["dynamic_batching"] = _dynamic(configuration.dynamic)
    if configuration.sequence is not None:
        found["sequence_batching"] = _sequence(configuration.sequence)
    return found


def completed(configuration: Configuration, found: Mapping[str, Any]) -> Configuration:
    """The configuration with what a model has added to its dictionary.

    Raises:
        Invalid: it is no configuration.
    """
    try:
        own_dynamic = configuration.dynamic is None and "dynamic_batching" in found
        return replace(
            configuration,
            max_batch=int(found["max_batch_size"]),
            inputs=_tensors(configuration.inputs, found["input"]),
            outputs=_tensors(configuration.outputs, found["output"]),
            dynamic=DynamicBatching() if own_dynamic else configuration.dynamic,
            decoupled=bool(found.get("model_transaction_policy", {}).get("decoupled", False)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Invalid(
            f"auto_complete_config of model '{configuration.name}' gives no configuration: {error!r}",
            reason="INVALID_CONFIG",
        ) from error


def _tensors(known: tuple[TensorConfiguration, ...], found: Any) -> tuple[TensorConfiguration, ...]:
    mine = {tensor.name: tensor for tensor in known}
    tensors = []
    for each in found:
        dims = tuple(map(int, each["dims"]))
        base = mine.get(each["name"]) or TensorConfiguration(
            name=str(each["name"]),
            datatype=datatype(each["data_type"]),
            dims=dims,
            optional=bool(each.get("optional")),
        )
        tensors.append(base if base.dims else replace(base, dims=dims))
    return tuple(tensors)


def _tensor(tensor: TensorConfiguration) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": _type_name(tensor.datatype),
        "dims": list(tensor.dims),
        "is_shape_tensor": False,
    }


def _type_name(kind: DataType) -> str:
    return "TYPE_STRING" if kind is DataType.BYTES else f"TYPE_{kind.name}"


def datatype(name: str) -> DataType:
    """The element type of a name as in "TYPE_FP32". Raises KeyError."""
    return DataType.BYTES if name == "TYPE_STRING" else DataType[name.removeprefix("TYPE_")]


def _policy(policy: QueuePolicy) -> dict[str, Any]:
    return {
        "timeout_action": policy.action.value,
        "default_timeout_microseconds": round(policy.timeout * 1e6),
        "allow_timeout_override": policy.allow_override,
        "max_queue_size": policy.size,
    }


def _dynamic(batching: DynamicBatching) -> dict[str, Any]:
    return {
        "preferred_batch_size": list(batching.preferred),
        "max_queue_delay_microseconds": round(batching.delay * 1e6),
        "preserve_ordering": batching.preserve_order,
        "priority_levels": batching.levels,
        "default_priority_level": batching.default_level,
        "default_queue_policy": _policy(batching.policy),
        "priority_queue_policy": {str(level): _policy(policy) for level, policy in batching.policies.items()},
    }


def _sequence(batching: SequenceBatching) -> dict[str, Any]:
    found: dict[str, Any] = {
        "max_sequence_idle_microseconds": round(batching.idle * 1e6),
        "control_input": [
            {
                "name": control.name,
                "control": [{"kind": control.kind.value, "data_type": _type_name(control.datatype)}],
            }
            for control in batching.controls
        ],
        "state": [
            {
                "input_name": state.input,
                "output_name": state.output,
                "data_type": _type_name(state.datatype),
                "dims": list(state.dims),
            }
            for state in batching.states
        ],
    }
    if batching.oldest is not None:
        found["oldest"] = {
            "max_candidate_sequences": batching.candidates,
            "preferred_batch_size": list(batching.oldest.preferred),
            "max_queue_delay_microseconds": round(batching.oldest.delay * 1e6),
            "preserve_ordering": batching.oldest.preserve_order,
        }
    else:
        found["direct"] = {
            "max_queue_delay_microseconds": round(batching.delay * 1e6),
            "minimum_slot_utilization": batching.utilization,
        }
    return found
