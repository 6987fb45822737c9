"""Messages of the training API and what they stand for here: `from_` reads a message, `to_` makes one."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from tidemill.api.parameters.v1 import parameters_pb2
from tidemill.api.registry.v1 import registry_pb2
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.errors import invalid
from tidemill.rpc import etags
from tidemill.training.epochs import Epoch, Metrics, Result
from tidemill.training.history import Event
from tidemill.training.jobs import Job, Progress, State, Worker
from tidemill.training.logs import Line
from tidemill.training.meter import Beat
from tidemill.training.peers import Entry, Hyperparameter, NewVersion
from tidemill.training.spec import (
    Component,
    Consistency,
    Dataset,
    Durability,
    EarlyStopping,
    JobSpec,
    Split,
    Stragglers,
)
from tidemill.training.worker.task import Task

_STATES: Mapping[State, "pb.Job.State.ValueType"] = {
    State.PENDING: pb.Job.STATE_PENDING,
    State.STARTING: pb.Job.STATE_STARTING,
    State.RUNNING: pb.Job.STATE_RUNNING,
    State.PAUSING: pb.Job.STATE_PAUSING,
    State.PAUSED: pb.Job.STATE_PAUSED,
    State.FINISHING: pb.Job.STATE_FINISHING,
    State.CANCELLING: pb.Job.STATE_CANCELLING,
    State.SUCCEEDED: pb.Job.STATE_SUCCEEDED,
    State.FAILED: pb.Job.STATE_FAILED,
    State.CANCELLED: pb.Job.STATE_CANCELLED,
}


def from_state(message: int) -> State | None:
    """The state to filter by; None for all.

    Raises:
        Invalid: there is no such state.
    """
    if message == pb.Job.STATE_UNSPECIFIED:
        return None
    for state, number in _STATES.items():
        if number == message:
            return state
    raise invalid("state", f"{message} is not a state")


def from_spec(message: pb.JobSpec) -> JobSpec:
    """What to train, as it was asked for."""
    return JobSpec(
        model=_from_component(message.model),
        dataset=Dataset(
            builtin=message.dataset.builtin,
            artifact=message.dataset.artifact,
            format=message.dataset.format,
            label_column=message.dataset.label_column,
            text_column=message.dataset.text_column,
        ),
        split=Split(validation=message.split.validation, test=message.split.test),
        optimizer=_from_component(message.optimizer),
        strategy=message.strategy,
        workers=message.workers,
        shards=message.shards,
        epochs=message.epochs,
        batch_size=message.batch_size,
        seed=message.seed,
        early_stopping=EarlyStopping(
            patience=message.early_stopping.patience, min_delta=message.early_stopping.min_delta
        ),
        register_as=message.register_as,
        alias=message.alias,
        max_restarts=message.max_restarts if message.HasField("max_restarts") else None,
        code_revision=message.code_revision,
        checkpoint_steps=message.checkpoint_steps,
        consistency=Consistency(
            mode=message.consistency.mode,
            staleness=message.consistency.staleness,
            arrival_order=message.consistency.arrival_order,
        ),
        schedule=_from_component(message.schedule),
        clip_norm=message.clip_norm,
        l1=message.l1,
        codec=_from_component(message.codec),
        durability=Durability(
            mode=message.durability.mode,
            fsync=message.durability.fsync,
            interval_steps=message.durability.interval_steps,
        ),
        stragglers=Stragglers(
            policy=message.stragglers.policy,
            most=message.stragglers.most,
            after_seconds=message.stragglers.after_seconds,
        ),
    )


def to_spec(spec: JobSpec) -> pb.JobSpec:
    """The message of a spec."""
    message = pb.JobSpec(
        model=_to_component(spec.model),
        dataset=pb.Dataset(
            format=spec.dataset.format,
            label_column=spec.dataset.label_column,
            text_column=spec.dataset.text_column,
        ),
        split=pb.Split(validation=spec.split.validation, test=spec.split.test),
        optimizer=_to_component(spec.optimizer),
        strategy=spec.strategy,
        workers=spec.workers,
        shards=spec.shards,
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        seed=spec.seed,
        early_stopping=pb.EarlyStopping(patience=spec.early_stopping.patience, min_delta=spec.early_stopping.min_delta),
        register_as=spec.register_as,
        alias=spec.alias,
        max_restarts=spec.max_restarts,
        code_revision=spec.code_revision,
        checkpoint_steps=spec.checkpoint_steps,
        consistency=pb.Consistency(
            mode=spec.consistency.mode,
            staleness=spec.consistency.staleness,
            arrival_order=spec.consistency.arrival_order,
        ),
        schedule=_to_component(spec.schedule),
        clip_norm=spec.clip_norm,
        l1=spec.l1,
        codec=_to_component(spec.codec),
        durability=pb.Durability(
            mode=spec.durability.mode, fsync=spec.durability.fsync, interval_steps=spec.durability.interval_steps
        ),
        stragglers=pb.Stragglers(
            policy=spec.stragglers.policy,
            most=spec.stragglers.most,
            after_seconds=spec.stragglers.after_seconds,
        ),
    )
    if spec.dataset.builtin:
        message.dataset.builtin = spec.dataset.builtin
    elif spec.dataset.artifact:
        message.dataset.artifact = spec.dataset.artifact
    return message


def _from_component(message: pb.Component) -> Component:
    return Component(name=message.name, parameters=from_struct(message.parameters))


def _to_component(component: Component) -> pb.Component:
    parameters = Struct()
    parameters.update(dict(component.parameters))
    return pb.Component(name=component.name, parameters=parameters)


def from_struct(message: Struct) -> dict[str, Any]:
    """The values of a struct as JSON knows them; whole numbers are ints.

    Raises:
        Invalid: a number is not finite, which JSON does not know.
    """
    return {name: _from_value(value, f"parameters.{name[:64]}") for name, value in message.fields.items()}


def _from_value(value: Value, path: str) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        return [_from_value(each, f"{path}[{index}]") for index, each in enumerate(value.list_value.values)]
    if kind == "struct_value":
        return {name: _from_value(each, f"{path}.{name[:64]}") for name, each in value.struct_value.fields.items()}
    if kind != "number_value":
        return getattr(value, kind) if kind in ("string_value", "bool_value") else None
    number = value.number_value
    if not math.isfinite(number):
        raise invalid(path, "must be a finite number")
    return int(number) if number == int(number) else number


def from_metrics(message: pb.Metrics) -> Metrics:
    """Quality on one split."""
    return Metrics(
        loss=message.loss,
        accuracy=message.accuracy,
        precision=message.precision,
        recall=message.recall,
        f1=message.f1,
        samples=message.samples,
    )


def to_metrics(metrics: Metrics) -> pb.Metrics:
    """The message of metrics."""
    return pb.Metrics(samples=metrics.samples, **metrics.values())


def from_epoch(message: pb.Epoch) -> Epoch:
    """What an epoch achieved."""
    return Epoch(
        epoch=message.epoch,
        train_loss=message.train_loss,
        validation=from_metrics(message.validation),
        samples=message.samples,
        seconds=message.seconds,
        checkpoint=message.checkpoint,
        best=message.best,
        reported=message.report_time.ToMicroseconds() / 1e6,
    )


def to_epoch(epoch: Epoch) -> pb.Epoch:
    """The message of an epoch."""
    return pb.Epoch(
        epoch=epoch.epoch,
        train_loss=epoch.train_loss,
        validation=to_metrics(epoch.validation),
        samples=epoch.samples,
        seconds=epoch.seconds,
        checkpoint=epoch.checkpoint,
        best=epoch.best,
        report_time=to_time(epoch.reported),
    )


def from_result(message: pb.Result) -> Result:
    """What a job brought forth."""
    return Result(
        artifact=message.artifact,
        model_version=message.model_version,
        best_epoch=message.best_epoch,
        test=from_metrics(message.test),
        parity=message.parity,
        dataset_digest=message.dataset_digest,
        logs=message.logs,
        signature=message.signature,
        test_samples=message.test_samples,
    )


def to_result(result: Result) -> pb.Result:
    """The message of a result."""
    return pb.Result(
        artifact=result.artifact,
        model_version=result.model_version,
        best_epoch=result.best_epoch,
        test=to_metrics(result.test),
        parity=result.parity,
        dataset_digest=result.dataset_digest,
        logs=result.logs,
        signature=result.signature,
        test_samples=result.test_samples,
    )


def from_signature(text: str, field: str) -> registry_pb2.Signature:
    """The registry's message of a signature as protobuf JSON.

    Raises:
        Invalid: it is not one, naming `field`.
    """
    try:
        return json_format.Parse(text or "{}", registry_pb2.Signature())
    except json_format.ParseError as error:
        raise invalid(field, f"is not a signature: {str(error)[:200]}", reason="INVALID_SIGNATURE") from error


def to_lineage(version: NewVersion) -> registry_pb2.Lineage:
    """The registry's message of where a version comes from."""
    return registry_pb2.Lineage(
        job=version.job,
        dataset_digests=[version.dataset_digest] if version.dataset_digest else [],
        code_revision=version.code_revision,
        traceparent=version.traceparent,
    )


