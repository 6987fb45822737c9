"""Between the API's messages and the registry's own objects: the one file that knows both."""

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tidemill import names
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.api.tensors.v1 import tensors_pb2
from tidemill.errors import invalid
from tidemill.registry import checks
from tidemill.registry.instances import etag_of
from tidemill.registry.models import (
    Alias,
    Draft,
    Edit,
    Event,
    Instance,
    Lineage,
    Model,
    ModelVersion,
    Signature,
    TensorSpec,
)
from tidemill.registry.watch import Batch
from tidemill.rpc import etags, masks
from tidemill.tensors.dtypes import DataType

MUTABLE = ("description", "tags")


def from_model_name(name: str, field: str = "name") -> str:
    """The model in `models/{model}`.

    Raises:
        Invalid: it is not such a name; as for the others here.
    """
    return names.split(name, "models", field=field)[0]


def from_parent(name: str) -> str | None:
    """The model in a parent `models/{model}`; None for `models/-`, which stands for all."""
    return None if name == "models/-" else from_model_name(name, "parent")


def from_version_name(name: str, field: str = "name") -> tuple[str, int]:
    """Model and number in `models/{model}/versions/{number}`."""
    model, number = names.split(name, "models", "versions", field=field)
    return model, checks.check_number(number, field)


def from_version_or_alias_name(name: str) -> tuple[str, int | None, str]:
    """Model, number and alias in `models/{model}/versions/{number or alias}`, one of the two set."""
    model, which = names.split(name, "models", "versions")
    return (model, checks.check_number(which), "") if which.isdecimal() else (model, None, which)


def from_alias_name(name: str) -> tuple[str, str]:
    """Model and alias in `models/{model}/aliases/{alias}`."""
    model, alias = names.split(name, "models", "aliases")
    return model, checks.check_alias(alias)


def from_instance_name(name: str) -> str:
    """The identifier in `instances/{service}.{id}`."""
    return names.split(name, "instances")[0]


def from_new(message: pb.Model) -> Edit:
    """The mutable fields of a model that is to be made."""
    return Edit(description=message.description, tags=dict(message.tags))


def from_update(request: pb.UpdateModelRequest | pb.UpdateModelVersionRequest) -> Edit:
    """What an update changes."""
    message = request.model if isinstance(request, pb.UpdateModelRequest) else request.model_version
    fields = masks.fields(request.update_mask, message, MUTABLE)
    return Edit(
        description=message.description if "description" in fields else None,
        tags=dict(message.tags) if "tags" in fields else None,
    )


def from_version(message: pb.ModelVersion) -> Draft:
    """What the creator of a version says about it."""
    return Draft(
        format=message.format,
        artifact=message.artifact,
        signature=_from_signature(message.signature) if message.HasField("signature") else None,
        lineage=_from_lineage(message.lineage) if message.HasField("lineage") else None,
        metrics=dict(message.metrics),
        tags=dict(message.tags),
        description=message.description,
    )


def _from_signature(message: pb.Signature) -> Signature:
    return Signature(
        inputs=_from_specs(message.inputs, "model_version.signature.inputs"),
        outputs=_from_specs(message.outputs, "model_version.signature.outputs"),
        labels=tuple(message.labels),
    )


def _from_specs(messages: Iterable[tensors_pb2.TensorSpec], field: str) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=spec.name, dtype=_from_dtype(spec.dtype, f"{field}[{index}].dtype"), shape=tuple(spec.shape))
        for index, spec in enumerate(messages)
    )


def _from_dtype(number: int, field: str) -> DataType:
    try:
        return DataType(number)
    except ValueError:
        raise invalid(field, f"{number} is not an element type", reason="UNKNOWN_DATATYPE") from None


def _from_lineage(message: pb.Lineage) -> Lineage:
    return Lineage(
        job=message.job,
        dataset_digests=tuple(message.dataset_digests),
        code_revision=message.code_revision,
        traceparent=message.traceparent,
    )


