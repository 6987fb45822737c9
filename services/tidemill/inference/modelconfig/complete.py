"""What a configuration leaves open, taken from the loaded model; what it says, held against the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.errors import Invalid
from tidemill.inference.configuration import Configuration, DynamicBatching, TensorConfiguration
from tidemill.inference.modelconfig import text
from tidemill.inference.modelconfig.convert import from_tensors
from tidemill.inference.modelconfig.platforms import of_runtime
from tidemill.inference.signatures import FREE, Signature, TensorSpec

DEFAULT_BATCH = 4
"""Most rows of a batch of a model that can take any number, when nobody has said it; as existing servers do."""


def complete(configuration: Configuration, signature: Signature, platform: str) -> Configuration:
    """The configuration with everything that the model tells.

    A model whose configuration declares its inputs and outputs is run as that says. Of others, one takes batches if the
    first dimension of every input and output is free.

    Args:
        configuration: as the owner wrote it.
        signature: of the loaded model.
        platform: of the runtime.

    Raises:
        Invalid: the model is not what the configuration says.
    """
    found = configuration if configuration.inputs and configuration.outputs else _derived(configuration, signature)
    _check(found, signature)
    found = replace(found, platform=found.platform or platform)
    return replace(found, tracked=tracked(found))


def tracked(configuration: Configuration) -> bytes:
    """The configuration as the protocol's message: what its owner wrote, with what is known besides."""
    message = pb.ModelConfig.FromString(configuration.tracked)
    message.name = configuration.name
    kind = of_runtime(configuration.backend)
    message.backend = message.backend or kind.backend
    message.platform = message.platform or configuration.platform
    message.max_batch_size = configuration.max_batch
    if not message.input:
        message.input.extend(from_tensors(configuration.inputs, pb.ModelInput))  # type: ignore[arg-type]
    if not message.output:
        message.output.extend(from_tensors(configuration.outputs, pb.ModelOutput))  # type: ignore[arg-type]
    if message.WhichOneof("scheduling_choice") is None and configuration.dynamic is not None:
        message.dynamic_batching.SetInParent()
    if message.HasField("dynamic_batching") and not message.dynamic_batching.preferred_batch_size:
        message.dynamic_batching.preferred_batch_size.append(max(configuration.max_batch, 1))
    if message.version_policy.WhichOneof("policy_choice") is None:
        message.version_policy.latest.num_versions = 1
    if not message.default_model_filename:
        message.default_model_filename = kind.filename
    if not message.instance_group and not configuration.steps:
        on = pb.ModelInstanceGroup.KIND_GPU if configuration.gpus else pb.ModelInstanceGroup.KIND_CPU
        count = max(configuration.instances, 1)
        message.instance_group.add(name=configuration.name, kind=on, count=count, gpus=configuration.gpus)
    return text.to_bytes(message)


def _derived(configuration: Configuration, signature: Signature) -> Configuration:
    hidden_inputs, hidden_outputs = _hidden(configuration)
    inputs = [spec for spec in signature.inputs if spec.name not in hidden_inputs]
    outputs = [spec for spec in signature.outputs if spec.name not in hidden_outputs]
    if not outputs:
        raise _mismatch(
            configuration, "its configuration must declare inputs and outputs: the model does not tell them"
        )
    batches = all(spec.shape[:1] == (FREE,) for spec in (*signature.inputs, *signature.outputs))
    if configuration.max_batch and not batches:
        raise Invalid(
            f"autofill failed for model '{configuration.name}': model does not support batching while non-zero "
            "max_batch_size is specified",
            reason="CONFIG_MISMATCH",
        )
    largest = configuration.max_batch or (DEFAULT_BATCH if batches else 0)
    dynamic = configuration.dynamic
    # On a CPU a small model runs faster than its call is put together with others: there it is tried (`trial.py`).
    if largest > 1 and configuration.gpus and configuration.sequence is None and not configuration.decoupled:
        dynamic = dynamic or DynamicBatching()
    return replace(
        configuration,
        max_batch=largest,
        inputs=configuration.inputs or tuple(_declared(spec, batched=largest > 0) for spec in inputs),
        outputs=configuration.outputs or tuple(_declared(spec, batched=largest > 0) for spec in outputs),
        dynamic=dynamic,
    )


