"""What a job leaves behind that must be cleared away, at its end and before."""

from collections.abc import Sequence

from tidemill.training import epochs
from tidemill.training.jobs import Job
from tidemill.training.store import Duty


def group(job: Job, now: float) -> list[Duty]:
    """Its parameter group, as it is placed now."""
    if not job.shards:
        return []
    kind = f"group-{job.placement}"
    return [Duty(uid=job.uid, kind=kind, job=job.name, group=job.group, shards=job.shards, created=now)]


def checkpoint(job: Job, now: float) -> list[Duty]:
    """The checkpoint that it would go on from, if it never will."""
    if not job.checkpoint:
        return []
    kind = f"checkpoint-{job.checkpoint[:16]}"
    return [Duty(uid=job.uid, kind=kind, job=job.name, artifacts=(job.checkpoint,), created=now)]


def at_end(job: Job, now: float) -> list[Duty]:
    """All but its best epoch's checkpoint, and what it has brought forth."""
    best = epochs.best(job.epochs)
    old = tuple(e.checkpoint for e in job.epochs if e.checkpoint and e is not best)
    epochal = [Duty(uid=job.uid, kind="checkpoints", job=job.name, artifacts=old, created=now)] if old else []
    return [*group(job, now), *checkpoint(job, now), *epochal]


def at_deletion(job: Job, now: float) -> list[Duty]:
    """Its best epoch's checkpoint, what it has brought forth, and its claim on what it was made of."""
    result, best = job.result, epochs.best(job.epochs)
    made: Sequence[str] = (result.artifact, result.test_samples, result.logs) if result else ()
    made = (*made, best.checkpoint) if best else made
    return [
        Duty(
            uid=job.uid,
            kind="leftovers",
            job=job.name,
            artifacts=tuple(dict.fromkeys(digest for digest in made if digest)),
            inputs=(job.spec.dataset.artifact,) if job.spec.dataset.artifact else (),
            created=now,
        )
    ]
