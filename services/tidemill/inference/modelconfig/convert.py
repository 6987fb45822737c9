"""Configuration messages to `Configuration`."""

from collections.abc import Callable, Iterable

from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.errors import Invalid
from tidemill.inference import configuration as ours
from tidemill.inference.configuration import Configuration, Isolation, TensorConfiguration
from tidemill.inference.modelconfig import text
from tidemill.inference.modelconfig.accelerators import providers
from tidemill.inference.modelconfig.platforms import PYTHON, Platform
from tidemill.inference.modelconfig.tensors import refuse
from tidemill.tensors.dtypes import DataType

Read = Callable[[str], bytes]
"""The bytes of a file in the folder of the model, by path; raises Invalid when it cannot be read."""
SECOND = 1_000_000
MAX_LABELS = 1 << 20
MAX_THREADS = 256


def datatype(number: int) -> DataType:
    """The element type of this number of the protocol's configurations."""
    name = pb.DataType.Name(pb.DataType.ValueType(number)).removeprefix("TYPE_")
    return DataType["BYTES" if name == "STRING" else name]


def number_of(kind: DataType) -> "pb.DataType.ValueType":
    """The number of an element type in the protocol's configurations."""
    return pb.DataType.Value("TYPE_STRING" if kind is DataType.BYTES else f"TYPE_{kind.name}")


def to_configuration(message: pb.ModelConfig, kind: Platform, read: Read) -> Configuration:
    """How the model is run, as far as the message says.

    Args:
        message: has passed `checks.check`, and has its name.
        kind: of the model.
        read: for files that it names: labels, samples, states.

    Raises:
        Invalid: a file cannot be read or is too small, or an option is unknown.
    """
    gpus = _gpus(message)
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    return Configuration(
        name=message.name,
        backend=kind.runtime,
        platform=message.platform or kind.platform,
        max_batch=message.max_batch_size,
        inputs=tuple(map(_input, message.input)),
        outputs=tuple(_output(tensor, read) for tensor in message.output),
        instances=sum(max(group.count, 1) * max(len(group.gpus), 1) for group in message.instance_group),
        gpus=gpus,
        dynamic=_dynamic(message.dynamic_batching) if message.HasField("dynamic_batching") else None,
        sequence=_sequence(message.sequence_batching, read) if message.HasField("sequence_batching") else None,
        steps=tuple(map(_step, message.ensemble_scheduling.step)),
        decoupled=message.model_transaction_policy.decoupled,
        cache=message.response_cache.enable,
        warmups=tuple(_warmup(sample, read) for sample in message.model_warmup),
        isolation=_isolation(parameters.get("isolation", ""), kind),
        providers=providers(message, gpus),
        threads=_threads(parameters.get("intra_op_thread_count", "0")),
        parameters=parameters,
        tracked=text.to_bytes(message),
    )


def from_tensors(
    tensors: Iterable[TensorConfiguration], kind: "type[pb.ModelInput] | type[pb.ModelOutput]"
) -> "list[pb.ModelInput | pb.ModelOutput]":
    """Messages for inputs or outputs."""
    found: list[pb.ModelInput | pb.ModelOutput] = []
    for tensor in tensors:
        message = kind(name=tensor.name, data_type=number_of(tensor.datatype), dims=tensor.dims)
        found.append(message)
    return found


def _gpus(message: pb.ModelConfig) -> tuple[int, ...]:
    named = [gpu for group in message.instance_group for gpu in group.gpus]
    on_gpu = any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in message.instance_group)
    return tuple(dict.fromkeys(named)) or ((0,) if on_gpu else ())


def _input(tensor: pb.ModelInput) -> TensorConfiguration:
    return TensorConfiguration(
        name=tensor.name,
        datatype=datatype(tensor.data_type),
        dims=tuple(tensor.dims),
        reshape=tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        optional=tensor.optional,
    )


def _output(tensor: pb.ModelOutput, read: Read) -> TensorConfiguration:
    labels: tuple[str, ...] = ()
    if tensor.label_filename:
        labels = _labels(read(tensor.label_filename), tensor.label_filename)
    return TensorConfiguration(
        name=tensor.name,
        datatype=datatype(tensor.data_type),
        dims=tuple(tensor.dims),
        reshape=tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        labels=labels,
    )


def _labels(data: bytes, name: str) -> tuple[str, ...]:
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise refuse(f"the labels in '{name}' must be UTF-8") from error
    if len(lines) > MAX_LABELS:
        raise refuse(f"'{name}' has more than {MAX_LABELS} labels")
    return tuple(lines)


