"""Artifacts, their references, and what there is of blobs and uploads besides their bytes."""

from tidemill.gateway.operations import Rpc

_ARTIFACT = "artifacts/{digest}"
_BLOB = "blobs/{sha256}"
_UPLOAD = "uploads/{upload}"

RPCS = (
    Rpc(
        verb="POST",
        path="/artifacts",
        call="ArtifactService.CreateArtifact",
        body="artifact",
        status=201,
        tag="Artifacts",
    ),
    Rpc(verb="GET", path="/artifacts", call="ArtifactService.ListArtifacts", tag="Artifacts"),
    Rpc(
        verb="GET",
        path="/artifacts/{digest}",
        call="ArtifactService.GetArtifact",
        bind={"name": _ARTIFACT},
        tag="Artifacts",
    ),
    Rpc(
        verb="DELETE",
        path="/artifacts/{digest}",
        call="ArtifactService.DeleteArtifact",
        bind={"name": _ARTIFACT},
        tag="Artifacts",
    ),
    Rpc(
        verb="POST",
        path="/artifacts/{digest}:addReference",
        call="ArtifactService.AddReference",
        bind={"name": _ARTIFACT},
        body="*",
        tag="Artifacts",
    ),
    Rpc(
        verb="POST",
        path="/artifacts/{digest}:removeReference",
        call="ArtifactService.RemoveReference",
        bind={"name": _ARTIFACT},
        body="*",
        tag="Artifacts",
    ),
    Rpc(verb="GET", path="/blobs", call="ArtifactService.ListBlobs", tag="Blobs"),
    Rpc(verb="DELETE", path="/blobs/{sha256}", call="ArtifactService.DeleteBlob", bind={"name": _BLOB}, tag="Blobs"),
    Rpc(verb="POST", path="/uploads", call="ArtifactService.CreateUpload", body="*", status=201, tag="Blobs"),
    Rpc(verb="GET", path="/uploads/{upload}", call="ArtifactService.GetUpload", bind={"name": _UPLOAD}, tag="Blobs"),
    Rpc(
        verb="POST",
        path="/uploads/{upload}:finish",
        call="ArtifactService.FinishUpload",
        bind={"name": _UPLOAD},
        tag="Blobs",
    ),
    Rpc(
        verb="DELETE",
        path="/uploads/{upload}",
        call="ArtifactService.AbortUpload",
        bind={"name": _UPLOAD},
        tag="Blobs",
    ),
)
