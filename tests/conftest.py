"""Fixtures for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.etcd import EtcdServer, running_etcd
from tests.support.s3 import S3Server, running_s3

# Hundreds of processes start here, and what the first of them compiles the others are to read.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name parameters of bytes by their argument: packed bytes hold the time, and workers must agree on every name."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One real etcd for all tests of the process; each uses a prefix of its own and leaves the server as it is."""
    with running_etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3 server for all tests of the process; each makes a bucket of its own and leaves the server running."""
    with running_s3(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd that the test may kill."""
    with running_etcd(tmp_path / "etcd", ["--bcrypt-cost=4"]) as server:
        yield server
