"""Models, versions, aliases, the event log, and live instances."""

from tidemill.gateway.operations import Rpc

_MODEL = "models/{model}"
_VERSION = "models/{model}/versions/{version}"
_ALIAS = "models/{model}/aliases/{alias}"

RPCS = (
    Rpc(verb="POST", path="/models", call="RegistryService.CreateModel", body="model", status=201, tag="Models"),
    Rpc(verb="GET", path="/models", call="RegistryService.ListModels", tag="Models"),
    Rpc(verb="GET", path="/models/{model}", call="RegistryService.GetModel", bind={"name": _MODEL}, tag="Models"),
    Rpc(
        verb="PATCH",
        path="/models/{model}",
        call="RegistryService.UpdateModel",
        bind={"model.name": _MODEL},
        body="model",
        etag="model.etag",
        mask="update_mask",
        tag="Models",
    ),
    Rpc(
        verb="DELETE",
        path="/models/{model}",
        call="RegistryService.DeleteModel",
        bind={"name": _MODEL},
        etag="etag",
        tag="Models",
    ),
    Rpc(
        verb="POST",
        path="/models/{model}/versions",
        call="RegistryService.CreateModelVersion",
        bind={"parent": _MODEL},
        body="model_version",
        status=201,
        tag="Versions",
    ),
    Rpc(
        verb="GET",
        path="/models/{model}/versions",
        call="RegistryService.ListModelVersions",
        bind={"parent": _MODEL},
        tag="Versions",
    ),
    Rpc(
        verb="GET",
        path="/models/{model}/versions/{version}",
        call="RegistryService.GetModelVersion",
        bind={"name": _VERSION},
        tag="Versions",
    ),
    Rpc(
        verb="PATCH",
        path="/models/{model}/versions/{version}",
        call="RegistryService.UpdateModelVersion",
        bind={"model_version.name": _VERSION},
        body="model_version",
        etag="model_version.etag",
        mask="update_mask",
        tag="Versions",
    ),
    Rpc(
        verb="DELETE",
        path="/models/{model}/versions/{version}",
        call="RegistryService.DeleteModelVersion",
        bind={"name": _VERSION},
        etag="etag",
        tag="Versions",
    ),
    Rpc(
        verb="GET",
        path="/models/{model}/aliases",
        call="RegistryService.ListAliases",
        bind={"parent": _MODEL},
        tag="Aliases",
    ),
    Rpc(
        verb="PUT",
        path="/models/{model}/aliases/{alias}",
        call="RegistryService.SetAlias",
        bind={"name": _ALIAS},
        body="*",
        etag="etag",
        tag="Aliases",
    ),
    Rpc(
        verb="GET",
        path="/models/{model}/aliases/{alias}",
        call="RegistryService.GetAlias",
        bind={"name": _ALIAS},
        tag="Aliases",
    ),
    Rpc(
        verb="DELETE",
        path="/models/{model}/aliases/{alias}",
        call="RegistryService.DeleteAlias",
        bind={"name": _ALIAS},
        etag="etag",
        tag="Aliases",
    ),
    Rpc(
        verb="GET",
        path="/events",
        call="RegistryService.Watch",
        event="change",
        resume=("revision", "from_revision"),
        tag="Events",
    ),
    Rpc(verb="GET", path="/instances", call="DiscoveryService.ListInstances", tag="Status"),
)
