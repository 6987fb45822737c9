"""Compressed bodies: what is understood, what is refused, and when answers are compressed."""

import gzip
import itertools
import os
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response

from tests.unit.gateway.test_bodies import request
from tidemill import errors
from tidemill.gateway import compression
from tidemill.gateway.bodies import Bodies
from tidemill.gateway.compression import MINIMUM, STEP, Inflater, accepted, encoded
from tidemill.gateway.pieces import Pieces
from tidemill.gateway.problems import Refused

COMPRESS: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress}
INFLATE: dict[str, Any] = {"gzip": gzip.decompress, "deflate": zlib.decompress}
MIB = 1 << 20


async def received(chunks: Sequence[bytes], encoding: str, limit: int = MIB) -> bytes:
    bodies = Bodies(limit=limit, buffered=2 * limit)
    async with bodies.received(request(list(chunks), {"content-encoding": encoding})) as body:
        return bytes(body)


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize(
    "data", [b"", b"abc", b"a" * (MIB - 1), os.urandom(100_000)], ids=["none", "few", "many", "random"]
)
async def test_bodies_are_inflated(encoding: str, data: bytes) -> None:
    packed = COMPRESS[encoding](data)
    assert await received([packed], encoding) == data
    assert await received([packed], encoding.upper()) == data
    parts = [packed[start : start + 1000] for start in range(0, len(packed), 1000)]
    assert await received(parts, encoding) == data


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 250), max_size=5))
def test_cuts_in_compressed_data_do_not_matter(data: bytes, cuts: list[int]) -> None:
    packed = gzip.compress(data)
    edges = sorted({0, len(packed), *(min(cut, len(packed)) for cut in cuts)})
    inflater = Inflater("gzip")
    parts = [piece for start, end in itertools.pairwise(edges) for piece in inflater.feed(packed[start:end])]
    inflater.end()
    assert b"".join(parts) == data


@pytest.mark.parametrize("encoding", COMPRESS)
async def test_the_limit_is_that_of_the_inflated_bytes(encoding: str) -> None:
    assert len(await received([COMPRESS[encoding](b"a" * MIB)], encoding)) == MIB
    with pytest.raises(Refused) as refused:
        await received([COMPRESS[encoding](b"a" * (MIB + 1))], encoding)
    assert refused.value.status == 413


@pytest.mark.parametrize("encoding", COMPRESS)
async def test_a_bomb_is_refused_as_soon_as_it_is_too_large(encoding: str) -> None:
    bomb = COMPRESS[encoding](bytes(256 * MIB))
    tracemalloc.start()
    try:
        with pytest.raises(Refused):
            await received([bomb], encoding)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB + STEP


async def test_compressed_bytes_count_too() -> None:
    nothing = zlib.compressobj()
    empty = [nothing.compress(b"") + nothing.flush(zlib.Z_SYNC_FLUSH) for _ in range(10)]
    with pytest.raises(Refused):
        await received([*empty, *([nothing.flush(zlib.Z_FULL_FLUSH) or b"\0"] * 100)], "deflate", limit=20)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip,deflate", "x", "identity, gzip"])
async def test_other_encodings_are_415(encoding: str) -> None:
    with pytest.raises(Refused) as refused:
        await received([b"x"], encoding)
    assert refused.value.status == 415


GOOD = gzip.compress(b"abc")


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", b""),
        ("gzip", b"abc"),
        ("gzip", GOOD[:-1]),
        ("gzip", GOOD[:-8] + b"\0" * 8),
        ("gzip", GOOD + b"x"),
        ("gzip", GOOD + GOOD),
        ("deflate", GOOD),
        ("deflate", zlib.compress(b"abc")[:-1]),
    ],
)
async def test_what_is_not_compressed_as_it_says_is_invalid(encoding: str, data: bytes) -> None:
    with pytest.raises(errors.Invalid, match=f"the body is not {encoding}"):
        await received([data], encoding)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("deflate;q=1, gzip;q=0.5", "deflate"),
        ("gzip;q=0", ""),
        ("*", "gzip"),
        ("*;q=0.1, gzip;q=0", "deflate"),
        ("br, identity", ""),
        ("identity, gzip;q=0.5", ""),
        ("gzip;q=x", ""),
        ("gzip;level=1;q=0.5", "gzip"),
    ],
)
def test_the_encoding_that_is_preferred(header: str, wanted: str) -> None:
    assert accepted(header) == wanted


async def answered(response: Response, accept: str) -> tuple[Response, bytes]:
    made = await encoded(request([], {"accept-encoding": accept}), response)
    return made, b"".join(made.buffers) if isinstance(made, Pieces) else bytes(made.body)


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("size", [MINIMUM, 20 * MINIMUM, 4 * compression.THREAD])
async def test_answers_are_compressed(encoding: str, size: int) -> None:
    parts: list[bytes | memoryview] = [b"head", memoryview(b"b" * size)]
    made, body = await answered(Pieces(parts, headers={"X-Other": "1"}, media_type="text/x"), encoding)
    assert INFLATE[encoding](body) == b"head" + b"b" * size
    assert made.headers["content-encoding"] == encoding
    assert (made.headers["content-length"], made.headers["x-other"]) == (str(len(body)), "1")
    assert made.headers["vary"] == "Accept-Encoding"
    assert made.headers["content-type"].startswith("text/x")


async def test_answers_are_left_alone_when_compressing_does_not_pay() -> None:
    for response, accept in (
        (JSONResponse({"a": 1}), "gzip"),
        (Pieces([os.urandom(10 * MINIMUM)]), "gzip"),
        (Pieces([b"b" * 10 * MINIMUM]), "br"),
        (Pieces([b"b" * 10 * MINIMUM], status=400), "gzip"),
    ):
        made, _ = await answered(response, accept)
        assert made is response
        assert "content-encoding" not in made.headers