def _policy(policy: pb.ModelQueuePolicy) -> ours.QueuePolicy:
    return ours.QueuePolicy(
        action=ours.TimeoutAction(pb.ModelQueuePolicy.TimeoutAction.Name(policy.timeout_action)),
        timeout=policy.default_timeout_microseconds / SECOND,
        allow_override=policy.allow_timeout_override,
        size=policy.max_queue_size,
    )


def _dynamic(batching: pb.ModelDynamicBatching) -> ours.DynamicBatching:
    return ours.DynamicBatching(
        preferred=tuple(sorted(set(batching.preferred_batch_size))),
        delay=batching.max_queue_delay_microseconds / SECOND,
        preserve_order=batching.preserve_ordering,
        levels=batching.priority_levels,
        default_level=batching.default_priority_level,
        policy=_policy(batching.default_queue_policy),
        policies={level: _policy(policy) for level, policy in batching.priority_queue_policy.items()},
    )


def _sequence(batching: pb.ModelSequenceBatching, read: Read) -> ours.SequenceBatching:
    oldest = None
    if batching.HasField("oldest"):
        oldest = ours.DynamicBatching(
            preferred=tuple(sorted(set(batching.oldest.preferred_batch_size))),
            delay=batching.oldest.max_queue_delay_microseconds / SECOND,
            preserve_order=batching.oldest.preserve_ordering,
        )
    return ours.SequenceBatching(
        idle=(batching.max_sequence_idle_microseconds or SECOND) / SECOND,
        controls=tuple(map(_control, batching.control_input)),
        states=tuple(_state(state, read) for state in batching.state),
        oldest=oldest,
        candidates=batching.oldest.max_candidate_sequences,
        delay=batching.direct.max_queue_delay_microseconds / SECOND,
        utilization=batching.direct.minimum_slot_utilization,
    )


def _control(control_input: pb.ModelSequenceBatching.ControlInput) -> ours.Control:
    (control,) = control_input.control
    kind = ours.ControlKind(pb.ModelSequenceBatching.Control.Kind.Name(control.kind))
    if kind is ours.ControlKind.CORRID:
        return ours.Control(name=control_input.name, kind=kind, datatype=datatype(control.data_type))
    lists = (
        (DataType.INT32, control.int32_false_true),
        (DataType.FP32, control.fp32_false_true),
        (DataType.BOOL, control.bool_false_true),
    )
    element, (false, true) = next((element, values) for element, values in lists if values)
    return ours.Control(name=control_input.name, kind=kind, datatype=element, false=float(false), true=float(true))


def _state(state: pb.ModelSequenceBatching.State, read: Read) -> ours.SequenceState:
    initial = dims = None
    for given in state.initial_state:
        dims = tuple(given.dims)
        if given.HasField("data_file"):
            initial = read(f"initial_state/{given.data_file}")
    return ours.SequenceState(
        input=state.input_name,
        output=state.output_name,
        datatype=datatype(state.data_type),
        dims=tuple(state.dims),
        initial=initial,
        initial_dims=dims,
    )


def _step(step: pb.ModelEnsembling.Step) -> ours.Step:
    return ours.Step(
        model=step.model_name,
        version=str(step.model_version) if step.model_version > 0 else "",
        inputs=dict(step.input_map),
        outputs=dict(step.output_map),
    )


def _warmup(sample: pb.ModelWarmup, read: Read) -> ours.Warmup:
    return ours.Warmup(
        name=sample.name,
        rows=max(sample.batch_size, 1),
        count=max(sample.count, 1),
        inputs={name: _warmup_input(tensor, read) for name, tensor in sample.inputs.items()},
    )


def _warmup_input(tensor: pb.ModelWarmup.Input, read: Read) -> ours.WarmupInput:
    return ours.WarmupInput(
        datatype=datatype(tensor.data_type),
        dims=tuple(tensor.dims),
        random=tensor.random_data,
        data=read(f"warmup/{tensor.input_data_file}") if tensor.HasField("input_data_file") else None,
    )


def _isolation(value: str, kind: Platform) -> Isolation:
    if value not in ("", *(isolation.value for isolation in Isolation)):
        raise refuse("the parameter isolation must be thread or process")
    if kind.runtime == PYTHON:
        if value == Isolation.THREAD.value:
            raise refuse("python models always run in a process of their own")
        return Isolation.PROCESS
    return Isolation(value) if value else Isolation.THREAD


def _threads(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 4 and int(value) <= MAX_THREADS):
        raise Invalid(f"intra_op_thread_count must be in [0, {MAX_THREADS}]", reason="INVALID_CONFIG")
    return int(value)
