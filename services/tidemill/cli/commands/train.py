"""`tidemill train`: start a training job and follow it."""

import argparse
import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.cli import connection, curve, files, progress, together
from tidemill.cli.commands.base import Command
from tidemill.cli.output import print_fields, print_json, to_json, warn
from tidemill.cli.values import assignment, number, picture, whole
from tidemill.cli.views import quality
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.training import TrainingClient
from tidemill.errors import invalid
from tidemill.telemetry.setup import Telemetry


class Train(Command):
    """Creates a job from flags, and shows its progress until it ends."""

    help = "train a model on a data set, and register it"
    examples = (
        "tidemill train cnn digits --workers 2 --shards 2 --plot curve.png",
        "tidemill train cnn digits --register digits --alias champion",
        "tidemill train mlp data.csv --label-column kind -p hidden=[64,32]",
        "tidemill train cnn digits --optimizer adamw -o learning_rate=0.002",
        "tidemill train cnn digits --workers 4 --mode ssp --staleness 3 --codec auto",
    )

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        parser.add_argument("model", metavar="MODEL", help="mlp, cnn or text; see `tidemill catalogue`")
        parser.add_argument(
            "dataset",
            nargs="+",
            metavar="DATASET",
            help="a built-in data set (digits, iris ...), or files: .npz with x and y, .csv, or IDX files as MNIST "
            "has them; a file whose name has no dot: ./name",
        )
        _data(parser.add_argument_group("data"))
        _training(parser.add_argument_group("training"))
        together.add_arguments(parser.add_argument_group("training together"))
        _result(parser.add_argument_group("job and result"))
        connection.add_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """0 when the job succeeded (or exists, with --no-wait)."""
        return asyncio.run(_run(options))


Group = Any  # argparse keeps the class of its argument groups to itself


def _data(group: Group) -> None:
    group.add_argument("--label-column", default="", metavar="NAME", help="CSV: the column of the class (label)")
    group.add_argument(
        "--text-column", default="", metavar="NAME", help="CSV: the column of the text; without it all are numbers"
    )


def _training(group: Group) -> None:
    group.add_argument(
        "-p",
        "--parameter",
        action="append",
        type=assignment,
        default=[],
        metavar="NAME=VALUE",
        help="of the model; repeatable",
    )
    group.add_argument("--optimizer", default="", metavar="NAME", help="see `tidemill catalogue` (adam)")
    group.add_argument(
        "-o",
        "--optimizer-parameter",
        action="append",
        type=assignment,
        default=[],
        metavar="NAME=VALUE",
        help="of the optimizer; repeatable",
    )
    for flag, low, default, help in (
        ("--workers", 1, 1, "worker processes"),
        ("--shards", 0, 0, "parameter-server shards; 0 = 1, or 2 when they have copies"),
        ("--epochs", 1, 10, "most epochs"),
        ("--batch-size", 1, 64, "samples a step, over all workers"),
        ("--patience", 0, 0, "epochs without improvement before stopping; 0 = off"),
        ("--restarts", 0, 3, "times a dead worker is replaced"),
    ):
        group.add_argument(flag, type=whole(low), default=default, metavar="N", help=f"{help} (%(default)s)")
    group.add_argument(
        "--min-delta",
        type=number(0.0),
        default=0.0,
        metavar="X",
        help="change of the validation loss that counts as improvement; 0 = any",
    )
    for flag, what in (("--validation", "choosing the best epoch"), ("--test", "the final measurement")):
        group.add_argument(
            flag, type=number(0.0), default=0.0, metavar="PART", help=f"part of the samples for {what}; 0 = 0.1"
        )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (%(default)s)")


def _result(group: Group) -> None:
    group.add_argument("--register", default="", metavar="MODEL", help="register the result under this name")
    group.add_argument("--alias", default="", help="point this alias at the new version")
    group.add_argument(
        "--code-revision",
        default="",
        metavar="TEXT",
        help="revision of your code, for the lineage; without it Tidemill's own release",
    )
    group.add_argument("--job", default="", help="identifier of the job; chosen by the server when left out")
    group.add_argument("--plot", type=picture, metavar="FILE", help="write the learning curve there: PNG, SVG or PDF")
    group.add_argument("--no-wait", action="store_true", help="return as soon as the job exists")


