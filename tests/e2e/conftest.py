"""One platform for the tests that only use it; those that hurt it start their own."""

from collections.abc import Iterator

import pytest

from tests.support.up import Up, platform


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with platform(tmp_path_factory.mktemp("platform") / "data") as running:
        yield running
