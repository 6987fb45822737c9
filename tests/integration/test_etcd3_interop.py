"""The `etcd3` package and Tidemill's client share a cluster: each reads, watches and guards what the other wrote."""

import asyncio
import base64
import json
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.etcd import EtcdServer
from tests.support.kv import read_watch, shown
from tests.support.venvs import venv
from tests.support.wait import until
from tidemill import errors
from tidemill.kv.base import Compare, Kv, Put
from tidemill.kv.etcd import EtcdKv

PROGRAM = Path(__file__).parents[1] / "support" / "etcd3_client.py"

pytestmark = pytest.mark.timeout(600)


class Etcd3:
    """The other client, in a process with pure Python protobuf, without which it cannot be imported."""

    def __init__(self, process: asyncio.subprocess.Process, prefix: str) -> None:
        self._process = process
        self._prefix = prefix

    async def __call__(self, command: str, **args: Any) -> Any:
        for name in ("key", "prefix"):
            if name in args:
                args[name] = self._prefix + args[name]
        if "value" in args:
            args["value"] = base64.b64encode(args["value"]).decode()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"command": command, **args}).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), 30)
        assert line, "the etcd3 program has ended; its error stands in the captured output"
        return json.loads(line)


@pytest.fixture(scope="module")
def etcd3_python() -> Path:
    return venv("etcd3")


@pytest.fixture
def prefix() -> str:
    return f"interop-{uuid.uuid4()}/"


@pytest.fixture
async def etcd3(etcd3_python: Path, etcd_server: EtcdServer, prefix: str) -> AsyncIterator[Etcd3]:
    process = await asyncio.create_subprocess_exec(
        str(etcd3_python),
        "-P",  # modules beside the program are not its own
        str(PROGRAM),
        "127.0.0.1",
        str(etcd_server.port),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
    )
    yield Etcd3(process, prefix)
    if process.returncode is None:
        process.kill()
    await process.wait()


@pytest.fixture
async def kv(etcd_server: EtcdServer, prefix: str) -> AsyncIterator[Kv]:
    store = EtcdKv([etcd_server.address], prefix=prefix)
    yield store
    await store.close()


def text(value: bytes) -> str:
    return base64.b64encode(value).decode()


async def test_what_etcd3_writes_is_read_and_watched_here(etcd3: Etcd3, kv: Kv) -> None:
    start = (await kv.range("")).revision + 1
    await etcd3("put", key="m/a", value=b"\0one")
    await etcd3("put", key="m/a", value=b"two")
    assert await etcd3("create", key="m/b", value=b"three")
    assert not await etcd3("create", key="m/b", value=b"four")
    await etcd3("delete", key="m/a")
    events = [event for batch in await read_watch(kv, "m/", start, events=4) for event in batch.events]
    assert shown(events) == [
        ("put", "m/a", b"\0one", start),
        ("put", "m/a", b"two", start + 1),
        ("put", "m/b", b"three", start + 2),
        ("delete", "m/a", b"", start + 3),
    ]
    assert [(entry.key, entry.value) for entry in (await kv.range("")).entries] == [("m/b", b"three")]


async def test_what_is_written_here_is_read_and_watched_by_etcd3(etcd3: Etcd3, kv: Kv, prefix: str) -> None:
    start = (await kv.put("m/a", b"\xffone")).revision
    await kv.txn([Compare("m/b", create_revision=0)], [Put("m/b", b"two"), Put("m/c", b"three")])
    await kv.delete("m/a")
    assert await etcd3("list", prefix="m/") == {f"{prefix}m/b": text(b"two"), f"{prefix}m/c": text(b"three")}
    assert await etcd3("watch", prefix="m/", revision=start, count=4) == [
        ["put", f"{prefix}m/a", text(b"\xffone")],
        ["put", f"{prefix}m/b", text(b"two")],
        ["put", f"{prefix}m/c", text(b"three")],
        ["delete", f"{prefix}m/a", ""],
    ]


async def test_each_guards_against_the_writes_of_the_other(etcd3: Etcd3, kv: Kv) -> None:
    made = (await kv.put("a", b"1")).revision
    assert await etcd3("get", key="a") == [text(b"1"), made, made, 1]
    assert await etcd3("replace", key="a", value=b"2", mod_revision=made)
    assert not (await kv.txn([Compare("a", mod_revision=made)], [Put("a", b"3")])).succeeded
    entry = await kv.get("a")
    assert entry is not None
    assert (entry.value, entry.create_revision, entry.version) == (b"2", made, 2)
    assert (await kv.txn([Compare("a", mod_revision=entry.mod_revision)], [Put("a", b"3")])).succeeded
    assert not await etcd3("replace", key="a", value=b"4", mod_revision=entry.mod_revision)


async def test_leases_are_shared(etcd3: Etcd3, kv: Kv) -> None:
    theirs = await etcd3("put", key="theirs", value=b"1", ttl=60)
    entry = await kv.get("theirs")
    assert entry is not None
    assert entry.lease == theirs
    assert await kv.renew_lease(theirs) == 60
    await kv.revoke_lease(theirs)
    assert await etcd3("get", key="theirs") is None

    ours = await kv.grant_lease(60)
    await kv.put("ours", b"1", lease=ours)
    await etcd3("revoke", lease=ours)
    assert await kv.get("ours") is None
    with pytest.raises(errors.NotFound):
        await kv.renew_lease(ours)


async def test_a_lease_of_etcd3_that_is_not_renewed_ends_here_too(etcd3: Etcd3, kv: Kv) -> None:
    await etcd3("put", key="short", value=b"1", ttl=1)

    async def gone() -> bool:
        return await kv.get("short") is None

    await until(gone)
