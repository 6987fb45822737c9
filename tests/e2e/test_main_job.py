"""The main job over every front door, as users do it: from the command line, Python, REST and Node."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.nodepackages import node_modules
from tests.support.up import Up
from tidemill.cli.stack import MANAGEMENT, OIP_REST, TFS_REST
from tidemill.clients.platform import Tidemill

pytestmark = [pytest.mark.xdist_group("platform"), pytest.mark.timeout(300)]
SERVICES = {"gateway", "training", "parameters", "artifacts", "registry", "inference"}
ROOT = Path(__file__).parents[2]


def rest(
    up: Up, port: int, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str = ""
) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(
        f"http://{up.stack.address(port)}{path}",
        data,
        {"Content-Type": "application/json", **(headers or {})},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    import time

    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"not within 30 s: {what}"
        time.sleep(0.05)


def wait_served(tidemill: Tidemill, model: str) -> None:
    wait_until(lambda: tidemill.inference.model_ready(model), f"{model} is served")


@pytest.fixture
def tidemill(up: Up) -> Any:
    addresses = up.stack.addresses
    names = ("registry", "artifacts", "training", "inference")
    with Tidemill(**{name: addresses[f"TIDEMILL_{name.upper()}_ADDRESS"] for name in names}) as connection:
        yield connection


def samples(tidemill: Tidemill, job: Any) -> tuple[Any, Any]:
    """The held-out samples of a job."""
    import io

    artifact = tidemill.artifacts.get_artifact(job["result"]["test_samples"])
    digest = next(file.sha256 for file in artifact.files if file.path == "test.npz")
    arrays = np.load(io.BytesIO(tidemill.artifacts.download(digest)), allow_pickle=False)
    return arrays["x"].astype("f4"), arrays["y"]


def test_quality_and_parity_are_recorded(trained: Any, up: Up) -> None:
    test = trained["result"]["test"]
    assert test["accuracy"] > 0.9
    assert 0 < test["precision"] <= 1
    assert trained["result"]["parity"] < 1e-4
    version = up.json("models", "show", "digits", "1")
    assert version["metrics"]["accuracy"] == pytest.approx(test["accuracy"])
    assert version["lineage"]["job"] == "jobs/main"
    assert version["lineage"]["dataset_digests"]
    assert version["aliases"] == ["champion"]


def test_every_front_door_gives_the_same_answer(trained: Any, up: Up, tidemill: Tidemill) -> None:
    wait_served(tidemill, "digits")
    x, y = samples(tidemill, trained)
    x, y = x[:20], y[:20]
    grpc = tidemill.predict("digits", x)
    assert isinstance(grpc, np.ndarray)
    assert (grpc.argmax(1) == y).mean() > 0.8
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    oip = rest(up, OIP_REST, "/v2/models/digits/infer", {"inputs": [tensor]})["outputs"][0]
    np.testing.assert_allclose(np.array(oip["data"]).reshape(oip["shape"]), grpc, atol=1e-6)
    rows = rest(up, TFS_REST, "/v1/models/digits:predict", {"instances": x.tolist()})["predictions"]
    np.testing.assert_allclose(rows, grpc, atol=1e-6)
    columns = rest(up, TFS_REST, "/v1/models/digits:predict", {"inputs": {"x": x.tolist()}})["outputs"]
    np.testing.assert_allclose(columns, grpc, atol=1e-6)


def test_predict_command(trained: Any, up: Up, tidemill: Tidemill, tmp_path: Path) -> None:
    wait_served(tidemill, "digits")
    x, _ = samples(tidemill, trained)
    np.save(tmp_path / "x.npy", x[:3])
    answer = up.json("predict", "digits", str(tmp_path / "x.npy"))
    assert answer["model_version"] == "1"
    assert np.array(answer["outputs"]["y"]).shape == (3, 10)
    shown = up.cli("predict", "digits", str(tmp_path / "x.npy"), "--version", "champion")
    assert shown.returncode == 0
    assert "version 1" in shown.stdout
    assert "'nope' is not found" in up.cli("predict", "nope", str(tmp_path / "x.npy")).stderr


def spans_of(up: Up, name: str, model: str) -> list[dict[str, Any]]:
    """The spans of this name about `model`, of whatever trace."""
    lines = [line for path in up.stack.traces.glob("*.jsonl") for line in path.read_text().splitlines()]
    spans = [json.loads(line) for line in lines if f'"{name}"' in line]
    return [span for span in spans if model in span["attributes"].values()]


def test_one_trace_from_the_job_to_the_first_prediction(up: Up, tidemill: Tidemill) -> None:
    spec = {
        "model": {"name": "mlp"},
        "dataset": {"builtin": "iris"},
        "workers": 2,
        "shards": 2,
        "epochs": 2,
        "register_as": "models/traced",
        "alias": "champion",
    }
    trace_id = os.urandom(16).hex()
    header = {"traceparent": f"00-{trace_id}-{os.urandom(8).hex()}-01"}
    created = rest(up, MANAGEMENT, "/api/v1/jobs", spec, header)
    job = tidemill.training.wait_job(created["name"])
    assert job.result.model_version == "models/traced/versions/1", job.error
    wait_served(tidemill, "traced")
    # Whoever asks first, in a trace of their own or none: the model's trace ends with this prediction.
    tidemill.predict("traced", np.zeros((1, 4), "f4"))
    # Over connections of their own, which go to different processes: the first prediction of each belongs to it.
    processes = len(list(up.stack.traces.glob("inference.*.jsonl")))
    wait_until(lambda: len(spans_of(up, "inference.load", "traced")) == processes, "each has a copy")
    for _ in range(6):
        with Tidemill(inference=up.stack.addresses["TIDEMILL_INFERENCE_ADDRESS"]) as connection:
            connection.predict("traced", np.zeros((1, 4), "f4"))
    assert {span["trace_id"] for span in spans_of(up, "inference.first_prediction", "traced")} == {trace_id}
    spans = up.json("trace", created["name"])
    assert spans == up.json("trace", trace_id)
    assert {span["service"] for span in spans} >= SERVICES | {"worker"}
    names = {span["name"] for span in spans}
    assert {"worker.export", "parameters.round", "inference.load", "inference.first_prediction"} <= names
    ranks = {span["attributes"].get("tidemill.worker.rank") for span in spans if span["name"] == "worker.run"}
    assert ranks == {0, 1}
    tree = up.cli("trace", created["name"])
    assert "inference.first_prediction" in tree.stdout


def test_commands_list_and_show_what_there_is(trained: Any, up: Up) -> None:
    assert "main" in up.cli("jobs").stdout
    assert "accuracy" in up.cli("jobs", "show", "main").stdout
    assert "digits" in up.cli("models").stdout
    assert "champion" in up.cli("models", "versions", "digits").stdout
    kinds = {artifact["kind"] for artifact in up.json("artifacts")}
    assert {"model", "checkpoint", "logs"} <= kinds
    log = up.cli("logs", "main").stdout
    assert "rank 0" in log
    assert "rank 1" in log
    status = up.json("status")
    assert {row["status"] for row in status} == {"SERVING"}
    assert len(status) == 7


def test_files_go_in_and_come_out_equal(trained: Any, images: Path, up: Up, tmp_path: Path) -> None:
    for name, artifact in (("in", trained["spec"]["dataset"]["artifact"]), ("out", trained["result"]["artifact"])):
        done = up.cli("artifacts", "download", artifact, "--to", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "in" / images.name).read_bytes() == images.read_bytes()
    assert (tmp_path / "out" / "model.onnx").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "gpt9", "digits"], "cnn, mlp, text"),
        (["train", "mlp", "nothing"], "digits"),
        (["train", "mlp", "digits", "--optimizer", "magic"], "adamw"),
        (["train", "mlp", "digits", "--workers", "1000"], "workers"),
        (["train", "mlp", "digits", "-p", "hidden=no"], "hidden"),
        (["train", "mlp", "digits", "--register", "../etc"], "register_as"),
        (["jobs", "show", "nope"], "nope"),
        (["models", "show", "nope"], "nope"),
        (["predict", "digits", "-"], "Expecting value"),
        (["artifacts", "show", "0" * 64], "0000"),
        (["trace", "0" * 32], "no span"),
    ],
)
def test_wrong_input_is_one_clear_line(up: Up, arguments: list[str], said: str) -> None:
    done = up.cli(*arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_python_example_of_the_readme(up: Up, trained: Any, tidemill: Tidemill) -> None:
    wait_served(tidemill, "digits")
    readme = (ROOT / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    code = "import numpy as np\nimages = np.zeros((2, 8, 8), 'f4')\n" + example
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **up.stack.addresses},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) > 0.9


def test_the_node_example_of_the_readme(up: Up, trained: Any) -> None:
    modules = node_modules()
    example = (ROOT / "README.md").read_text().split("```js\n")[1].split("```")[0]
    address = up.stack.addresses["TIDEMILL_REGISTRY_ADDRESS"]
    code = example.replace("127.0.0.1:7101", address).replace('["protos"]', json.dumps([str(ROOT / "protos")]))
    done = subprocess.run(
        ["node", "-e", code], cwd=modules.parent, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert "models/digits" in done.stdout
