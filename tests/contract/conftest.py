"""One fixture for each contract, over all its implementations."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.etcd import EtcdServer
from tidemill.kv.base import Kv
from tidemill.kv.etcd import EtcdKv
from tidemill.kv.sqlite import SqliteKv


@pytest.fixture(params=["sqlite-memory", "sqlite-file", "etcd"])
async def kv(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kv]:
    """An empty key-value store."""
    store: Kv
    if request.param == "etcd":
        server: EtcdServer = request.getfixturevalue("etcd_server")
        store = EtcdKv([server.address], prefix=f"test-{uuid.uuid4()}/")
    else:
        store = await SqliteKv.open(":memory:" if request.param == "sqlite-memory" else tmp_path / "kv.db")
    yield store
    await store.close()
