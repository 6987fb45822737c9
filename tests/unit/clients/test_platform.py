"""The platform from synchronous Python, over a real registry and a real artifact service."""

import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import environment
from tests.support.ports import free_ports
from tidemill.cli.stack import Stack
from tidemill.clients.platform import DEFAULTS, Tidemill
from tidemill.errors import FailedPrecondition, Invalid, NotFound, Unavailable


@pytest.fixture
def tidemill(stack: Stack) -> Iterator[Tidemill]:
    addresses = {name: stack.addresses[f"TIDEMILL_{name.upper()}_ADDRESS"] for name in DEFAULTS}
    with Tidemill(**addresses) as connection:
        yield connection


def test_calls_wait_for_their_results(tidemill: Tidemill) -> None:
    created = tidemill.registry.create_model("first", tags={"a": "b"})
    assert created == tidemill.registry.get_model("first")
    with pytest.raises(NotFound, match="models/nothing"):
        tidemill.registry.get_model("nothing")


def test_lists_are_plain_iterators(tidemill: Tidemill) -> None:
    for number in range(5):
        tidemill.registry.create_model(f"many-{number}")
    found = [model.name for model in tidemill.registry.list_models(page_size=2)]
    assert [name for name in found if "many" in name] == [f"models/many-{number}" for number in range(5)]
    with pytest.raises(NotFound):
        list(tidemill.registry.list_versions("nothing"))


def test_a_watch_can_be_left(tidemill: Tidemill) -> None:
    tidemill.registry.create_model("watched")
    events = tidemill.registry.watch(from_revision=1)
    assert next(event.revision for response in events for event in response.events) == 1
    events.close()
    assert tidemill.registry.get_model("watched")


def test_blocking_clients_look_like_the_asynchronous_ones(tidemill: Tidemill) -> None:
    assert {"create_model", "watch", "close"} <= set(dir(tidemill.registry))
    assert not [name for name in dir(tidemill.registry) if name.startswith("_")]
    assert tidemill.registry.get_model.__doc__ == "One model. Raises NotFound, as all that name something."
    assert list(inspect.signature(tidemill.registry.get_model).parameters) == ["model"]
    with pytest.raises(AttributeError):
        _ = tidemill.registry.nothing


def test_data_sets_are_uploaded(tidemill: Tidemill, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,label\n1,2\n")
    digest = tidemill.upload_dataset(tmp_path / "x.csv")
    artifact = tidemill.artifacts.get_artifact(digest)
    assert (artifact.kind, [file.path for file in artifact.files]) == ("dataset", ["x.csv"])
    assert tidemill.artifacts.download(artifact.files[0].sha256) == b"a,label\n1,2\n"
    assert tidemill.upload_dataset(str(tmp_path / "x.csv")) == digest
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "x.csv").touch()
    with pytest.raises(Invalid, match="two files have the same name"):
        tidemill.upload_dataset(tmp_path / "x.csv", tmp_path / "y" / "x.csv")
    with pytest.raises(FileNotFoundError):
        tidemill.upload_dataset(tmp_path / "nothing.csv")


def test_deploying_moves_an_alias(tidemill: Tidemill) -> None:
    tidemill.registry.create_model("deployed")
    made = tidemill.artifacts.create_artifact("model", {"model.onnx": b"x"})
    for _ in range(2):
        tidemill.registry.create_version("deployed", format="onnx", artifact=made.digest)
    tidemill.deploy("deployed", 1)
    tidemill.deploy("deployed", 2)
    alias = tidemill.registry.get_alias("deployed", "champion")
    assert (alias.version, alias.previous_version) == (2, 1)
    with pytest.raises(NotFound):
        tidemill.deploy("deployed", 3)


def test_services_that_are_not_there_are_said(tidemill: Tidemill) -> None:
    with pytest.raises(Unavailable):
        tidemill.predict("deployed", [[1.0]])  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        tidemill.train("mlp", "iris")


def test_unknown_services_are_refused() -> None:
    with pytest.raises(Invalid, match="unknown services: gateway, registery"):
        Tidemill(registery="127.0.0.1:1", gateway="127.0.0.1:2")


def test_addresses_come_from_the_environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_REGISTRY_ADDRESS", stack.addresses["TIDEMILL_REGISTRY_ADDRESS"])
    monkeypatch.setenv("TIDEMILL_ARTIFACTS_ADDRESS", f"127.0.0.1:{free_ports(1)[0]}")
    with Tidemill() as connection:
        assert connection.registry.list_instances("nothing") == []
        with pytest.raises(Unavailable):
            connection.artifacts.get_artifact("0" * 64)


def test_a_closed_connection_says_so(tidemill: Tidemill) -> None:
    before = threading.active_count()
    tidemill.close()
    tidemill.close()
    assert threading.active_count() < before
    with pytest.raises(FailedPrecondition, match="closed"):
        tidemill.registry.get_model("first")
    with pytest.raises(FailedPrecondition, match="closed"):
        next(tidemill.registry.list_models())


def test_a_script_that_forgets_to_close_ends_all_the_same(stack: Stack) -> None:
    code = "from tidemill.clients.platform import Tidemill; print(Tidemill().registry.list_instances('nothing'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**stack.addresses), capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert "Traceback" not in done.stderr
