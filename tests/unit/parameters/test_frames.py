"""Files of frames: what was written is read, what is torn was never there, what is damaged is refused."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tidemill.errors import DataLoss
from tidemill.parameters import frames


def written(path: Path, *bodies: list[float]) -> None:
    writer = frames.Writer(path)
    for number, body in enumerate(bodies):
        array = np.array(body, "<f4")
        writer.begin({"number": number}, array.nbytes)
        for part in np.array_split(array, 2):
            writer.add(part.data.cast("B"))
        writer.end()
    writer.close()


def bodies(path: Path) -> list[list[float]]:
    return [frame.body.tolist() for frame in frames.read(path)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written(tmp_path / "f", [1, 2, 3], [4])
    found = list(frames.read(tmp_path / "f"))
    assert [frame.body.tolist() for frame in found] == [[1, 2, 3], [4]]
    assert [frame.facts for frame in found] == [{"number": 0}, {"number": 1}]
    assert found[-1].end == (tmp_path / "f").stat().st_size


def test_a_file_cut_anywhere_holds_the_frames_before(tmp_path: Path) -> None:
    written(tmp_path / "f", [1, 2, 3], [4])
    data = (tmp_path / "f").read_bytes()
    first = next(frames.read(tmp_path / "f")).end
    for size in range(len(data)):
        (tmp_path / "g").write_bytes(data[:size])
        assert bodies(tmp_path / "g") == ([[1, 2, 3]] if size >= first else [])


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    written(tmp_path / "f", [1, 2, 3], [4])
    data = (tmp_path / "f").read_bytes()
    for position in range(len(data)):
        spoilt = bytearray(data)
        spoilt[position] ^= 1 << (position % 8)
        (tmp_path / "g").write_bytes(spoilt)
        found = [[5.0]]
        with suppress(DataLoss):
            found = bodies(tmp_path / "g")
        # A length that says more than there is looks torn; what was not written is never given.
        assert found in ([[5]], [], [[1, 2, 3]])


def test_a_frame_that_was_begun_and_not_ended_gives_way_to_the_next(tmp_path: Path) -> None:
    writer = frames.Writer(tmp_path / "f")
    writer.begin({}, 400)
    writer.add(memoryview(bytes(200)))
    with pytest.raises(ValueError, match="200"):
        writer.end()
    writer.begin({}, 4)
    writer.add(np.array([7], "<f4").data.cast("B"))
    writer.end()
    writer.close()
    assert bodies(tmp_path / "f") == [[7]]