def from_optimizer(message: parameters_pb2.OptimizerDescription) -> Entry:
    """An optimizer that a job can name."""
    return Entry(
        name=message.name,
        description=message.description,
        parameters=tuple(
            Hyperparameter(name=p.name, type=p.type, default_json=p.default_json, description=p.description)
            for p in message.parameters
        ),
    )


def is_ready(message: parameters_pb2.Group) -> bool:
    """Whether a shard's part of a parameter group has values."""
    return message.state == parameters_pb2.Group.STATE_READY


def from_beat(message: pb.HeartbeatRequest) -> Beat:
    """A worker's sign of life."""
    return Beat(
        phase=message.phase,
        step=message.step,
        steps_per_epoch=message.steps_per_epoch,
        loss=message.loss,
        samples=message.samples,
        generation=message.generation,
    )


def from_task(message: pb.Task) -> Task:
    """A worker's orders."""
    return Task(
        job=message.job,
        spec=from_spec(message.spec),
        rank=message.rank,
        attempt=message.attempt,
        group=message.group,
        shards=tuple(message.shards),
        traceparent=message.traceparent,
        artifacts=message.artifacts,
        epochs=tuple(from_epoch(epoch) for epoch in message.epochs),
        checkpoint=message.checkpoint,
        placement=message.placement,
    )


