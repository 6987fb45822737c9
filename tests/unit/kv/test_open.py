"""Stores from URLs."""

from pathlib import Path

import pytest

from tests.support.clock import ManualClock
from tidemill import errors
from tidemill.kv.etcd import EtcdKv
from tidemill.kv.etcd_connection import Tls
from tidemill.kv.open import open_kv
from tidemill.kv.sqlite import SqliteKv


async def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (f"sqlite://{tmp_path}/a%20b.db", "sqlite:a b.db"):
        kv = await open_kv(url)
        assert isinstance(kv, SqliteKv)
        await kv.put("a", b"1")
        await kv.close()
    assert (tmp_path / "a b.db").exists()


async def test_memory_with_a_clock() -> None:
    clock = ManualClock()
    kv = await open_kv("sqlite::memory:", clock=clock)
    await kv.put("a", b"1", lease=await kv.grant_lease(5))
    clock.jump(5)
    assert await kv.get("a") is None
    await kv.close()


async def test_a_cluster_that_need_not_be_there() -> None:
    kv = await open_kv("etcd://a.example:2379,b.example:2379?prefix=tidemill/", username="u", password="p")
    assert isinstance(kv, EtcdKv)
    await kv.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "postgres://x",
        "/just/a/file",
        "sqlite:",
        "sqlite:///",
        "sqlite://host/file",
        "sqlite:///a?b=c",
        "etcd://",
        "etcd://host",
        "etcd://user:secret@host:2379",
        "etcd://host:2379/path",
        "etcd://host:2379?x=1",
        "etcd://host:2379,",
        "etcd://host:2379#x",
    ],
)
async def test_anything_else_is_refused(url: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        await open_kv(url)
    assert "secret" not in str(caught.value)


async def test_options_of_the_other_store_are_refused() -> None:
    for options in ({"username": "u"}, {"tls": Tls()}):
        with pytest.raises(errors.Invalid):
            await open_kv("sqlite::memory:", **options)
