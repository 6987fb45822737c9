"""Messages of the registry and of the artifact service to what the inference service makes of them."""

from collections.abc import Iterable

from tidemill import names
from tidemill.api.artifacts.v1 import artifacts_pb2
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.api.tensors.v1 import tensors_pb2
from tidemill.inference.desired import Version
from tidemill.inference.manifests import File
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.inference.view import View
from tidemill.tensors.dtypes import DataType


def add_model(view: View, message: pb.Model) -> None:
    """Note a model."""
    view.set_model(*names.split(message.name, "models"))


def add_alias(view: View, message: pb.Alias) -> None:
    """Note where an alias points."""
    model, alias = names.split(message.name, "models", "aliases")
    view.set_alias(model, alias, message.version)


def apply(view: View, events: Iterable[pb.Event]) -> bool:
    """Follow changes of the registry; whether any of them can matter to what is served."""
    changed = False
    for event in events:
        changed |= _apply(view, event, event.type == pb.EVENT_TYPE_DELETED)
    return changed


def _apply(view: View, event: pb.Event, deleted: bool) -> bool:
    match event.WhichOneof("resource"):
        case "model":
            (model,) = names.split(event.model.name, "models")
            (view.drop_model if deleted else view.set_model)(model)
            return deleted or event.type == pb.EVENT_TYPE_CREATED
        case "alias" if deleted:
            view.drop_alias(*names.split(event.alias.name, "models", "aliases"))
            return True
        case "alias":
            add_alias(view, event.alias)
            return True
    return False  # a version matters when an alias points at it, and is deleted only when none does


def to_version(message: pb.ModelVersion) -> Version:
    """A version."""
    (model, _) = names.split(message.name, "models", "versions")
    return Version(
        model=model,
        number=message.version,
        format=message.format,
        artifact=message.artifact,
        signature=_to_signature(message.signature),
        traceparent=message.lineage.traceparent,
        job=message.lineage.job,
    )


def to_files(message: artifacts_pb2.Artifact) -> tuple[File, ...]:
    """The files of an artifact."""
    return tuple(File(file.path, file.sha256, file.size) for file in message.files)


def _to_signature(message: pb.Signature) -> Signature | None:
    """None for one that says nothing."""
    if not message.inputs and not message.outputs:
        return None
    return Signature(_to_specs(message.inputs), _to_specs(message.outputs))


def _to_specs(messages: Iterable[tensors_pb2.TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, DataType(spec.dtype), tuple(spec.shape)) for spec in messages)