def from_instance(request: pb.RegisterInstanceRequest) -> Instance:
    """The instance that is to be registered."""
    message = request.instance
    return Instance(
        service=message.service,
        instance_id=request.instance_id,
        address=message.address,
        labels=dict(message.labels),
        ttl=message.ttl.seconds + message.ttl.nanos / 1e9,
    )


def to_model(model: Model) -> pb.Model:
    """The message of a model."""
    return pb.Model(
        name=model.name,
        description=model.description,
        tags=model.tags,
        latest_version=model.latest_version,
        etag=etags.of(model.revision),
        create_time=_to_time(model.create_time),
        update_time=_to_time(model.update_time),
    )


def to_version(version: ModelVersion) -> pb.ModelVersion:
    """The message of a version."""
    draft = version.draft
    return pb.ModelVersion(
        name=version.name,
        version=version.version,
        format=draft.format,
        artifact=draft.artifact,
        signature=_to_signature(draft.signature) if draft.signature else None,
        lineage=_to_lineage(draft.lineage) if draft.lineage else None,
        metrics=draft.metrics,
        tags=draft.tags,
        description=draft.description,
        aliases=version.aliases,
        etag=etags.of(version.revision),
        create_time=_to_time(version.create_time),
        update_time=_to_time(version.update_time),
    )


def _to_signature(signature: Signature) -> pb.Signature:
    return pb.Signature(
        inputs=map(_to_spec, signature.inputs), outputs=map(_to_spec, signature.outputs), labels=signature.labels
    )


def _to_spec(spec: TensorSpec) -> tensors_pb2.TensorSpec:
    dtype = tensors_pb2.DataType.ValueType(spec.dtype.value)
    return tensors_pb2.TensorSpec(name=spec.name, dtype=dtype, shape=spec.shape)


def _to_lineage(lineage: Lineage) -> pb.Lineage:
    return pb.Lineage(
        job=lineage.job,
        dataset_digests=lineage.dataset_digests,
        code_revision=lineage.code_revision,
        traceparent=lineage.traceparent,
    )


def to_alias(alias: Alias) -> pb.Alias:
    """The message of an alias."""
    return pb.Alias(
        name=alias.name,
        version=alias.version,
        previous_version=alias.previous_version,
        etag=etags.of(alias.revision),
        update_time=_to_time(alias.update_time),
    )


def to_event(event: Event) -> pb.Event:
    """The message of an event."""
    message = pb.Event(
        revision=event.revision, time=_to_time(event.time), type=pb.EventType.ValueType(event.type.value)
    )
    match event.resource:
        case Model():
            message.model.CopyFrom(to_model(event.resource))
        case ModelVersion():
            message.model_version.CopyFrom(to_version(event.resource))
        case Alias():
            message.alias.CopyFrom(to_alias(event.resource))
    return message


def to_responses(batch: Batch, most_bytes: int) -> Iterable[pb.WatchResponse]:
    """The messages of a batch, none much larger than `most_bytes`; one for an empty batch."""
    response, size = pb.WatchResponse(), 0
    for event in batch.events:
        message = to_event(event)
        response.events.append(message)
        response.revision = event.revision
        size += message.ByteSize()
        if size >= most_bytes:
            yield response
            response, size = pb.WatchResponse(), 0
    if response.events or not batch.events or batch.events[-1].revision != batch.revision:
        response.revision = batch.revision
        yield response


def to_instance(instance: Instance) -> pb.Instance:
    """The message of an instance."""
    ttl = Duration()
    ttl.FromMicroseconds(round(instance.ttl * 1e6))
    return pb.Instance(
        name=instance.name,
        service=instance.service,
        address=instance.address,
        labels=instance.labels,
        ttl=ttl,
        create_time=_to_time(instance.create_time),
        etag=etag_of(instance),
    )


def _to_time(microseconds: int) -> Timestamp:
    time = Timestamp()
    time.FromMicroseconds(microseconds)
    return time
