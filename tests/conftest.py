"""Fixtures for all tests."""

from collections.abc import Iterator

import pytest

from tests.support.etcd import EtcdServer, running_etcd


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One real etcd for all tests of the process; each uses a prefix of its own and leaves the server as it is."""
    with running_etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server
