"""`models`, `artifacts`, `status` and what `predict` reads, over a real registry and a real artifact service."""

import asyncio
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.cli.conftest import Ask
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.api.tensors.v1 import tensors_pb2 as tensors
from tidemill.cli.commands import predict
from tidemill.cli.stack import Stack
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.registry import RegistryClient
from tidemill.errors import Invalid

SIGNATURE = pb.Signature(
    inputs=[tensors.TensorSpec(name="x", dtype=tensors.DATA_TYPE_FP32, shape=[-1, 8, 8])],
    outputs=[tensors.TensorSpec(name="y", dtype=tensors.DATA_TYPE_FP32, shape=[-1, 2])],
    labels=["cat", "dog"],
)


@pytest.fixture
def on(ask: Ask, stack: Stack) -> Ask:
    """Runs a command against the services."""
    return lambda *arguments: ask(*arguments, "--data", str(stack.data))


def value(on: Ask, *arguments: str) -> Any:
    """What a command that must succeed prints with --json."""
    status, out, err = on(*arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


@pytest.fixture
def model(stack: Stack, request: pytest.FixtureRequest) -> str:
    """A model with two versions, whose files are kept; `champion` is the first."""
    name = "m-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]

    async def make() -> None:
        async with (
            RegistryClient(stack.addresses["TIDEMILL_REGISTRY_ADDRESS"]) as registry,
            ArtifactsClient(stack.addresses["TIDEMILL_ARTIFACTS_ADDRESS"]) as artifacts,
        ):
            await registry.create_model(name, tags={"team": "vision"})
            for number in (1, 2):
                version = f"models/{name}/versions/{number}"
                files = {"model.onnx": f"{name} {number}".encode()}
                made = await artifacts.create_artifact("model", files, reference=version)
                await registry.create_version(
                    name,
                    format="onnx",
                    artifact=made.digest,
                    signature=SIGNATURE,
                    metrics={"accuracy": 0.5 + number / 10, "loss": 1 / number, "auc": 0.9, "other": 7},
                    lineage=pb.Lineage(job="jobs/demo"),
                )
            await registry.set_alias(name, "champion", 1)

    asyncio.run(make())
    return name


def test_models_are_listed_and_shown(on: Ask, model: str) -> None:
    _, out, _ = on("models", "list", "--filter", 'tags.team = "vision"')
    (line,) = [line for line in out.splitlines() if line.startswith(model)]
    assert line.split()[1:3] == ["2", "team=vision"]
    assert any(found["name"] == f"models/{model}" for found in value(on, "models"))
    _, out, _ = on("models", "show", model)
    assert "aliases         champion=1" in out
    assert value(on, "models", "show", model)["aliases"][0]["version"] == "1"


def test_versions_are_a_table_with_their_metrics(on: Ask, model: str) -> None:
    status, out, _ = on("models", "versions", model)
    assert status == 0
    head, first, second = out.splitlines()
    assert head.split() == ["version", "aliases", "accuracy", "loss", "auc", "job", "created"]
    assert first.split()[:6] == ["1", "champion", "60.00%", "1", "0.9", "jobs/demo"]
    assert second.split()[:4] == ["2", "70.00%", "0.5", "0.9"]
    assert [v["version"] for v in value(on, "models", "versions", model, "--filter", "metrics.accuracy > 0.65")] == [
        "2"
    ]


def test_a_version_by_number_and_by_alias(on: Ask, model: str) -> None:
    assert value(on, "models", "show", model, "champion") == value(on, "models", "show", model, "1")
    _, out, _ = on("models", "show", model, "1")
    assert "inputs    x FP32 [?, 8, 8]" in out
    assert "labels    cat, dog" in out


def test_aliases_move_and_go(on: Ask, model: str) -> None:
    _, out, _ = on("models", "alias", model, "2")
    assert out == f"models/{model}/aliases/champion points at version 2 (before: 1)\n"
    assert value(on, "models", "alias", model, "1", "--alias", "next")["version"] == "1"
    _, out, _ = on("models", "unalias", model, "next")
    assert out == f"models/{model}/aliases/next is deleted\n"
    status, _, err = on("models", "unalias", model, "next")
    assert (status, err) == (1, f"tidemill: models/{model}/aliases/next does not exist\n")


def test_tags_are_set_and_removed(on: Ask, model: str) -> None:
    assert value(on, "models", "tag", model, "--tag", "a=1", "--remove", "team")["tags"] == {"a": "1"}
    assert value(on, "models", "tag", model, "champion", "--tag", "b=2=3")["tags"] == {"b": "2=3"}
    status, out, _ = on("models", "tag", model, "--tag", "c=4")
    assert status == 0
    assert "a=1, c=4" in out


def test_deleting_a_version_takes_its_files_along(on: Ask, model: str) -> None:
    artifact = value(on, "models", "show", model, "2")["artifact"]
    status, _, err = on("models", "delete", model, "champion")
    assert status == 1
    assert "champion" in err
    assert value(on, "models", "delete", model, "2") == {"deleted": [f"models/{model}/versions/2"]}
    status, _, err = on("artifacts", "show", artifact)
    assert status == 1
    assert artifact in err


def test_deleting_a_model_needs_force(on: Ask, model: str) -> None:
    status, out, err = on("models", "delete", model)
    assert (status, out) == (1, "")
    assert err == f"tidemill: models/{model} has 2 versions: --force deletes what belongs to it too\n"
    status, out, _ = on("models", "delete", model, "--force")
    assert (status, out) == (0, f"models/{model} is deleted\n")
    assert on("models", "show", model)[0] == 1


def test_flags_stand_anywhere(on: Ask, ask: Ask, stack: Stack, model: str) -> None:
    data = ["--data", str(stack.data)]
    shown = ask("models", *data, "--json", "show", model)
    assert shown == ask("models", "show", *data, model, "--json")
    assert json.loads(shown[1])["name"] == f"models/{model}"


def test_artifacts_go_in_and_come_out(on: Ask, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,label\n1,2\n")
    (tmp_path / "b.bin").write_bytes(bytes(3000))
    files = [str(tmp_path / "a.csv"), str(tmp_path / "b.bin")]
    status, out, _ = on("artifacts", "upload", *files, "--label", "source=test", "--kind", "dataset")
    assert status == 0
    digest = out.strip()
    _, out, _ = on("artifacts", "show", digest[:20])
    assert "labels   source=test" in out
    assert "2.9 KiB" in out
    _, out, _ = on("artifacts", "list", "--kind", "dataset")
    assert digest[:16] in out
    assert value(on, "artifacts", "list", "--kind", "nothing") == []
    status, out, _ = on("artifacts", "download", f"artifacts/{digest}", "--to", str(tmp_path / "out"))
    assert status == 0
    assert sorted(out.splitlines()) == [str(tmp_path / "out" / name) for name in ("a.csv", "b.bin")]
    assert (tmp_path / "out" / "b.bin").read_bytes() == bytes(3000)
    assert on("artifacts", "delete", digest[:16])[:2] == (0, f"artifacts/{digest} is deleted\n")
    assert on("artifacts", "delete", digest)[0] == 1


@pytest.mark.parametrize(
    ("digest", "said"), [("xyz", "'xyz' is not a digest"), ("", "'' is not a digest"), ("0" * 63, "no artifact starts")]
)
def test_digests_that_name_nothing(on: Ask, digest: str, said: str) -> None:
    status, out, err = on("artifacts", "show", digest)
    assert (status, out) == (1, "")
    assert said in err


def test_beginnings_that_name_several(on: Ask, tmp_path: Path) -> None:
    digests: list[str] = []
    while len({digest[0] for digest in digests}) == len(digests):
        (tmp_path / "x").write_text(str(len(digests)))
        digests.append(on("artifacts", "upload", str(tmp_path / "x"))[1].strip())
    status, _, err = on("artifacts", "delete", digests[-1][0])
    assert status == 1
    assert "artifacts start with" in err
    assert digests[-1][:16] in err


def test_status_says_which_service_is_missing(on: Ask) -> None:
    status, out, _ = on("status", "--json")
    assert status == 1
    found = {row["service"]: row["status"] for row in json.loads(out)}
    assert found == {
        "registry": "SERVING",
        "artifacts": "SERVING",
        "training": "no answer",
        "inference": "no answer",
        "gateway": "no answer",
        "parameters.shard-0": "no answer",
    }
    status, out, _ = on("status")
    assert status == 1
    assert out.splitlines()[0].split() == ["service", "status", "address"]


def test_what_predict_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    np.savez(tmp_path / "x.npz", a=np.ones(2), b=np.zeros(3))
    (tmp_path / "x.json").write_text('{"text": [["ä"], ["b"]]}')
    assert predict.read(str(tmp_path / "x.npy"))[""].shape == (2, 3)
    assert set(predict.read(str(tmp_path / "x.npz"))) == {"a", "b"}
    assert predict.read(str(tmp_path / "x.json"))["text"].shape == (2, 1)
    monkeypatch.setattr("sys.stdin", io.StringIO("[[1, 2], [3, 4]]"))
    assert predict.read("-")[""].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", b"[1, 2", "x.json is not JSON: "),
        ("x.json", b"[[1], [2, 3]]", "lists of different lengths"),
        ("x.json", b'[{"a": 1}]', "a list of numbers or of texts was expected"),
        ("x.json", b"[null]", "a list of numbers or of texts was expected"),
        ("x.json", b'"text"', "a list of numbers or of texts was expected"),
        ("x.json", b"3", "a list of numbers or of texts was expected"),
        ("x.json", b"{}", "holds no input"),
        ("x.json", b"\xff\xfe", "x.json is not JSON: "),
        ("x.csv", b"a,b\n1,2\n", "is not a .npy, .npz or .json file"),
        ("x.npy", b"", "is not a .npy, .npz or .json file"),
        ("x.npy", b"nonsense", "is not a .npy, .npz or .json file"),
        ("x.npz", b"PK\x03\x04nonsense", "is not a .npy, .npz or .json file"),
    ],
)
def test_what_predict_cannot_read(ask: Ask, tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    status, out, err = ask("predict", "digits", str(tmp_path / name))
    assert (status, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_no_pickle_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(Invalid, match="allow_pickle=False"):
        predict.read(str(tmp_path / "x.npy"))


def test_tables_at_80_columns(on: Ask, model: str, narrow: Callable[[int], None]) -> None:
    narrow(80)
    for arguments in (["models"], ["models", "versions", model], ["models", "show", model, "1"], ["artifacts"]):
        status, out, _ = on(*arguments)
        assert status == 0
        assert max(len(line.rstrip()) for line in out.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()) <= 80
