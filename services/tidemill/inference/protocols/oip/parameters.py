"""Parameters of requests, tensors and answers: those with a meaning, and the callers' own."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Invalid
from tidemill.inference.calls import Value
from tidemill.inference.inputs import shown

MAX_PARAMETERS = 256
"""Most parameters of a request."""
MAX_BYTES = 1 << 16
"""Most bytes of all names and texts among the parameters of a request."""
MAX_CORRELATION = 128
"""Longest correlation id that is a text."""
FINAL = "triton_final_response"
_EMPTY_FINAL = "triton_enable_empty_final_response"
_RESERVED = "triton_"
_IGNORED = frozenset({"headers", "binary_data_output"})
"""They mean something over HTTP alone."""
_LARGEST_INT = 2**63
_INTEGERS = ("int64_param", "uint64_param")

Parameters = Mapping[str, pb.InferParameter]


@dataclass(frozen=True, slots=True)
class Options:
    """What the parameters of a request ask for; see `calls.Call`.

    Args:
        empty_final: whether the end of the answers is told also when there is nothing else to say.
        others: the caller's own, for the model.
    """

    correlation: int | str = 0
    starts: bool = False
    ends: bool = False
    priority: int = 0
    patience: float = 0.0
    empty_final: bool = False
    others: Mapping[str, Value] = field(default_factory=dict)


NONE = Options()


def options(parameters: Parameters) -> Options:
    """What the parameters of a request ask for.

    Raises:
        Invalid: one has a wrong type or value, or they are too many or too large.
    """
    if not parameters:
        return NONE
    if len(parameters) > MAX_PARAMETERS:
        raise Invalid(f"a request may have at most {MAX_PARAMETERS} parameters", reason="TOO_MANY_PARAMETERS")
    others: dict[str, Value] = {}
    size = 0
    for name, parameter in parameters.items():
        size += len(name) + len(parameter.string_param)
        if size > MAX_BYTES:
            raise Invalid(f"the parameters of a request may have at most {MAX_BYTES} bytes", reason="PARAMETERS_LARGE")
        if name in _MEANING or name in _IGNORED:
            continue
        if name.startswith(_RESERVED):
            raise Invalid(
                f"parameter '{shown(name)}': names that start with '{_RESERVED}' are reserved",
                reason="RESERVED_PARAMETER",
            )
        others[name] = _value(name, parameter)
    return Options(
        correlation=_correlation(parameters),
        starts=flag(parameters, "sequence_start"),
        ends=flag(parameters, "sequence_end"),
        priority=number(parameters, "priority") or 0,
        patience=(number(parameters, "timeout") or 0) / 1e6,
        empty_final=flag(parameters, _EMPTY_FINAL),
        others=others,
    )


_MEANING = frozenset({"sequence_id", "sequence_start", "sequence_end", "priority", "timeout", _EMPTY_FINAL})


def flag(parameters: Parameters, name: str) -> bool:
    """A parameter that is a truth value; False when it is not given. Raises Invalid."""
    if name not in parameters:
        return False
    if parameters[name].WhichOneof("parameter_choice") != "bool_param":
        raise _wrong(name, "bool_param")
    return parameters[name].bool_param


def number(parameters: Parameters, name: str) -> int | None:
    """A parameter that is a number and not negative; None when it is not given. Raises Invalid."""
    if name not in parameters:
        return None
    arm = parameters[name].WhichOneof("parameter_choice")
    if arm not in _INTEGERS:
        raise _wrong(name, "int64_param or uint64_param")
    found = int(getattr(parameters[name], arm))
    if found < 0:
        raise Invalid(f"invalid value for '{name}' parameter: must not be negative", reason="WRONG_PARAMETER")
    return found


def text(parameters: Parameters, name: str) -> str:
    """A parameter that is a text; "" when it is not given. Raises Invalid."""
    if name not in parameters:
        return ""
    if parameters[name].WhichOneof("parameter_choice") != "string_param":
        raise _wrong(name, "string_param")
    return parameters[name].string_param


def put(parameters: "pb.ModelInferResponse", values: Mapping[str, Value]) -> None:
    """Set the parameters of an answer."""
    for name, value in values.items():
        parameter = parameters.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int):
            if value < _LARGEST_INT:
                parameter.int64_param = value
            else:
                parameter.uint64_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        else:
            parameter.string_param = value


def _correlation(parameters: Parameters) -> int | str:
    name = "sequence_id"
    if name not in parameters:
        return 0
    arm = parameters[name].WhichOneof("parameter_choice")
    if arm == "string_param":
        found = parameters[name].string_param
        if len(found) > MAX_CORRELATION:
            raise Invalid(
                f"sequence_id: a text may have at most {MAX_CORRELATION} characters", reason="WRONG_PARAMETER"
            )
        return found
    if arm not in _INTEGERS:
        raise _wrong(name, "int64_param, uint64_param or string_param")
    return number(parameters, name) or 0


def _value(name: str, parameter: pb.InferParameter) -> Value:
    arm = parameter.WhichOneof("parameter_choice")
    if arm is None:
        raise _wrong(name, "a value")
    found: Value = getattr(parameter, arm)
    return found


def _wrong(name: str, wanted: str) -> Invalid:
    return Invalid(f"invalid value type for '{shown(name)}' parameter, expected {wanted}.", reason="WRONG_PARAMETER")
