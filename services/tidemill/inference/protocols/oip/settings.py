"""Trace and log settings, as messages."""

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Invalid, NotFound
from tidemill.inference.inputs import shown
from tidemill.inference.logsettings import LogSettings
from tidemill.inference.repository import Repository
from tidemill.inference.tracing import Tracing

_MAX_SETTINGS = 64
_MAX_VALUES = 8


def trace(tracing: Tracing, repository: Repository, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
    """Change trace settings, and tell those that are in force then.

    Raises:
        NotFound: there is no such model.
        Invalid, Unimplemented, Exhausted: see `Tracing.update`.
    """
    model = request.model_name
    if model and not repository.known(model):
        raise NotFound(f"Request for unknown model : {shown(model)}", reason="MODEL_NOT_FOUND")
    _check(len(request.settings))
    for name, setting in request.settings.items():
        if len(setting.value) > _MAX_VALUES:
            raise Invalid(f"'{shown(name)}': takes at most {_MAX_VALUES} values", reason="WRONG_SETTING")
    tracing.update(model, {name: list(setting.value) for name, setting in request.settings.items()})
    response = pb.TraceSettingResponse()
    for name, values in tracing.settings(model).items():
        response.settings[name].value.extend(values)
    return response


def log(settings: LogSettings, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
    """Change log settings, and tell those that are in force then.

    Raises:
        Invalid, Unimplemented: see `LogSettings.update`.
    """
    _check(len(request.settings))
    changes: dict[str, bool | int | str] = {}
    for name, setting in request.settings.items():
        arm = setting.WhichOneof("parameter_choice")
        if arm is None:
            raise Invalid(f"'{shown(name)}': has no value", reason="WRONG_SETTING")
        changes[name] = getattr(setting, arm)
    settings.update(changes)
    response = pb.LogSettingsResponse()
    for name, value in settings.settings().items():
        made = response.settings[name]
        if isinstance(value, bool):
            made.bool_param = value
        elif isinstance(value, int):
            made.uint32_param = value
        else:
            made.string_param = value
    return response


def _check(count: int) -> None:
    if count > _MAX_SETTINGS:
        raise Invalid(f"at most {_MAX_SETTINGS} settings at a time", reason="TOO_MANY_SETTINGS")
