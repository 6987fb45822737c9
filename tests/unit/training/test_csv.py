"""Data sets as tables: what is read, and what is refused by line and column."""

import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.support.datafiles import write, write_csv
from tidemill.errors import Invalid
from tidemill.training import words
from tidemill.training.datasets.base import Options
from tidemill.training.datasets.csv import MAX_TOKENS, Csv
from tidemill.training.samples import Dataset


def read(folder: Path, text: str | bytes, label: str = "label", column: str = "", limit: int = 1 << 20) -> Dataset:
    raw = text.encode() if isinstance(text, str) else text
    return Csv.read(write(folder, {"t.csv": raw}), Options(label_column=label, text_column=column, limit=limit))


class TestNumbers:
    def test_columns_in_order_without_the_label(self, tmp_path: Path) -> None:
        dataset = read(tmp_path, "a,kind,b\n1,x,2.5\n-3e2,y,.5\n 4 ,x,+5\n", label="kind")
        assert dataset.samples.x.dtype == np.float32
        assert dataset.samples.x.tolist() == [[1, 2.5], [-300, 0.5], [4, 5]]
        assert dataset.labels == ("x", "y")
        assert dataset.samples.y.tolist() == [0, 1, 0]
        assert dataset.tokenizer == ""

    def test_quotes_empty_lines_windows_line_ends_and_a_byte_order_mark(self, tmp_path: Path) -> None:
        dataset = read(tmp_path, '\ufeff"a","label"\r\n"1","p, q"\r\n\r\n2,"r ""s"""\r\n')
        assert dataset.samples.x.tolist() == [[1], [2]]
        assert dataset.labels == ("p, q", 'r "s"')

    def test_numeric_classes_are_in_order_of_number(self, tmp_path: Path) -> None:
        assert read(tmp_path, "a,label\n1,10\n2,9\n3,-1\n").labels == ("-1", "9", "10")
        assert read(tmp_path, "a,label\n1,10\n2,9\n3,x\n").labels == ("10", "9", "x")
        assert read(tmp_path, "a,label\n1,07\n2,7\n").labels == ("07", "7")


class TestTexts:
    def test_words_become_checksums(self, tmp_path: Path) -> None:
        dataset = read(tmp_path, "label,text\ngood,Very GOOD!\nbad,bad\n", column="text")
        very, good, bad = (zlib.crc32(word.encode()) for word in ("very", "good", "bad"))
        assert dataset.samples.x.tolist() == [[very, good], [bad, 0]]
        assert dataset.samples.x.dtype == np.int64
        assert dataset.tokenizer == words.RULE

    def test_a_client_can_make_the_same_tokens(self, tmp_path: Path) -> None:
        text = "Der Fluß, naïve – 東京 2026_x"
        dataset = read(tmp_path, f'label,text\na,"{text}"\nb,one\n', column="text")
        assert np.array_equal(dataset.samples.x[0], words.padded(text, dataset.samples.x.shape[1]))
        assert words.padded(text, 2).tolist() == dataset.samples.x[0, :2].tolist()

    def test_long_texts_are_cut(self, tmp_path: Path) -> None:
        dataset = read(tmp_path, f"label,text\na,{'w ' * 1000}\nb,w\n", column="text")
        assert dataset.samples.x.shape == (2, MAX_TOKENS)

    def test_other_columns_do_not_matter(self, tmp_path: Path) -> None:
        assert read(tmp_path, "n,label,text\nx,a,w\n,b,w\n", column="text").samples.x.shape == (2, 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("a,label\n", "no rows"),
        ("a,b\n1,2\n", "no column 'label'; it has 'a', 'b'"),
        ("label\nx\n", "no column but the label"),
        ("a,a,label\n1,2,x\n", "'a' is not one"),
        ("a,,label\n1,2,x\n", "name of its own"),
        ("a,label\n1,x\n2,\n", "line 3, column 'label': the class is missing"),
        ("a,label\n1,x\n,y\n", "line 3, column 'a': the value is missing"),
        ("a,label\n1,x\nfour,y\n", "line 3, column 'a': 'four' is not a number"),
        ("a,label\n1,x\nnan,y\n", "line 3, column 'a': 'nan' is not a finite"),
        ("a,label\n1,x\n-inf,y\n", "not a finite"),
        ("a,label\n1,x\n1e39,y\n", "not a finite"),
        ("a,label\n1,x\n1_0,y\n", "not a finite"),
        ("a,label\n1,x\n2\n", "line 3 has 1 cells, the header has 2"),
        ("a,label\n1,x\n2,y,z\n", "line 3 has 3 cells"),
        ("a,label\n1,x\n2,x\n", "at least two classes"),
        ('a,label\n"1,x\n2,y\n', "cannot be read"),
        ('a,label\n"1"2,x\n2,y\n', "cannot be read"),
        ("a,label\n1,x\n\0,y\n", "cannot be read|not a number"),
        (b"a,label\n1,\xff\n", "not UTF-8"),
        ("a,label\n1,x\n2," + "y" * 257 + "\n", "longer than 256"),
        ("a,label\n1,x\n2," + "y" * 200_000 + "\n", "line 3 of the table cannot be read"),
        (",".join(f"c{i}" for i in range(20_000)) + "\n", "at most 16384"),
    ],
)
def test_tables_that_are_no_data_set(tmp_path: Path, text: str | bytes, problem: str) -> None:
    with pytest.raises(Invalid, match=problem) as caught:
        read(tmp_path, text)
    assert caught.value.reason == "BAD_DATASET"


def test_texts_without_words_and_missing_text_columns(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"line 3, column 'text': the text has no word"):
        read(tmp_path, "label,text\na,w\nb,?!\n", column="text")
    with pytest.raises(Invalid, match="no column 'words'"):
        read(tmp_path, "label,text\na,w\n", column="words")
    with pytest.raises(Invalid, match="must differ"):
        read(tmp_path, "label,text\na,w\n", column="label")


def test_more_than_the_limit(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="at most 40 are allowed"):
        read(tmp_path, "a,label\n" + "1,x\n" * 20, limit=40)
    rows = [["label", "text"], ["a", "w " * 200], *[["b", "w"]] * 30]
    files = write_csv(tmp_path, rows)
    size = files["table.csv"].stat().st_size
    with pytest.raises(Invalid, match="tokens of the table"):
        Csv.read(files, Options(text_column="text", limit=size + 1000))


def test_damaged_tables_are_refused_and_nothing_else_happens(tmp_path: Path) -> None:
    good = "a,b,label\n" + "".join(f'{i}.5,"{i}e-2",k{i % 3}\n' for i in range(30))
    chance = random.Random(11)
    refused = 0
    for turn in range(400):
        raw = bytearray(good.encode())
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(len(raw))
            if chance.random() < 0.5:
                raw[at] = chance.choice(b',"\n\r\0\xff\xc3 xe-')
            else:
                del raw[at : at + chance.randint(1, 9)]
        try:
            read(tmp_path, bytes(raw), column="a" if turn % 4 == 0 else "")
        except Invalid:
            refused += 1
    assert refused > 100