def _declared(spec: TensorSpec, *, batched: bool) -> TensorConfiguration:
    return TensorConfiguration(name=spec.name, datatype=spec.datatype, dims=spec.shape[1:] if batched else spec.shape)


def _hidden(configuration: Configuration) -> tuple[set[str], set[str]]:
    """Inputs and outputs of the model that clients do not see."""
    sequence = configuration.sequence
    if sequence is None:
        return set(), set()
    controls = {control.name for control in sequence.controls}
    return controls | {state.input for state in sequence.states}, {state.output for state in sequence.states}


def _check(configuration: Configuration, signature: Signature) -> None:
    """Raises Invalid when the model has other tensors than the configuration says."""
    hidden, _ = _hidden(configuration)
    known = set(signature.input)
    declared = {tensor.name for tensor in configuration.inputs}
    if not known & hidden:  # runtimes that know their tensors from the configuration alone
        hidden = set()
    if missing := sorted((declared | hidden) - known):
        raise _mismatch(configuration, f"unexpected inference input '{missing[0]}', allowed inputs are: {_list(known)}")
    if missing := sorted(known - declared - hidden):
        raise _mismatch(
            configuration,
            f"expected {len(known)} inputs but the configuration provides {len(declared | hidden)}; "
            f"missing is '{missing[0]}'",
        )
    if missing := sorted({tensor.name for tensor in configuration.outputs} - set(signature.output)):
        outputs = _list(signature.output)
        raise _mismatch(configuration, f"unexpected inference output '{missing[0]}', allowed outputs are: {outputs}")
    for tensors, specs in ((configuration.inputs, signature.input), (configuration.outputs, signature.output)):
        _check_tensors(configuration, tensors, specs)
    for control in configuration.sequence.controls if configuration.sequence is not None else ():
        spec = signature.input.get(control.name)
        if spec is not None and spec.datatype is not control.datatype:
            raise _mismatch(
                configuration,
                f"control input '{control.name}' is {spec.datatype.name} in the model, "
                f"{control.datatype.name} in the configuration",
            )


def _check_tensors(
    configuration: Configuration, tensors: Sequence[TensorConfiguration], specs: Mapping[str, TensorSpec]
) -> None:
    for tensor in tensors:
        spec = specs[tensor.name]
        if spec.datatype is not tensor.datatype:
            raise _mismatch(
                configuration,
                f"unexpected datatype {spec.datatype.name} for '{tensor.name}', expecting {tensor.datatype.name}",
            )
        if not spec.shape:
            continue
        if configuration.max_batch and spec.shape[0] != FREE:
            raise _mismatch(
                configuration,
                f"tensor '{tensor.name}': for the model to support batching the shape should have at least 1 dimension "
                f"and the first dimension must be -1; but shape of the model is {list(spec.shape)}",
            )
        dims = tensor.dims if tensor.reshape is None else tensor.reshape
        wanted = ((FREE,) if configuration.max_batch else ()) + dims
        fits = len(wanted) == len(spec.shape) and all(
            mine in (FREE, given) for mine, given in zip(spec.shape, wanted, strict=True)
        )
        if not fits:
            raise _mismatch(
                configuration,
                f"tensor '{tensor.name}': the model expects shape {list(spec.shape)} but the model configuration "
                f"specifies shape {list(wanted)}",
            )


def _list(names: "set[str] | Mapping[str, TensorSpec]") -> str:
    return ", ".join(sorted(names))


def _mismatch(configuration: Configuration, text: str) -> Invalid:
    return Invalid(f"model '{configuration.name}', {text}", reason="CONFIG_MISMATCH")
