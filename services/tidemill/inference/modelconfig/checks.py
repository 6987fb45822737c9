"""What a configuration must be; fields that would change answers, and are not offered, are refused."""

import math

from tidemill import names
from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.inference.modelconfig.batches import check_dynamic
from tidemill.inference.modelconfig.ensembles import check_ensemble
from tidemill.inference.modelconfig.sequences import check_sequence
from tidemill.inference.modelconfig.tensors import check_dims, check_name, check_tensors, refuse

MOST_BATCH = 1 << 20
MOST_INSTANCES = 256
MOST_WARMUPS, MOST_RUNS = 64, 1000
_UNOFFERED = {
    "runtime": "libraries of runtimes",
    "batch_input": "inputs that are computed from the batch",
    "batch_output": "outputs that are split in a special way",
    "cc_model_filenames": "model files by compute capability",
    "model_operations": "libraries of operators",
    "model_repository_agents": "repository agents",
}
"""Fields that would change answers."""


def check(message: pb.ModelConfig, folder: str) -> None:
    """Return when a model in the folder of this name can be served as its configuration says.

    Raises:
        Invalid: it contradicts itself, or asks for what is not offered.
    """
    if message.name and message.name != folder:
        raise refuse(f"unexpected directory name '{folder}' for model '{message.name[:128]}': they must be equal")
    present = {field.name for field, _ in message.ListFields()}
    for field, what in _UNOFFERED.items():
        if field in present:
            raise refuse(f"{field}: {what} are not offered")
    if not 0 <= message.max_batch_size <= MOST_BATCH:
        raise refuse(f"max_batch_size must be in [0, {MOST_BATCH}]")
    if message.default_model_filename:
        names.check(message.default_model_filename, "default_model_filename")
    check_tensors(message)
    for output in message.output:
        if output.label_filename:
            names.check_path(output.label_filename, "label_filename")
    _check_versions(message.version_policy)
    _check_instances(message)
    if message.HasField("dynamic_batching"):
        check_dynamic(message.dynamic_batching, message.max_batch_size)
    if message.HasField("sequence_batching"):
        check_sequence(message)
    if message.HasField("ensemble_scheduling"):
        check_ensemble(message, folder)
    _check_answers(message)
    _check_warmups(message)


def _check_versions(policy: pb.ModelVersionPolicy) -> None:
    if policy.HasField("specific"):
        if not policy.specific.versions:
            raise refuse("version_policy.specific must name versions")
        if len(policy.specific.versions) > 1024 or any(not 1 <= v < 2**63 for v in policy.specific.versions):
            raise refuse("version_policy.specific must name at most 1024 versions, each above 0")


def _check_instances(message: pb.ModelConfig) -> None:
    kinds = set()
    total = 0
    for group in message.instance_group:
        if group.secondary_devices or group.profile or group.passive:
            raise refuse("instance_group: secondary devices, profiles and passive instances are not offered")
        if group.kind not in pb.ModelInstanceGroup.Kind.values():
            raise refuse("instance_group has an unknown kind")
        if group.count < 0 or any(not 0 <= gpu < 256 for gpu in group.gpus) or len(group.gpus) > 256:
            raise refuse("instance_group: count and gpus must not be negative, and gpus below 256")
        if group.gpus and group.kind not in (pb.ModelInstanceGroup.KIND_GPU, pb.ModelInstanceGroup.KIND_AUTO):
            raise refuse("instance_group: only groups of KIND_GPU and KIND_AUTO name gpus")
        kinds.add(group.kind == pb.ModelInstanceGroup.KIND_GPU or bool(group.gpus))
        total += max(group.count, 1) * max(len(group.gpus), 1)
    if len(kinds) > 1:
        raise refuse("instance_group: groups on the CPU beside groups on GPUs are not offered")
    if total > MOST_INSTANCES:
        raise refuse(f"instance_group asks for {total} instances; at most {MOST_INSTANCES} are possible")


def _check_answers(message: pb.ModelConfig) -> None:
    decoupled = message.model_transaction_policy.decoupled
    if message.response_cache.enable and (decoupled or message.HasField("sequence_batching")):
        raise refuse("response_cache cannot be for models that are decoupled or have sequences")


def _check_warmups(message: pb.ModelConfig) -> None:
    if len(message.model_warmup) > MOST_WARMUPS:
        raise refuse(f"at most {MOST_WARMUPS} model_warmup are possible")
    declared = {tensor.name for tensor in message.input}
    for sample in message.model_warmup:
        what = f"model_warmup '{sample.name[:64]}'"
        if sample.count > MOST_RUNS:
            raise refuse(f"{what} has a count of {sample.count}; at most {MOST_RUNS} are possible")
        if sample.batch_size > max(message.max_batch_size, 1) and message.max_batch_size:
            raise refuse(f"{what} has batch_size {sample.batch_size}, above max_batch_size {message.max_batch_size}")
        if not sample.inputs:
            raise refuse(f"{what} has no inputs")
        for name, tensor in sample.inputs.items():
            check_name(name, f"{what}: input")
            if declared and name not in declared:
                raise refuse(f"{what} is for input '{name}', which the model does not have")
            check_dims(tensor.dims, f"{what}: input '{name}'", batched=message.max_batch_size > 0, fixed=True)
            if math.prod(tensor.dims) * max(sample.batch_size, 1) > 2**26:
                raise refuse(f"{what}: input '{name}' has more than 2^26 elements")
            if tensor.data_type == pb.TYPE_INVALID or tensor.data_type not in pb.DataType.values():
                raise refuse(f"{what}: input '{name}' must have a data_type")
            if tensor.WhichOneof("input_data_type") is None:
                raise refuse(f"{what}: input '{name}' must say where its elements come from")
            if tensor.HasField("input_data_file"):
                names.check(tensor.input_data_file, "input_data_file")
