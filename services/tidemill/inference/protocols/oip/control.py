"""Loading and unloading by request."""

from tidemill import names
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Invalid, Unavailable, Unimplemented
from tidemill.inference.control import ModelControl
from tidemill.inference.inputs import shown

_CONFIG = "config"
_FILE = "file:"
_DEPENDENTS = "unload_dependents"
_VERSION = "version"
"""Of ours: the one version that a request is about, as a string."""
_MAX_PARAMETERS = 1024


def load(control: ModelControl | None, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
    """Load a model.

    Raises:
        TidemillError: see `ModelControl.load`.
    """
    found = _checked(control, request)
    config = version = ""
    files: dict[str, bytes] = {}
    for name, parameter in request.parameters.items():
        arm = parameter.WhichOneof("parameter_choice")
        if name == _CONFIG:
            if arm != "string_param":
                raise _wrong(name, "string")
            config = parameter.string_param
        elif name == _VERSION:
            if arm != "string_param":
                raise _wrong(name, "string")
            version = parameter.string_param
        elif name.startswith(_FILE):
            if arm != "bytes_param":
                raise _wrong(name, "bytes")
            files[name.removeprefix(_FILE)] = parameter.bytes_param
        else:
            raise Invalid(f"unrecognized load parameter '{shown(name)}'", reason="UNKNOWN_PARAMETER")
    found.load(request.model_name, config, files, version)
    return pb.RepositoryModelLoadResponse(model_name=request.model_name, isLoaded=True)


def unload(control: ModelControl | None, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
    """Unload a model.

    Raises:
        TidemillError: see `ModelControl.unload`.
    """
    found = _checked(control, request)
    dependents, version = False, ""
    for name, parameter in request.parameters.items():
        arm = parameter.WhichOneof("parameter_choice")
        if name == _DEPENDENTS:
            if arm != "bool_param":
                raise _wrong(name, "bool")
            dependents = parameter.bool_param
        elif name == _VERSION:
            if arm != "string_param":
                raise _wrong(name, "string")
            version = parameter.string_param
        else:
            raise Invalid(f"unrecognized unload parameter '{shown(name)}'", reason="UNKNOWN_PARAMETER")
    found.unload(request.model_name, dependents, version)
    return pb.RepositoryModelUnloadResponse(model_name=request.model_name, isUnloaded=True)


def check_repository(name: str) -> None:
    """Return when no repository is named: there is one alone. Raises Unimplemented."""
    if name:
        raise Unimplemented("'repository_name' specification is not supported", reason="REPOSITORY_NAMED")


def _checked(
    control: ModelControl | None, request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest
) -> ModelControl:
    if request.repository_name and not request.model_name:
        # KServe's message has the model's name where this one has the repository's.
        request.model_name, request.repository_name = request.repository_name, ""
    check_repository(request.repository_name)
    if control is None:
        raise Unavailable(
            "explicit model load / unload is not allowed: the registry's aliases say what is served",
            reason="CONTROL_NOT_EXPLICIT",
        )
    names.check(request.model_name, "model_name")
    if len(request.parameters) > _MAX_PARAMETERS:
        raise Invalid(f"at most {_MAX_PARAMETERS} parameters at a time", reason="TOO_MANY_PARAMETERS")
    return control


def _wrong(name: str, wanted: str) -> Invalid:
    return Invalid(
        f"invalid value type for parameter '{shown(name)}', expected a {wanted} parameter", reason="WRONG_PARAMETER"
    )
