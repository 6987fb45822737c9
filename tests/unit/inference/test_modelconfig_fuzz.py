"""Configurations changed at random: they are taken or refused, and nothing else happens."""

import random
from contextlib import suppress

import pytest
from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.inference.test_modelconfig import ENSEMBLE, SIMPLE, WRONG
from tidemill.api.compat.inference import model_config_pb2 as pb
from tidemill.errors import Invalid
from tidemill.inference.modelconfig.declared import Declared

# Of protobuf's own parser, for a backslash that begins no escape.
pytestmark = pytest.mark.filterwarnings("ignore:.*invalid .*escape sequence:DeprecationWarning")
SEEDS = [SIMPLE, ENSEMBLE, *(text for text in WRONG.values() if len(text) < 4000)]
PIECES = [
    "{",
    "}",
    "[",
    "]",
    ":",
    '"',
    "-",
    "1e999",
    "inf",
    "nan",
    "\\",
    "\x00",
    "é",
    "input",
    "step",
    "0x",
    "#",
    "<",
    ">",
]


def take(text: str, override: str = "") -> None:
    """Read a configuration to the end, or see it refused."""
    with suppress(Invalid):
        declared = Declared("simple", text.encode("utf-8", "surrogatepass"), override)
        declared.configuration(declared.kind(["model.onnx"]), lambda path: b"12345678")


def mutated(text: str, chance: random.Random) -> str:
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        match chance.randrange(4):
            case 0:
                text = text[:at] + chance.choice(PIECES) + text[at:]
            case 1:
                text = text[:at] + text[at + chance.randint(1, 8) :]
            case 2:
                text = text[:at] + text[max(0, at - 20) : at] + text[at:]
            case _:
                text = text[:at] + chr(chance.randrange(0x20, 0x3000)) + text[at + 1 :]
    return text


@pytest.mark.parametrize("seed", range(8))
def test_mutated_text(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(150):
        take(mutated(chance.choice(SEEDS), chance))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_json(seed: int) -> None:
    chance = random.Random(seed)
    texts = [json_format.MessageToJson(text_format.Parse(text, pb.ModelConfig())) for text in (SIMPLE, ENSEMBLE)]
    for _ in range(150):
        take("", mutated(chance.choice(texts), chance))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_message_as_text(data: bytes) -> None:
    message = pb.ModelConfig()
    try:
        message.ParseFromString(data)
    except DecodeError:  # no message at all: nothing to test
        return
    take(text_format.MessageToString(message))
