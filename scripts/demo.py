"""The main job, start to end: train a CNN on real handwritten digits, register, deploy, predict, and show the trace."""

import argparse
import asyncio
import contextlib
import io
import json
import math
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from opentelemetry import trace
from rich.console import Console
from rich.table import Table

from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.cli import progress, tracetree
from tidemill.cli.stack import INFERENCE, MANAGEMENT, OIP_REST, OPS, SHARD_STRIDE, TFS_REST, Stack
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.inference import InferenceClient
from tidemill.clients.training import TrainingClient
from tidemill.errors import TidemillError
from tidemill.telemetry.propagation import inject
from tidemill.telemetry.setup import Telemetry, setup

MODEL, ALIAS = "digits", "champion"
WORKERS, SHARDS = 2, 2
WANTED_ACCURACY = 0.97
IMAGES = 100
TOLERANCE = 1e-4
MNIST = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CONSOLE = Console(highlight=False)


class DemoError(Exception):
    """Something did not come out as promised."""


def say(text: str) -> None:
    """Print a headline."""
    CONSOLE.print(f"\n[bold]{text}[/bold]")


def free_offset() -> int:
    """A port offset at which every port of the stack is free."""
    ports = [7101, 7102, 7103, *(7104 + SHARD_STRIDE * n for n in range(SHARDS)), INFERENCE, 8500]
    ports += [OIP_REST, TFS_REST, MANAGEMENT, *OPS.values(), OPS["parameters"] + SHARD_STRIDE]
    for offset in range(20000, 50000, 131):
        with contextlib.ExitStack() as held:
            try:
                for port in set(ports):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return offset
    raise DemoError("no free ports")


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[None]:
    """`tidemill up`, until the block ends."""
    command = [sys.executable, "-m", "tidemill.cli", "up", "--data", str(stack.data)]
    command += ["--port-offset", str(stack.port_offset), "--shards", str(stack.shards)]
    stack.data.mkdir(parents=True, exist_ok=True)
    log = (stack.data / "up.log").open("w")
    # A session of its own: Ctrl-C reaches the demo alone, which then stops the services.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "is ready" in line:
                break
        else:
            log.flush()
            raise DemoError(f"the services did not start:\n{(stack.data / 'up.log').read_text()[-3000:]}")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        log.close()


def rest(method: str, url: str, body: Any = None) -> Any:
    """The JSON answer of a REST call made in the current trace."""
    headers = {"Content-Type": "application/json", **inject()}
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise DemoError(f"{method} {url}: {error.code} {error.read()[:500]!r}") from error


def spec(dataset: pb.Dataset, epochs: int) -> dict[str, Any]:
    """What to train."""
    source = {"builtin": dataset.builtin} if dataset.builtin else {"artifact": dataset.artifact, "format": "idx"}
    return {
        "model": {"name": "cnn"},
        "dataset": source,
        "optimizer": {"name": "adam", "parameters": {"learning_rate": 0.002}},
        "workers": WORKERS,
        "shards": SHARDS,
        "epochs": epochs,
        "batch_size": 64,
        "seed": 7,
        "early_stopping": {"patience": 6},
        "register_as": f"models/{MODEL}",
    }


async def train(stack: Stack, job_spec: dict[str, Any], tracer: trace.Tracer) -> pb.Job:
    """The job, after it has succeeded."""
    created = await asyncio.to_thread(
        rest, "POST", f"http://{stack.address(MANAGEMENT)}/api/v1/jobs?job_id=demo", job_spec
    )
    name = created["name"]
    async with TrainingClient(stack.addresses["TIDEMILL_TRAINING_ADDRESS"], tracer=tracer) as client:
        shown = 0
        state = ""
        async for job in client.watch_job(name):
            now = pb.Job.State.Name(job.state).removeprefix("STATE_").lower()
            if now != state:
                CONSOLE.print(f"  {name} is {now}")
                state = now
            for epoch in job.epochs[shown:]:
                CONSOLE.print(f"  {progress.epoch_line(epoch)}")
            shown = len(job.epochs)
    if job.state != pb.Job.STATE_SUCCEEDED:
        raise DemoError(f"{name} is {state}: {job.error}")
    return job


