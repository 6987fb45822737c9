"""Query parameters as fields of a request message."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from tidemill import errors

_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31),
    FieldDescriptor.TYPE_UINT32: (0, 2**32),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63),
    FieldDescriptor.TYPE_UINT64: (0, 2**64),
}


def fields(message: type[Message], given: Collection[str]) -> list[Any]:
    """The fields of a request that a query can set: all but those `given` otherwise, and those that hold messages."""
    if "*" in given:
        return []
    return [f for f in message.DESCRIPTOR.fields if f.name not in given and not f.is_repeated and _settable(f)]


def _settable(field: Any) -> bool:
    return field.message_type is None or field.message_type.full_name == FieldMask.DESCRIPTOR.full_name


def fill(message: Message, query: Sequence[tuple[str, str]], given: Collection[str]) -> None:
    """Set the fields of `message` that `query` names.

    Raises:
        Invalid: a parameter is unknown, given twice, or not of its field's type.
    """
    known = {f.name: f for f in fields(type(message), given)}
    seen = set()
    for name, value in query:
        shown = name[:64]
        if name not in known:
            expected = ", ".join(known) or "none"
            raise errors.invalid(
                shown, f"is no parameter of this route; known are: {expected}", reason="UNKNOWN_PARAMETER"
            )
        if name in seen:
            raise errors.invalid(shown, "is given twice")
        seen.add(name)
        field = known[name]
        if field.message_type is not None:
            getattr(message, name).paths.extend(path.strip() for path in value.split(",") if path.strip())
        else:
            setattr(message, name, _convert(field, value))


def _convert(field: Any, value: str) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return value
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _choose(
            field, value, {"true": True, "1": True, "": True, "false": False, "0": False}.get, "true or false"
        )
    if field.type == FieldDescriptor.TYPE_ENUM:
        numbers = {name: item.number for name, item in field.enum_type.values_by_name.items()}
        return _choose(field, value, numbers.get, f"one of {', '.join(numbers)}")
    low, high = _RANGES[field.type]
    return _choose(field, value, lambda text: _whole(text, low, high), f"a whole number in [{low}, {high})")


def _choose(field: Any, value: str, convert: Callable[[str], Any], expected: str) -> Any:
    found = convert(value)
    if found is None:
        raise errors.invalid(field.name, f"must be {expected}")
    return found


def _whole(text: str, low: int, high: int) -> int | None:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
        return None
    return int(text) if low <= int(text) < high else None
