"""How jobs, models, versions and artifacts are shown to people."""

from collections.abc import Iterable, Sequence
from typing import Any

from tidemill.api.artifacts.v1 import artifacts_pb2 as artifacts
from tidemill.api.registry.v1 import registry_pb2 as registry
from tidemill.api.tensors.v1 import tensors_pb2 as tensors
from tidemill.api.training.v1 import training_pb2 as training
from tidemill.cli.output import counted, minute, pairs, print_fields, print_table, printable, short, size, when
from tidemill.cli.progress import state_name

_METRICS = ("accuracy", "f1", "loss")
"""Metrics that a table of versions shows first."""


def show_jobs(jobs: Iterable[training.Job]) -> None:
    """A line for each job."""
    rows = (
        (
            job.name.removeprefix("jobs/"),
            state_name(job),
            job.spec.model.name,
            f"{len(job.epochs)}/{job.spec.epochs}",
            f"{job.epochs[-1].validation.accuracy:.2%}" if job.epochs else "",
            short(job.result.model_version),
            minute(job.create_time),
        )
        for job in jobs
    )
    columns = ["job", "state", "model", "epochs#", "accuracy#", "version", "created"]
    print_table(columns, rows, fold=["job", "version"], empty="no jobs")


def _becoming(job: training.Job) -> str:
    if not job.HasField("resize"):
        return ""
    return f"{counted(job.resize.workers, 'worker')}, {counted(job.resize.shards, 'shard')}"


def show_job(job: training.Job) -> None:
    """Everything about one job."""
    total = job.progress.epochs * job.progress.steps_per_epoch
    print_fields(
        [
            ("job", job.name),
            ("state", state_name(job)),
            ("error", job.error),
            ("waiting", job.waiting),
            ("model", job.spec.model.name),
            ("runs on", f"{counted(job.spec.workers, 'worker')}, {counted(job.spec.shards, 'shard')}"),
            ("is getting", _becoming(job)),
            ("step", f"{job.progress.step} of {total}" if total else ""),
            ("samples", job.progress.samples or ""),
            ("replaced", counted(job.restarts, "worker") if job.restarts else ""),
            ("held out", quality(job.result.test)),
            ("version", job.result.model_version),
            ("artifact", job.result.artifact),
            ("created", when(job.create_time)),
            ("ended", when(job.end_time)),
            ("trace", trace_of(job)),
        ]
    )
    rows = (
        (
            epoch.epoch,
            f"{epoch.train_loss:.4f}",
            f"{epoch.validation.loss:.4f}",
            f"{epoch.validation.accuracy:.2%}",
            f"{epoch.validation.precision:.4f}",
            f"{epoch.validation.recall:.4f}",
            f"{epoch.validation.f1:.4f}",
            f"{epoch.seconds:.1f}",
            "best" if epoch.best else "",
        )
        for epoch in job.epochs
    )
    columns = ["epoch#", "train loss#", "val loss#", "accuracy#", "precision#", "recall#", "F1#", "seconds#", ""]
    print()
    print_table(columns, rows, empty="no finished epoch")
    if job.traceback:
        print("\nwhere the worker failed:")
        for line in job.traceback.rstrip().split("\n"):
            print(f"  {printable(line)}")


def quality(test: training.Metrics) -> str:
    """Quality on held-out samples in one line; "" when nothing was measured."""
    if not test.samples:
        return ""
    return f"accuracy {test.accuracy:.2%}, macro F1 {test.f1:.4f}, loss {test.loss:.4f}, {test.samples} samples"


def trace_of(job: training.Job) -> str:
    """The id of the trace that a job belongs to; "" for none."""
    parts = job.traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""


def show_models(models: Iterable[registry.Model]) -> None:
    """A line for each model."""
    rows = ((_model(m.name), m.latest_version or "", pairs(m.tags), minute(m.update_time)) for m in models)
    print_table(["model", "latest#", "tags", "changed"], rows, fold=["model", "tags"], empty="no models")


def show_model(model: registry.Model, aliases: Iterable[registry.Alias]) -> None:
    """Everything about one model."""
    moved = {alias.name.rpartition("/")[2]: alias.version for alias in aliases}
    print_fields(
        [
            ("model", model.name),
            ("description", model.description),
            ("latest version", model.latest_version or "none"),
            ("aliases", pairs(moved)),
            ("tags", pairs(model.tags)),
            ("created", when(model.create_time)),
        ]
    )


def show_versions(versions: Sequence[registry.ModelVersion]) -> None:
    """A line for each version, with up to three metrics."""
    found = sorted({name for version in versions for name in version.metrics})
    shown = [*(name for name in _METRICS if name in found), *(name for name in found if name not in _METRICS)][:3]
    rows = [
        (
            version.version,
            ", ".join(version.aliases),
            *(_metric(version, name) for name in shown),
            version.lineage.job,
            minute(version.create_time),
        )
        for version in versions
    ]
    columns = ["version#", "aliases", *(f"{name}#" for name in shown), "job", "created"]
    print_table(columns, rows, fold=["aliases", "job"], empty="no versions")


def _metric(version: registry.ModelVersion, name: str) -> str:
    if name not in version.metrics:
        return ""
    value = version.metrics[name]
    return f"{value:.2%}" if name == "accuracy" else f"{value:.4g}"


def show_version(version: registry.ModelVersion) -> None:
    """Everything about one version."""
    signature = version.signature
    print_fields(
        [
            ("version", version.name),
            ("description", version.description),
            ("aliases", ", ".join(version.aliases)),
            ("format", version.format),
            ("artifact", version.artifact),
            ("inputs", _tensors(signature.inputs)),
            ("outputs", _tensors(signature.outputs)),
            ("labels", ", ".join(signature.labels)),
            ("metrics", pairs(version.metrics)),
            ("tags", pairs(version.tags)),
            ("job", version.lineage.job),
            ("data sets", ", ".join(version.lineage.dataset_digests)),
            ("code revision", version.lineage.code_revision),
            ("created", when(version.create_time)),
        ]
    )


def _tensors(specs: Iterable[Any]) -> str:
    """`x FP32 [?, 8, 8]`: what may be of any size is a question mark."""
    shown = []
    for spec in specs:
        kind = tensors.DataType.Name(spec.dtype).removeprefix("DATA_TYPE_")
        sizes = ", ".join("?" if size < 0 else str(size) for size in spec.shape)
        shown.append(f"{spec.name} {kind} [{sizes}]")
    return "; ".join(shown)


def _model(name: str) -> str:
    return name.removeprefix("models/")


def show_artifacts(found: Iterable[artifacts.Artifact]) -> None:
    """A line for each artifact."""
    rows = (
        (
            a.digest[:16],
            a.kind,
            len(a.files),
            size(a.size),
            ", ".join(short(name) for name in a.references),
            minute(a.create_time),
        )
        for a in found
    )
    columns = ["digest", "kind", "files#", "size#", "needed by", "created"]
    print_table(columns, rows, fold=["needed by"], empty="no artifacts")


def show_artifact(artifact: artifacts.Artifact) -> None:
    """Everything about one artifact."""
    print_fields(
        [
            ("digest", artifact.digest),
            ("kind", artifact.kind),
            ("labels", pairs(artifact.labels)),
            ("needed by", ", ".join(artifact.references)),
            ("created", when(artifact.create_time)),
        ]
    )
    print()
    rows = [(f.path, size(f.size), f.sha256) for f in artifact.files]
    print_table(["file", "size#", "SHA-256"], rows, fold=["file", "SHA-256"])
