"""Settings of the registry."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.registry import settings
from tidemill import config
from tidemill.errors import Invalid
from tidemill.registry.config import RegistryConfig


def test_the_defaults_keep_everything_in_one_file() -> None:
    loaded = config.load(RegistryConfig, "REGISTRY", arguments=[], environment={})
    assert (loaded.port, loaded.ops_port, loaded.host) == (7101, 9101, "127.0.0.1")
    assert loaded.store == "sqlite:tidemill-data/registry.db"
    assert loaded.event_retention == 100_000
    assert loaded.tls is None


def test_secrets_come_from_the_environment_and_are_not_shown() -> None:
    variables = {
        "TIDEMILL_REGISTRY_STORE": "etcd://a:1,b:2",
        "TIDEMILL_REGISTRY_STORE_USER": "ann",
        "TIDEMILL_REGISTRY_STORE_PASSWORD": "s3cret",
    }
    loaded = config.load(RegistryConfig, "REGISTRY", arguments=[], environment=variables)
    assert (loaded.store, loaded.store_user, loaded.store_password) == ("etcd://a:1,b:2", "ann", "s3cret")
    assert "s3cret" not in repr(loaded)


def test_tls_files_are_told_apart(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    given = settings(store_tls=True, store_ca=str(tmp_path / "ca"))
    assert given.tls is not None
    assert (given.tls.ca, given.tls.cert) == (tmp_path / "ca", None)
    both = settings(store_tls=True, store_cert=str(tmp_path / "cert"), store_key=str(tmp_path / "key"))
    assert both.tls is not None
    assert (both.tls.ca, both.tls.cert, both.tls.key) == (None, tmp_path / "cert", tmp_path / "key")


@pytest.mark.parametrize(
    "wrong",
    [
        {"event_retention": 0},
        {"heartbeat": 0.0},
        {"heartbeat": 31.0},
        {"heartbeat": float("nan")},
        {"store_user": "ann"},
        {"store_password": "s3cret"},
        {"store_ca": __file__},
        {"store_tls": True, "store_ca": "/no/such/file"},
        {"store_tls": True, "store_cert": __file__},
        {"port": 70000},
        {"host": "0.0.0.0"},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as refused:
        settings(**wrong)
    assert "s3cret" not in refused.value.message
