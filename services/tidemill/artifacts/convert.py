"""Between the protobuf messages of the artifact service and its domain objects."""

from collections.abc import Iterable, Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from tidemill import names
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.api.registry.v1 import registry_pb2
from tidemill.artifacts.blobs import Blob
from tidemill.artifacts.catalog import Artifact
from tidemill.artifacts.changes import Appeared, Gone
from tidemill.artifacts.manifests import DEFAULT_MEDIA_TYPE, File
from tidemill.artifacts.uploads import Upload


def upload_id(name: str) -> str:
    """The id in `uploads/{id}`. Raises Invalid."""
    return names.split(name, "uploads")[0]


def blob_digest(name: str) -> str:
    """The digest in `blobs/{sha256}`. Raises Invalid."""
    return names.check_digest(names.split(name, "blobs")[0], "name")


def artifact_digest(name: str) -> str:
    """The digest in `artifacts/{digest}`. Raises Invalid."""
    return names.check_digest(names.split(name, "artifacts")[0], "name")


def from_files(files: pb.Artifact) -> list[File]:
    """The files of an artifact that somebody asks for; their sizes are found out later."""
    return [File(file.path, file.sha256, 0, file.media_type or DEFAULT_MEDIA_TYPE) for file in files.files]


def to_upload(upload: Upload) -> pb.Upload:
    """An upload as a message."""
    return pb.Upload(
        name=f"uploads/{upload.id}",
        sha256=upload.sha256,
        size=upload.size,
        offset=upload.offset,
        state=pb.Upload.STATE_COMPLETE if upload.complete else pb.Upload.STATE_ACTIVE,
        expire_time=_time(upload.expires),
    )


def to_blob(blob: Blob) -> pb.Blob:
    """A blob as a message."""
    return pb.Blob(name=f"blobs/{blob.sha256}", sha256=blob.sha256, size=blob.size, create_time=_time(blob.created))


def to_artifact(artifact: Artifact) -> pb.Artifact:
    """An artifact as a message."""
    manifest = artifact.manifest
    return pb.Artifact(
        name=f"artifacts/{artifact.digest}",
        digest=artifact.digest,
        kind=manifest.kind,
        files=[
            pb.File(path=file.path, sha256=file.sha256, size=file.size, media_type=file.media_type)
            for file in manifest.files
        ],
        labels=manifest.labels,
        size=manifest.size,
        references=artifact.references,
        create_time=_time(artifact.created),
    )


def model(message: registry_pb2.Model) -> str:
    """The name of a model."""
    return names.split(message.name, "models")[0]


def to_version(message: registry_pb2.ModelVersion) -> Appeared:
    """A version, as far as it matters here."""
    return Appeared(message.name, message.artifact)


def changes(events: Iterable[registry_pb2.Event]) -> Iterator[Appeared | Gone]:
    """What changes of the registry mean to versions, in their order; a deleted model takes its versions with it."""
    for event in events:
        deleted = event.type == registry_pb2.EVENT_TYPE_DELETED
        match event.WhichOneof("resource"):
            case "model_version" if deleted:
                yield Gone((event.model_version.name,))
            case "model_version" if event.type == registry_pb2.EVENT_TYPE_CREATED:
                yield to_version(event.model_version)
            case "model" if deleted:
                yield Gone([f"{event.model.name}/versions/{n}" for n in range(1, event.model.latest_version + 1)])


def _time(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(int(seconds * 1_000_000))
    return stamp
