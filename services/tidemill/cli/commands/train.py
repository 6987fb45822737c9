"""`tidemill train`: start a training job and follow it."""

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.cli import connection, curve, progress
from tidemill.cli.commands.base import Command
from tidemill.cli.output import console, print_fields, print_json, to_json
from tidemill.cli.values import assignments
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.training import TrainingClient
from tidemill.telemetry.setup import Telemetry


class Train(Command):
    """Creates a job from flags, and shows its progress until it ends."""

    help = "train a model on a data set, and register it"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument("model", help="mlp, cnn or text")
        parser.add_argument(
            "dataset", nargs="+", help="a built-in data set (digits, iris ...), or files (.npz, .csv, IDX)"
        )
        parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="of the model")
        parser.add_argument("--optimizer", default="", help="sgd, momentum, nesterov, adam, adamw or adagrad (adam)")
        parser.add_argument(
            "-o", "--optimizer-parameter", action="append", default=[], metavar="NAME=VALUE", help="of the optimizer"
        )
        parser.add_argument("--workers", type=int, default=1, help="worker processes (%(default)s)")
        parser.add_argument("--shards", type=int, default=1, help="parameter-server shards (%(default)s)")
        parser.add_argument("--epochs", type=int, default=10, help="most epochs (%(default)s)")
        parser.add_argument("--batch-size", type=int, default=64, help="samples a step, over all workers (%(default)s)")
        parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
        parser.add_argument(
            "--patience", type=int, default=0, help="epochs without improvement before stopping; 0 = off"
        )
        parser.add_argument("--label-column", default="", help="CSV: the column of the class (label)")
        parser.add_argument("--text-column", default="", help="CSV: the column of the text")
        parser.add_argument("--register", default="", metavar="MODEL", help="register the result under this name")
        parser.add_argument("--alias", default="", help="point this alias at the new version")
        parser.add_argument("--restarts", type=int, help="times a dead worker is replaced (3)")
        parser.add_argument("--job", default="", help="identifier of the job; chosen by the server when left out")
        parser.add_argument("--plot", type=Path, metavar="PNG", help="write the learning curve there")
        parser.add_argument("--no-wait", action="store_true", help="return as soon as the job exists")
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when the job succeeded (or exists, with --no-wait)."""
        return asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    where = connection.Connection(options)
    with where.traced("tidemill train") as (telemetry, _):
        dataset = await _dataset(options, _files(options.dataset), where, telemetry)
        async with TrainingClient(where.training, tracer=telemetry.tracer) as client:
            job = await client.create_job(_spec(options, dataset), options.job)
            if not options.no_wait:
                async with aclosing(client.watch_job(job.name)) as jobs:
                    job = await (_silent(jobs) if options.json else progress.follow(jobs))
    if options.plot is not None and job.epochs:
        await asyncio.to_thread(curve.plot, job, options.plot)
    if options.json:
        print_json(to_json(job))
    else:
        _show(job, options)
    return 0 if options.no_wait or job.state == pb.Job.STATE_SUCCEEDED else 1


async def _silent(jobs: Any) -> pb.Job:
    last = pb.Job()
    async for job in jobs:
        last = job
    return last


def _files(given: Sequence[str]) -> dict[str, Path]:
    """The files by name; none for the name of a built-in data set."""
    if len(given) == 1 and not Path(given[0]).exists():
        return {}
    return {Path(path).name: Path(path) for path in given}


async def _dataset(
    options: argparse.Namespace, files: dict[str, Path], where: connection.Connection, telemetry: Telemetry
) -> dict[str, Any]:
    """A built-in name as it is; files are uploaded as an artifact."""
    if not files:
        return {"builtin": options.dataset[0]}
    async with ArtifactsClient(where.artifacts, tracer=telemetry.tracer) as client:
        artifact = await client.create_artifact("dataset", files)
    return {
        "artifact": artifact.digest,
        "label_column": options.label_column,
        "text_column": options.text_column,
    }


def _spec(options: argparse.Namespace, dataset: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "model": {"name": options.model, "parameters": assignments(options.parameter, "--parameter")},
        "optimizer": {
            "name": options.optimizer,
            "parameters": assignments(options.optimizer_parameter, "--optimizer-parameter"),
        },
        "dataset": dataset,
        "workers": options.workers,
        "shards": options.shards,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "early_stopping": {"patience": options.patience},
        "register_as": f"models/{options.register}" if options.register else "",
        "alias": options.alias,
    }
    if options.restarts is not None:
        spec["max_restarts"] = options.restarts
    return spec


def _show(job: pb.Job, options: argparse.Namespace) -> None:
    if job.state == pb.Job.STATE_FAILED:
        console().print(f"{job.name} failed: {job.error}")
    if job.state != pb.Job.STATE_SUCCEEDED:
        console().print(f"{job.name} is {progress.state_name(job)}; its log: tidemill logs {job.name}")
        return
    test = job.result.test
    print_fields(
        [
            ("job", job.name),
            (
                "held out",
                f"accuracy {test.accuracy:.2%}, macro F1 {test.f1:.4f}, loss {test.loss:.4f}, n={test.samples}",
            ),
            ("best epoch", job.result.best_epoch),
            ("ONNX against torch", f"{job.result.parity:.1e} worst difference"),
            ("model version", job.result.model_version),
            ("artifact", job.result.artifact),
            ("plot", options.plot or ""),
        ]
    )
