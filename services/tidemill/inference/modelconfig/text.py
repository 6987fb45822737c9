"""Configurations as text: the protobuf text format of `config.pbtxt`, or the JSON of a load request."""

import json

from google.protobuf import json_format, text_format

from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.errors import Invalid

MAX_BYTES = 256 << 10
"""Longest text that is read: parsing costs time in proportion."""
MAX_DEPTH = 24
"""Brackets inside of each other; the messages themselves need 8."""


def from_text(data: bytes) -> pb.ModelConfig:
    """The message that a `config.pbtxt` holds.

    Raises:
        Invalid: it is too long, nested too deeply, or not such a text; unknown fields are errors too.
    """
    _check_size(len(data))
    try:
        text = data.decode()
        _check_depth(text)
        message: pb.ModelConfig = text_format.Parse(text, pb.ModelConfig())
    except (text_format.ParseError, ValueError, OverflowError, RecursionError) as error:
        raise _refused("config.pbtxt", error) from error
    return message


def from_json(text: str) -> pb.ModelConfig:
    """The message that a JSON object holds, with names of fields as in the proto or in camel case.

    Raises:
        Invalid: as `from_text`.
    """
    _check_size(len(text))
    try:
        _check_depth(text)
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("it must be an object")
        message: pb.ModelConfig = json_format.ParseDict(value, pb.ModelConfig(), max_recursion_depth=MAX_DEPTH)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _refused("the configuration", error) from error
    return message


def to_bytes(message: pb.ModelConfig) -> bytes:
    """The message as it is kept in `Configuration.tracked`."""
    return bytes(message.SerializeToString(deterministic=True))


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise Invalid(f"a configuration may have {MAX_BYTES} bytes, not {size}", reason="INVALID_CONFIG")


def _check_depth(text: str) -> None:
    """Count brackets, those in strings too: good enough for a bound, and no parser is needed."""
    depth = 0
    for character in text:
        if character in "{[<":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
        elif character in "}]>":
            depth = max(0, depth - 1)


def _refused(what: str, error: Exception) -> Invalid:
    said = " ".join(str(error).split())[:300]
    return Invalid(f"{what} cannot be read: {said}", reason="INVALID_CONFIG")