async def held_out(stack: Stack, result: pb.Result) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """100 images that were never trained on, their labels, and torch's own probabilities for them."""
    async with ArtifactsClient(stack.addresses["TIDEMILL_ARTIFACTS_ADDRESS"]) as client:

        async def file(artifact: str, path: str) -> bytes:
            listed = await client.get_artifact(artifact)
            return await client.download(next(f.sha256 for f in listed.files if f.path == path))

        samples = np.load(io.BytesIO(await file(result.test_samples, "test.npz")), allow_pickle=False)
        weights = await file(result.artifact, "model.safetensors")
    x, y = samples["x"][:IMAGES].astype("f4"), samples["y"][:IMAGES]
    return x, y, torch_probabilities(weights, x)


def torch_probabilities(weights: bytes, x: np.ndarray) -> np.ndarray:
    """What the trained network says to `x` in torch: the reference that every front door must meet."""
    import torch
    from safetensors.torch import load

    from tidemill.training.models.cnn import Cnn
    from tidemill.training.worker.network import Classifier, Plan

    tensors = load(weights)
    mean, std = (tensors[name].numpy() for name in ("mean", "std"))
    shape = tuple(x.shape[1:])
    classifier = Classifier(Plan(model=Cnn, config=Cnn.Config(), sample_shape=shape, classes=10, mean=mean, std=std))
    classifier.load_state_dict(tensors)
    with torch.inference_mode():
        answer: np.ndarray = torch.softmax(classifier.eval()(torch.from_numpy(x)), 1).numpy()
    return answer


async def deployed(client: InferenceClient) -> None:
    """Return when the alias is served."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if await client.model_ready(MODEL, ALIAS):
            return
        await asyncio.sleep(0.05)
    raise DemoError("the model was not deployed within 30 s")


async def predict(stack: Stack, x: np.ndarray, tracer: trace.Tracer) -> dict[str, np.ndarray]:
    """The answers of every front door to the same images."""
    answers: dict[str, np.ndarray] = {}
    async with InferenceClient(stack.addresses["TIDEMILL_INFERENCE_ADDRESS"], tracer=tracer) as client:
        await deployed(client)
        result = await client.infer(MODEL, {"x": x}, version=ALIAS)
        answers["OIP gRPC"] = next(iter(result.outputs.values()))
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    url = f"http://{stack.address(OIP_REST)}/v2/models/{MODEL}/infer"
    reply = await asyncio.to_thread(rest, "POST", url, {"inputs": [tensor]})
    output = reply["outputs"][0]
    answers["OIP REST"] = np.array(output["data"], "f4").reshape(output["shape"])
    url = f"http://{stack.address(TFS_REST)}/v1/models/{MODEL}:predict"
    reply = await asyncio.to_thread(rest, "POST", url, {"instances": x.tolist()})
    answers["predict REST"] = np.array(reply["predictions"], "f4")
    return answers


def compare(answers: dict[str, np.ndarray], torch_answer: np.ndarray, y: np.ndarray) -> None:
    """Show that all front doors agree with torch, or raise."""
    table = Table("front door", "images", "same class as torch", "worst difference", "right")
    for name, answer in answers.items():
        worst = float(np.abs(answer - torch_answer).max())
        same = int((answer.argmax(1) == torch_answer.argmax(1)).sum())
        table.add_row(name, str(len(y)), f"{same}", f"{worst:.1e}", f"{(answer.argmax(1) == y).mean():.0%}")
        if same != len(y) or not worst <= TOLERANCE:
            raise DemoError(f"{name} does not agree with torch: {same} of {len(y)} the same, worst difference {worst}")
    CONSOLE.print(table)


def show_predictions(x: np.ndarray, y: np.ndarray, answer: np.ndarray, rows: int = 8) -> None:
    """A table of some images with what the model says."""
    shades = " ░▒▓█"
    table = Table("image", "label", "prediction", "probability", show_lines=True)
    for image, label, row in list(zip(x, y, answer, strict=True))[:rows]:
        grid = image.reshape(image.shape[-2:])
        # Two rows of pixels a line of text, of every second column of large images: terminals have tall letters.
        grid = grid[:: max(1, grid.shape[0] // 8), :: max(1, grid.shape[1] // 16)]
        levels = (grid / max(float(grid.max()), 1e-9) * (len(shades) - 1)).round().astype(int)
        picture = "\n".join("".join(shades[level] * 2 for level in line) for line in levels[::2])
        guess = int(row.argmax())
        mark = "" if guess == label else "  wrong"
        table.add_row(picture, str(label), f"{guess}{mark}", f"{row[guess]:.3f}")
    CONSOLE.print(table)


def mnist(folder: Path) -> dict[str, Path]:
    """MNIST's four IDX files in `folder`, by name."""
    files = {}
    for name in MNIST:
        found = next((folder / n for n in (name, f"{name}.gz") if (folder / n).is_file()), None)
        if found is None:
            raise DemoError(f"{folder} has no {name} (or {name}.gz)")
        files[found.name] = found
    return files


