"""What commands print: tables and lines for people, JSON for programs."""

import json
import math
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from io import StringIO
from itertools import accumulate
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table

_UNBOUNDED = 1 << 16
_FOLDED = 12
"""Characters that a column which may be folded keeps."""


def to_json(message: Message) -> Any:
    """A message as JSON with the field names of the proto, empty fields included."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(_finite(value), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def print_line(value: Any) -> None:
    """One JSON value on a line of its own: an item of a stream."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinities: they become texts, as in protobuf's JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def printable(text: str) -> str:
    """`text` with control characters spelled out: what others wrote must not steer this terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def warn(text: str) -> None:
    """A line on standard error."""
    print(f"tidemill: {printable(text)}", file=sys.stderr)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, fold: Iterable[str] = (), empty: str = "nothing"
) -> None:
    """A table, a line for each row; a terminal that is too narrow folds long cells and leaves out the last columns.

    Args:
        columns: names; those that end in `#` are of numbers, set right.
        rows: cells.
        fold: names of the columns whose cells may be broken up into lines.
        empty: printed when there is no row.
    """
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if not cells:
        print(empty)
        return
    names, folded = [column.rstrip("#") for column in columns], set(fold)
    widths = [max(map(cell_len, column)) for column in zip(names, *cells, strict=True)]
    least = [min(wide, _FOLDED) if name in folded else wide for name, wide in zip(names, widths, strict=True)]
    fitting = _fitting(least, width())
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, name, wide in list(zip(columns, names, least, strict=True))[:fitting]:
        justify: JustifyMethod = "right" if column.endswith("#") else "left"
        if name in folded:
            table.add_column(name, justify=justify, overflow="fold", min_width=wide)
        else:
            table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")
    for row in cells:
        table.add_row(*row[:fitting])
    _print(table)


def _fitting(widths: Sequence[int], room: int | None) -> int:
    """How many columns fit into `room` characters, two between each; at least one."""
    ends = [end + 2 * position for position, end in enumerate(accumulate(widths))]
    return len(ends) if room is None else max(1, bisect_right(ends, room))


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other; empty values are left out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        if value not in ("", None):
            table.add_row(name, printable(str(value)))
    _print(table)


def _print(table: Table) -> None:
    terminal = Console(highlight=False, markup=False, emoji=False)
    if terminal.is_terminal:
        terminal.print(table)
        return
    text = StringIO()
    Console(file=text, width=_UNBOUNDED, highlight=False, markup=False, emoji=False).print(table)
    for line in text.getvalue().splitlines():
        print(line.rstrip())


def width() -> int | None:
    """Columns of the terminal on standard output; None when that is no terminal."""
    terminal = Console()
    return terminal.width if terminal.is_terminal else None


def when(stamp: Timestamp, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A time stamp in local time, to the second; "" for none."""
    if not stamp.seconds:
        return ""
    return datetime.fromtimestamp(stamp.seconds, UTC).astimezone().strftime(form)


def minute(stamp: Timestamp) -> str:
    """A time stamp in local time, to the minute, as tables show it; "" for none."""
    return when(stamp, "%Y-%m-%d %H:%M")


def size(count: int) -> str:
    """A number of bytes for people."""
    if count < 1024:
        return f"{count} B"
    value, units = count / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while value >= 1023.95 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.1f} {units[0]}"


def duration(milliseconds: float) -> str:
    """A time that something took, for people."""
    return f"{milliseconds:.1f} ms" if milliseconds < 999.95 else f"{milliseconds / 1000:.2f} s"


def counted(number: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def pairs(mapping: Any) -> str:
    """A map as `a=1, b=2`."""
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in sorted(mapping.items())
    )


def short(name: str) -> str:
    """Resource names as tables show them: `models/digits/versions/1` is `digits/1`, `jobs/demo` stays."""
    parts = name.split("/")
    return f"{parts[1]}/{parts[3]}" if len(parts) == 4 and parts[::2] == ["models", "versions"] else name
