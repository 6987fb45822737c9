"""Blocks of gradients of every kind that codecs must carry."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tidemill.tensors.blocks import Array

FLOAT = np.dtype("<f4")
BLOCK = 2**18
SIZES = (1, 2, 333, 4095, 4096, 4097, 3 * 4096, 100_001, BLOCK)
"""With every kind of rest beside a group of 4096."""


def of(size: int, seed: int = 0) -> Array:
    """Like those of a network: small ones, with magnitudes over several decades and zeros between."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(size) * 10.0 ** random.uniform(-6, -1, size)
    values[random.random(size) < 0.05] = 0
    return values.astype(FLOAT)


def kinds(size: int) -> dict[str, Array]:
    """One block of each strange kind, all within the range of every codec."""
    random = np.random.default_rng(size)
    sign = np.where(random.random(size) < 0.5, -1, 1)
    spikes = np.zeros(size)
    spikes[::61] = 3
    off = of(size, 5).astype(np.float64)
    off[1::61] += 7
    found = {
        "network": of(size, 1),
        "zeros": np.zeros(size),
        "negative zeros": np.full(size, -0.0),
        "denormal": sign * random.integers(1, 2**20, size) * 2.0**-149,
        "least": np.full(size, 2.0**-149),
        "around the least normal": sign * random.uniform(0.2, 200, size) * 2.0**-126,
        "huge": sign * random.uniform(1e3, 6e4, size),
        "all equal": np.full(size, -0.7),
        "two sizes": np.where(random.random(size) < 0.5, 1e-20, 1e4),
        "rising": np.arange(size) / size,
        "where the sample looks": spikes,
        "beside where the sample looks": off,
        "one": np.eye(1, size, size // 2)[0],
    }
    return {name: values.astype(FLOAT) for name, values in found.items()}


def floats(magnitude: float = 6e4) -> st.SearchStrategy[Array]:
    """Any block of up to 300 values of at most this magnitude."""
    limit = float(np.float32(magnitude))
    return arrays(FLOAT, st.integers(1, 300), elements=st.floats(-limit, limit, width=32))
