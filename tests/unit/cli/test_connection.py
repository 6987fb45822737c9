"""Commands find the services, and say which one they did not find."""

import argparse
import json
from pathlib import Path

import pytest

from tests.support.ports import free_ports
from tidemill.cli.connection import Connection, add_arguments
from tidemill.cli.tracetree import from_files
from tidemill.clients.registry import RegistryClient
from tidemill.errors import Invalid, Unavailable


def connection(*arguments: str) -> Connection:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return Connection(parser.parse_args(arguments))


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REGISTRY_ADDRESS", "TRAINING_ADDRESS", "GATEWAY_URL", "DATA", "JAEGER_URL"):
        monkeypatch.delenv(f"TIDEMILL_{name}", raising=False)


def test_defaults(tmp_path: Path) -> None:
    where = connection("--data", str(tmp_path))
    assert where.addresses == {
        "registry": "127.0.0.1:7101",
        "artifacts": "127.0.0.1:7102",
        "training": "127.0.0.1:7103",
        "inference": "127.0.0.1:8001",
        "gateway": "http://127.0.0.1:8080",
    }
    assert where.shards is None


def test_a_running_stack_says_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"pid": 1, "port_offset": 100, "shards": 3}))
    where = connection("--data", str(tmp_path))
    assert where.addresses["registry"] == "127.0.0.1:7201"
    assert where.shards == 3
    assert where.stack.shard(2) == "127.0.0.1:7224"


def test_an_ended_stack_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "up.json").touch()
    assert connection("--data", str(tmp_path)).addresses["registry"] == "127.0.0.1:7101"


def test_the_flag_wins_over_the_running_stack(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"port_offset": 100, "shards": 3}))
    where = connection("--data", str(tmp_path), "--port-offset", "7")
    assert where.addresses["registry"] == "127.0.0.1:7108"
    assert where.shards is None


def test_variables_win_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_REGISTRY_ADDRESS", "registry:7101")
    monkeypatch.setenv("TIDEMILL_DATA", str(tmp_path))
    where = connection("--port-offset", "7")
    assert where.addresses["registry"] == "registry:7101"
    assert where.addresses["artifacts"] == "127.0.0.1:7109"
    assert where.stack.data == tmp_path


@pytest.mark.parametrize("text", ["{", "[]", '{"port_offset": 1}', '{"port_offset": "x", "shards": 1}', "null"])
def test_a_damaged_note_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "up.json").write_text(text)
    with pytest.raises(Invalid, match="is not what `tidemill up` writes"):
        connection("--data", str(tmp_path))
    assert connection("--data", str(tmp_path), "--port-offset", "0").shards is None


async def test_a_service_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("TIDEMILL_REGISTRY_ADDRESS", address)
    where = connection("--data", str(tmp_path))
    with pytest.raises(Unavailable, match=f"the registry service at {address} does not answer"):
        async with where.client("registry", RegistryClient) as client:
            await client.get_model("digits")


async def test_what_a_service_itself_says_is_left_as_it_is(tmp_path: Path) -> None:
    where = connection("--data", str(tmp_path))
    with pytest.raises(Unavailable, match="the store is away"):
        async with where.client("registry", RegistryClient):
            raise Unavailable("the store is away", reason="STORE_AWAY")


def test_spans_of_commands_are_kept_beside_those_of_the_stack(tmp_path: Path) -> None:
    where = connection("--data", str(tmp_path))
    with where.traced("tidemill nowhere"):
        pass
    assert list(tmp_path.iterdir()) == []
    where.stack.traces.mkdir()
    with where.traced("tidemill here") as (_, trace_id):
        pass
    (span,) = from_files(where.stack.traces, trace_id)
    assert (span.service, span.name) == ("cli", "tidemill here")