async def _run(options: argparse.Namespace) -> int:
    if options.no_wait and options.plot is not None:
        raise invalid("--plot", "has nothing to show with --no-wait: the curve is drawn when the job has ended")
    where = connection.Connection(options)
    with where.traced("tidemill train") as (telemetry, _):
        dataset = await _dataset(options, where, telemetry)
        async with where.client("training", TrainingClient, tracer=telemetry.tracer) as client:
            job = await client.create_job(_spec(options, dataset), options.job)
            if not options.no_wait:
                job = await _followed(client, job, options.json)
    failed = not options.no_wait and job.state != pb.Job.STATE_SUCCEEDED
    if options.json:
        print_json(to_json(job))
    elif not failed:
        _show(job, options)
    if failed:
        warn(f"{job.name} {_why(job)}; its log: `tidemill logs {job.name.removeprefix('jobs/')}`")
    if options.plot is not None and job.epochs:
        await asyncio.to_thread(curve.plot, job, options.plot)
    return 1 if failed else 0


async def _followed(client: TrainingClient, job: pb.Job, silent: bool) -> pb.Job:
    try:
        if silent:
            return await client.wait_job(job.name)
        async with aclosing(client.watch_job(job.name)) as jobs:
            return await progress.follow(jobs)
    except asyncio.CancelledError:  # Ctrl-C
        name = job.name.removeprefix("jobs/")
        warn(f"{job.name} goes on; `tidemill logs -f {name}` follows it, `tidemill jobs cancel {name}` stops it")
        raise


def _why(job: pb.Job) -> str:
    return f"failed: {job.error}" if job.state == pb.Job.STATE_FAILED else f"is {progress.state_name(job)}"


def _is_builtin(given: Sequence[str]) -> bool:
    """Names of files have a dot or a slash, or are several: MNIST's have neither, but are four."""
    return len(given) == 1 and re.search(r"[./]", given[0]) is None


async def _dataset(options: argparse.Namespace, where: connection.Connection, telemetry: Telemetry) -> dict[str, Any]:
    """A built-in name as it is; files are uploaded as an artifact. What does not fit is for the service to refuse."""
    columns = {"label_column": options.label_column, "text_column": options.text_column}
    if _is_builtin(options.dataset):
        return {"builtin": options.dataset[0], **columns}
    given: dict[str, Path] = files.by_name(options.dataset)
    async with where.client("artifacts", ArtifactsClient, tracer=telemetry.tracer) as client:
        artifact = await client.create_artifact("dataset", given)
    return {"artifact": artifact.digest, **columns}


def _spec(options: argparse.Namespace, dataset: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {"name": options.model, "parameters": dict(options.parameter)},
        "optimizer": {"name": options.optimizer, "parameters": dict(options.optimizer_parameter)},
        "dataset": dataset,
        "workers": options.workers,
        "shards": options.shards,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "split": {"validation": options.validation, "test": options.test},
        "early_stopping": {"patience": options.patience, "min_delta": options.min_delta},
        "register_as": f"models/{options.register}" if options.register else "",
        "alias": options.alias,
        "code_revision": options.code_revision,
        "max_restarts": options.restarts,
        **together.spec(options),
    }


def _show(job: pb.Job, options: argparse.Namespace) -> None:
    result = job.result
    if options.no_wait:
        print(job.name)
        return
    print_fields(
        [
            ("job", job.name),
            ("held out", quality(result.test)),
            ("best epoch", result.best_epoch),
            ("ONNX vs torch", f"{result.parity:.1e} worst difference"),
            ("model version", result.model_version),
            ("artifact", result.artifact),
            ("plot", options.plot or ""),
        ]
    )