def to_task(task: Task) -> pb.Task:
    """The message of a worker's orders."""
    return pb.Task(
        job=task.job,
        spec=to_spec(task.spec),
        rank=task.rank,
        attempt=task.attempt,
        group=task.group,
        shards=task.shards,
        traceparent=task.traceparent,
        artifacts=task.artifacts,
        epochs=[to_epoch(epoch) for epoch in task.epochs],
        checkpoint=task.checkpoint,
        placement=task.placement,
    )


def to_job(job: Job) -> pb.Job:
    """The message of a job."""
    return pb.Job(
        name=job.name,
        spec=to_spec(job.spec),
        state=_STATES[job.state],
        error=job.error,
        traceback=job.traceback,
        progress=_to_progress(job.progress),
        epochs=[to_epoch(epoch) for epoch in job.epochs],
        result=to_result(job.result) if job.result else None,
        workers=[_to_worker(worker) for worker in job.workers if worker.rank < job.spec.workers],
        restarts=job.restarts,
        traceparent=job.traceparent,
        etag=etags.of(job.revision) if job.revision else "",
        create_time=to_time(job.created),
        start_time=to_time(job.started),
        end_time=to_time(job.ended),
        waiting=job.waiting,
        resize=pb.Resize(workers=job.resize.workers, shards=job.resize.shards) if job.resize else None,
        changes=[
            pb.StateChange(number=c.number, state=_STATES[c.state], time=to_time(c.time), epochs=c.epochs)
            for c in job.changes
        ],
    )


def _to_progress(progress: Progress) -> pb.Progress:
    return pb.Progress(
        epoch=progress.epoch,
        epochs=progress.epochs,
        step=progress.step,
        steps_per_epoch=progress.steps_per_epoch,
        samples=progress.samples,
        loss=progress.loss,
        samples_per_second=progress.samples_per_second,
    )


def _to_worker(worker: Worker) -> pb.Worker:
    return pb.Worker(
        rank=worker.rank,
        attempt=worker.attempt,
        pid=worker.pid,
        step=worker.step,
        heartbeat_time=to_time(worker.heartbeat),
        phase=worker.phase,
    )


def to_event(event: Event) -> pb.JobEvent:
    """The message of something that has happened to a job."""
    message = pb.JobEvent(number=event.number, time=to_time(event.time))
    if event.state is not None:
        message.state = _STATES[event.state]
    elif event.epoch is not None:
        message.epoch.CopyFrom(to_epoch(event.epoch))
    return message


def to_line(line: Line) -> pb.LogLine:
    """The message of one line of a log."""
    return pb.LogLine(line=line.line, time=to_time(line.time), rank=line.rank, text=line.text)


def to_entries(entries: Iterable[Entry]) -> list[pb.CatalogueEntry]:
    """The messages of plug-ins that a job can name."""
    return [
        pb.CatalogueEntry(
            name=entry.name,
            description=entry.description,
            parameters=[
                pb.Parameter(name=p.name, type=p.type, default_json=p.default_json, description=p.description)
                for p in entry.parameters
            ],
        )
        for entry in entries
    ]


def to_time(seconds: float) -> Timestamp | None:
    """The message of a time in seconds since the epoch; None for 0, which is no time."""
    if not seconds:
        return None
    time = Timestamp()
    time.FromMicroseconds(round(seconds * 1e6))
    return time
