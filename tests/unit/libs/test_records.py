"""Dataclasses as JSON and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest

from tidemill import records
from tidemill.errors import DataLoss


class Colour(Enum):
    """An enumeration."""

    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A record in a record."""

    data: bytes = b""
    colour: Colour | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A record with every kind of field."""

    name: str
    parts: tuple[Part, ...] = ()
    pair: tuple[str, Part] = ("", Part())
    by_number: Mapping[int, Part] = field(default_factory=dict)
    options: tuple[tuple[str, Mapping[str, str]], ...] = ()
    where: Path | None = None


WHOLE = Whole(
    name="ä",
    parts=(Part(data=b"\0\xff"), Part(colour=Colour.RED)),
    pair=("a", Part(data=b"b")),
    by_number={3: Part()},
    options=(("cuda", {"device": "0"}),),
    where=Path("/a/b"),
)


def test_every_field_comes_back() -> None:
    assert records.decode(Whole, records.encode(WHOLE)) == WHOLE
    assert records.decode(Whole, records.encode(WHOLE, leave_out=frozenset({"parts"}))).parts == ()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"name": "a", "parts": 3}', '{"name": "a", "parts": [{"data": "*"}]}']
)
def test_what_is_no_record_is_said(text: str) -> None:
    with pytest.raises(DataLoss):
        records.decode(Whole, text.encode())
