"""What the tests of the clients share."""

from collections.abc import Iterator

import pytest

from tests.support.cli import storage
from tidemill.cli.stack import Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A registry and an artifact service, as processes."""
    with storage(tmp_path_factory.mktemp("storage") / "data") as running:
        yield running
