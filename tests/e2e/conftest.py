"""One platform and one trained job for the tests that only use them; those that hurt a platform start their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.support.up import Up, platform


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with platform(tmp_path_factory.mktemp("platform") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits in a file, as a user has them."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    digits: Any = load_digits()
    np.savez(path, x=digits.images.astype("f4"), y=digits.target)
    return path


@pytest.fixture(scope="session")
def trained(up: Up, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A job of two workers over two shards on a user's file, trained, registered and aliased from the command line."""
    plot = tmp_path_factory.mktemp("plot") / "curve.png"
    arguments = ["train", "mlp", str(images), "--workers", "2", "--shards", "2", "--epochs", "12", "--seed", "3"]
    arguments += ["-p", "hidden=[64]", "--register", "digits", "--alias", "champion", "--job", "main"]
    job = up.json(*arguments, "--plot", str(plot))
    assert job["state"] == "STATE_SUCCEEDED", job.get("error")
    assert plot.read_bytes().startswith(b"\x89PNG")
    return job
