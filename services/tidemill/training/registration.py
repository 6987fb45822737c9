"""The end of a job that went well: its result becomes a version. Every step can be repeated, so a restart goes on."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from tidemill import names
from tidemill.clock import Clock
from tidemill.errors import NotFound, Stale
from tidemill.training.epochs import Result
from tidemill.training.jobs import Job
from tidemill.training.ledger import Ledger
from tidemill.training.patience import patiently
from tidemill.training.peers import Artifacts, ModelRegistry, NewVersion

T = TypeVar("T")
LOG_FILE = "job.log"
"""Name of the log in its artifact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """Makes the result of a job lasting.

    Artifacts are protected all the way: the job's own reference (`jobs/{job}`) is recorded before the version is
    visible, the version's (`models/{model}/versions/{n}`) while the job's is still there, because a version's number
    is known only once it exists. The job's reference goes when the job is deleted.
    """

    artifacts: Artifacts
    registry: ModelRegistry
    clock: Clock

    async def run(self, ledger: Ledger, log: Path, tell: Callable[[str], None]) -> None:
        """Keep the log, register the version and move the alias; what was done before is not done again.

        Args:
            ledger: a job that has a result.
            log: file of its log.
            tell: takes what the job's log should say.

        Raises:
            Fenced, CancelAsked: from the ledger.
            TidemillError: a neighbour refuses for good.
        """
        job, result = ledger.job, _result(ledger.job)
        for digest in _made(result):
            await self._protect(digest, job.name, tell)
        if not result.logs:
            await self._keep_log(ledger, log, tell)
        if job.spec.register_as and not result.model_version:
            await self._register(ledger, tell)
        if job.spec.alias:
            await self._again(f"moving alias {job.spec.alias}", lambda: self._point(ledger.job), tell)
            tell(f"alias {job.spec.alias} points at {_result(ledger.job).model_version}")

    async def _keep_log(self, ledger: Ledger, log: Path, tell: Callable[[str], None]) -> None:
        job = ledger.job
        digest = await self._again(
            "keeping the log",
            lambda: self.artifacts.upload("logs", {LOG_FILE: log}, {"job": job.name}, job.name),
            tell,
        )
        await ledger.change(lambda now: replace(now, result=replace(_result(now), logs=digest)))

    async def _register(self, ledger: Ledger, tell: Callable[[str], None]) -> None:
        version = new_version(ledger.job)
        await self._again(f"creating models/{version.model}", lambda: self.registry.ensure_model(version.model), tell)
        await ledger.change(lambda now: replace(now, committed=True))
        number = await self._again("registering the version", lambda: self._create(version), tell)
        name = f"models/{version.model}/versions/{number}"
        for digest in _made(_result(ledger.job)):
            await self._protect(digest, name, tell)
        await ledger.change(lambda now: replace(now, result=replace(_result(now), model_version=name)))
        tell(f"registered as {name}")

    async def _create(self, version: NewVersion) -> int:
        try:
            return await self.registry.create_version(version)
        except NotFound:  # the model was deleted meanwhile
            await self.registry.ensure_model(version.model)
            return await self.registry.create_version(version)

    async def _point(self, job: Job) -> None:
        """Move the alias once: when it points at the version, or did before somebody moved it on, it was moved."""
        (model,) = names.split(job.spec.register_as, "models")
        _, number = names.split(_result(job).model_version, "models", "versions")
        while True:
            found = await self.registry.alias(model, job.spec.alias)
            if int(number) in (found.version, found.previous):
                return
            try:
                await self.registry.move_alias(model, job.spec.alias, int(number), found.etag)
            except Stale:
                continue
            return

    async def _protect(self, digest: str, reference: str, tell: Callable[[str], None]) -> None:
        await self._again(f"protecting {digest[:12]}…", lambda: self.artifacts.refer(digest, reference), tell)

    async def _again(self, what: str, call: Callable[[], Awaitable[T]], tell: Callable[[str], None]) -> T:
        return await patiently(self.clock, what, call, tell)


def new_version(job: Job) -> NewVersion:
    """The version that a job with a result registers; the same whenever it is asked for."""
    result = _result(job)
    (model,) = names.split(job.spec.register_as, "models")
    tags = {"test_samples": result.test_samples} if result.test_samples else {}
    return NewVersion(
        model=model,
        artifact=result.artifact,
        signature=result.signature,
        metrics={**result.test.values(), "parity": result.parity},
        job=job.name,
        dataset_digest=result.dataset_digest,
        code_revision=job.spec.code_revision or f"tidemill {metadata.version('tidemill')}",
        traceparent=job.traceparent,
        tags=tags,
        request_id=f"job-{job.uid}",
    )


def _made(result: Result) -> list[str]:
    return [digest for digest in (result.artifact, result.test_samples) if digest]


def _result(job: Job) -> Result:
    assert job.result is not None, "a job is finished only after its result came in"
    return job.result