async def dataset(stack: Stack, files: dict[str, Path]) -> pb.Dataset:
    """The digits that scikit-learn carries, or MNIST from its IDX files, uploaded."""
    if not files:
        return pb.Dataset(builtin="digits")
    async with ArtifactsClient(stack.addresses["TIDEMILL_ARTIFACTS_ADDRESS"]) as client:
        artifact = await client.create_artifact("dataset", files)
    return pb.Dataset(artifact=artifact.digest)


async def whole_trace(stack: Stack, trace_id: str) -> list[tracetree.Span]:
    """The spans of a trace, once the last server has written its own: that happens just after it has answered."""
    deadline = time.monotonic() + 2
    while True:
        spans = tracetree.from_files(stack.traces, trace_id)
        known = {span.span_id for span in spans}
        if time.monotonic() > deadline or sum(span.parent_id not in known for span in spans) == 1:
            return spans
        await asyncio.sleep(0.05)


async def show(stack: Stack, telemetry: Telemetry, files: dict[str, Path], epochs: int) -> None:
    """Everything that happens while the platform runs."""
    tracer = telemetry.tracer
    with tracer.start_as_current_span("demo") as root:
        trace_id = trace.format_trace_id(root.get_span_context().trace_id)
        say(f"Training cnn with {WORKERS} workers and {SHARDS} parameter shards")
        job = await train(stack, spec(await dataset(stack, files), epochs), tracer)
        result = job.result
        test = result.test
        CONSOLE.print(
            f"  held out: accuracy {test.accuracy:.2%}, macro F1 {test.f1:.4f}, loss {test.loss:.4f} on {test.samples} "
            f"samples; ONNX differs from torch by {result.parity:.1e} at most"
        )
        if test.accuracy < WANTED_ACCURACY:
            raise DemoError(f"held-out accuracy {test.accuracy:.2%} is below {WANTED_ACCURACY:.0%}")

        version = int(result.model_version.rpartition("/")[2])
        say(f"Deploying: alias {ALIAS} -> {result.model_version}")
        alias = f"http://{stack.address(MANAGEMENT)}/api/v1/models/{MODEL}/aliases/{ALIAS}"
        await asyncio.to_thread(rest, "PUT", alias, {"version": version})

        say(f"Predicting {IMAGES} held-out images through every front door")
        x, y, torch_answer = await held_out(stack, result)
        answers = await predict(stack, x, tracer)
        compare(answers, torch_answer, y)
        show_predictions(x, y, answers["OIP gRPC"])
    say("One trace from the job to the prediction")
    for line in tracetree.render(await whole_trace(stack, trace_id)):
        CONSOLE.print(line, soft_wrap=True, markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when everything came out as promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="directory with MNIST's four IDX files, in place of the small digits")
    parser.add_argument("--epochs", type=int, default=25, help="most epochs (%(default)s)")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidemill-demo-") as folder:
        stack = Stack(data=Path(folder) / "data", port_offset=free_offset(), shards=SHARDS)
        telemetry = setup("demo", traces=f"file:{stack.traces}")
        try:
            files = mnist(options.data) if options.data is not None else {}
            say("Starting the platform")
            with running(stack):
                CONSOLE.print(f"  ready after {time.monotonic() - began:.1f} s")
                asyncio.run(show(stack, telemetry, files, options.epochs))
        except (DemoError, TidemillError) as error:
            CONSOLE.print(f"\nThe demo failed: {error}", style="red", markup=False, soft_wrap=True)
            return 1
        except KeyboardInterrupt:
            CONSOLE.print("\nInterrupted; everything is stopped.")
            return 130
        finally:
            telemetry.shutdown()
    say(f"Done in {math.ceil(time.monotonic() - began)} s; nothing is left running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
