"""Words as numbers: how texts become tokens, the same way for whoever asks the trained model."""

import re
import zlib

import numpy as np

from tidemill.training.samples import Array

RULE = "crc32-lower-words"
"""Name of this rule, recorded with every model trained on text."""
PADDING = 0
_WORD = re.compile(r"\w+")


def tokens(text: str) -> list[int]:
    """The CRC-32 of the UTF-8 bytes of each word of `text` in lower case; 1 for a word whose CRC-32 is the padding's.

    A word is a run of letters, digits and underscores of any script.
    """
    return [zlib.crc32(word.encode("utf-8", "replace")) or 1 for word in _WORD.findall(text.lower())]


def padded(text: str, length: int) -> Array:
    """The first `length` tokens of `text` as int64 [length], filled up with padding."""
    found = tokens(text)[:length]
    out = np.full(length, PADDING, np.int64)
    out[: len(found)] = found
    return out
