"""What commands print: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table


def console() -> Console:
    """The terminal on standard output."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def to_json(message: Message) -> Any:
    """A message as JSON with the field names of the proto."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_line(value: Any) -> None:
    """One JSON value on a line of its own: an item of a stream."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "nothing") -> None:
    """A table; columns whose name ends in `#` are numbers, set right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = column.endswith("#")
        table.add_column(column.rstrip("#"), justify="right" if number else "left", overflow="fold")
    count = 0
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
        count += 1
    if count:
        Console(highlight=False, markup=False).print(table)
    else:
        console().print(empty)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other; empty values are left out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        if value not in ("", None):
            table.add_row(name, str(value))
    Console(highlight=False, markup=False).print(table)


def when(stamp: Timestamp) -> str:
    """A time stamp in local time, to the second; "" for none."""
    if not stamp.seconds:
        return ""
    return datetime.fromtimestamp(stamp.seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def pairs(mapping: Any) -> str:
    """A map as `a=1, b=2`."""
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in sorted(mapping.items())
    )
