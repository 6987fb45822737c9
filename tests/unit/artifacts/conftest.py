"""Fixtures of the tests of the artifact service."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.shelf import Shelf


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    made = Shelf(tmp_path)
    await made.store.start()
    yield made
    await made.store.close()
