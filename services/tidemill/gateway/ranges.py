"""The headers `Range` and `Content-Range`, for one range of bytes."""

import re

from tidemill import errors
from tidemill.gateway.problems import Refused

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_CONTENT = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)


def requested(header: str, size: int) -> tuple[int, int] | None:
    """(offset, length) of the part of `size` bytes that a `Range` header asks for; None = the whole.

    A header that is not understood, or asks for several ranges, is ignored, as RFC 9110 allows.

    Raises:
        Refused: with status 416, when nothing of the range exists.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        start, end = size - length, size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= end:
        raise Refused(
            416,
            f"the range is not inside of the {size} bytes there are",
            reason="RANGE_NOT_SATISFIABLE",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end - start


def sent(header: str, length: int) -> int:
    """The offset of a body of `length` bytes, which its `Content-Range` header says; 0 without one.

    Raises:
        Invalid: the header is malformed, or contradicts the length.
    """
    if not header:
        return 0
    match = _CONTENT.fullmatch(header.strip())
    if match is None:
        raise errors.invalid("Content-Range", "must be like: bytes 0-99/200")
    first, last, size = map(int, match.groups())
    if last - first + 1 != length or last >= size:
        raise errors.invalid("Content-Range", f"contradicts itself, or the Content-Length of {length}")
    return first
