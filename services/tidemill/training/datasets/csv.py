"""Samples as a table of comma-separated values with a header line (RFC 4180, UTF-8).

One column holds the class. Either all others hold numbers, or one column holds a text, whose words become tokens.
"""

import csv
import io
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tidemill.training import words
from tidemill.training.datasets.base import Options, Reader, only, too_large
from tidemill.training.samples import MAX_LABEL, Array, Dataset, assemble, bad

MAX_COLUMNS = 16384
MAX_TOKENS = 256
"""Longest text in tokens; what is beyond is cut."""
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


class Csv(Reader):
    """A table with a header line, a label column, and columns of numbers or one of text."""

    has_columns = True

    @classmethod
    def accepts(cls, names: Sequence[str]) -> bool:
        """One file `*.csv`."""
        return sum(name.lower().endswith(".csv") for name in names) == 1

    @classmethod
    def read(cls, files: Mapping[str, Path], options: Options) -> Dataset:
        """The table as a data set: float32 columns in order, or int64 tokens as many as the longest text has."""
        path = only(files, ".csv")
        size = path.stat().st_size
        if size > options.limit:
            raise too_large("the table", size, options.limit)
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                return _dataset(stream, options)
        except UnicodeDecodeError as error:
            raise bad(f"the table is not UTF-8: {error}") from error


def _dataset(stream: io.TextIOBase, options: Options) -> Dataset:
    rows = _rows(stream)
    _, header = next(rows, (0, []))
    columns = [name.strip() for name in header]
    _check_columns(columns, options)
    label = columns.index(options.label_column)
    if options.text_column:
        return _texts(rows, columns, label, columns.index(options.text_column), options.limit)
    return _numbers(rows, columns, label, options.limit)


def _rows(stream: io.TextIOBase) -> Iterator[tuple[int, list[str]]]:
    """(line in the file, cells) of each row that is not empty."""
    reader = csv.reader(stream, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise bad(f"line {reader.line_num} of the table cannot be read: {error}") from error


def _check_columns(columns: Sequence[str], options: Options) -> None:
    if not columns:
        raise bad("the table is empty")
    if len(columns) > MAX_COLUMNS:
        raise bad(f"the table has {len(columns)} columns; at most {MAX_COLUMNS} are allowed")
    for name, times in Counter(columns).items():
        if not name or times > 1:
            raise bad(f"every column must have a name of its own; {name[:40]!r} is not one")
    for name in filter(None, (options.label_column, options.text_column)):
        if name not in columns:
            raise bad(f"the table has no column {name[:40]!r}; it has {', '.join(map(repr, columns))[:200]}")
    if options.label_column == options.text_column:
        raise bad("the label column and the text column must differ")
    if len(columns) < 2:
        raise bad("the table has no column but the label")


def _cells(row: list[str], line: int, columns: Sequence[str]) -> list[str]:
    if len(row) != len(columns):
        raise bad(f"line {line} has {len(row)} cells, the header has {len(columns)}")
    return row


def _label(row: list[str], line: int, columns: Sequence[str], label: int) -> str:
    text = row[label].strip()
    if not text:
        raise bad(f"line {line}, column {columns[label][:40]!r}: the class is missing")
    if len(text) > MAX_LABEL:
        raise bad(f"line {line}, column {columns[label][:40]!r}: the class is longer than {MAX_LABEL} characters")
    return text


def _numbers(rows: Iterator[tuple[int, list[str]]], columns: list[str], label: int, limit: int) -> Dataset:
    labels: list[str] = []
    values = array("f")
    for line, row in rows:
        labels.append(_label(_cells(row, line, columns), line, columns, label))
        values.extend(_number(cell, line, columns[i]) for i, cell in enumerate(row) if i != label)
        if 4 * len(values) > limit:
            raise too_large("the table", 4 * len(values), limit)
    if not labels:
        raise bad("the table has a header but no rows")
    return assemble(np.frombuffer(values, np.float32).reshape(len(labels), -1), _classes(labels))


def _number(cell: str, line: int, column: str) -> float:
    text = cell.strip()
    where = f"line {line}, column {column[:40]!r}"
    if not text:
        raise bad(f"{where}: the value is missing")
    try:
        value = float(text)
    except ValueError:
        raise bad(f"{where}: {text[:40]!r} is not a number") from None
    if "_" in text or not abs(value) <= float(np.finfo(np.float32).max):
        raise bad(f"{where}: {text[:40]!r} is not a finite number of 32 bits")
    return value


def _texts(rows: Iterator[tuple[int, list[str]]], columns: list[str], label: int, text: int, limit: int) -> Dataset:
    labels: list[str] = []
    found: list[array[int]] = []
    longest = 1
    for line, row in rows:
        labels.append(_label(_cells(row, line, columns), line, columns, label))
        found.append(array("q", words.tokens(row[text])[:MAX_TOKENS]))
        if not found[-1]:
            raise bad(f"line {line}, column {columns[text][:40]!r}: the text has no word")
        longest = max(longest, len(found[-1]))
        if 8 * longest * len(found) > limit:
            raise too_large("the tokens of the table", 8 * longest * len(found), limit)
    if not labels:
        raise bad("the table has a header but no rows")
    x = np.zeros((len(found), longest), np.int64)
    for i, line_tokens in enumerate(found):
        x[i, : len(line_tokens)] = line_tokens
    return assemble(x, _classes(labels), tokenizer=words.RULE)


def _classes(labels: Sequence[str]) -> Array:
    """Labels as whole numbers when all of them are written as such, so that 10 comes after 9; else as texts."""
    if all(_WHOLE.fullmatch(label) for label in labels):
        return np.array([int(label) for label in labels], np.int64)
    return np.array(labels)
