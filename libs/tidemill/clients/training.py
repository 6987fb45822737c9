"""Training jobs from Python: create, follow, cancel, and read their logs."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from google.protobuf import json_format
from opentelemetry import trace

from tidemill import errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.api.training.v1 import training_pb2_grpc as pg
from tidemill.rpc.caller import DEFAULT_TIMEOUT, Caller

ENDED = frozenset({pb.Job.STATE_SUCCEEDED, pb.Job.STATE_FAILED, pb.Job.STATE_CANCELLED})
"""States that a job does not leave."""
RECONNECT_FOR = 60.0
"""Seconds for which a broken stream is begun again before its error is raised."""
_PAUSE = 0.2
_BROKEN = (errors.Unavailable, errors.Cancelled)


class TrainingClient:
    """Calls the training service; errors are those of `tidemill.errors`.

    Args:
        address: `host:port` of the training service.
        tracer: makes client spans inside of a recorded span.
        timeout: default seconds of a call that is not a stream.
        reconnect_for: seconds for which a broken stream is begun again before its error is raised.
    """

    def __init__(
        self,
        address: str,
        *,
        tracer: trace.Tracer | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        reconnect_for: float = RECONNECT_FOR,
    ) -> None:
        service = pb.DESCRIPTOR.services_by_name["TrainingService"]
        self._caller = Caller(address, [service], tracer=tracer, timeout=timeout)
        self._stub: Any = pg.TrainingServiceStub(self._caller.channel)
        self._reconnect_for = reconnect_for

    async def create_job(
        self,
        spec: pb.JobSpec | Mapping[str, Any],
        job_id: str = "",
        *,
        request_id: str = "",
        validate_only: bool = False,
    ) -> pb.Job:
        """A new job, which starts as soon as there is room.

        Args:
            spec: what to train, as a message or as its protobuf JSON.
            job_id: a valid name; "" lets the server choose.
            request_id: makes a repeated call return the first one's job.
            validate_only: check everything, create nothing, and return what would be created.

        Raises:
            Invalid: the spec is wrong; the violations name the fields.
            AlreadyExists: there is such a job.
        """
        request = pb.CreateJobRequest(
            spec=_spec(spec), job_id=job_id, request_id=request_id, validate_only=validate_only
        )
        job: pb.Job = await self._caller.unary(self._stub.CreateJob, request)
        return job

    async def get_job(self, name: str) -> pb.Job:
        """The job `jobs/{job}`. Raises NotFound."""
        job: pb.Job = await self._caller.unary(self._stub.GetJob, pb.GetJobRequest(name=name))
        return job

    async def list_jobs(
        self, *, state: "pb.Job.State.ValueType" = pb.Job.STATE_UNSPECIFIED, page_size: int = 0
    ) -> AsyncIterator[pb.Job]:
        """All jobs, newest first, or those in one state; fetched page by page."""
        token = ""
        while True:
            request = pb.ListJobsRequest(page_size=page_size, page_token=token, state=state)
            page: pb.ListJobsResponse = await self._caller.unary(self._stub.ListJobs, request)
            for job in page.jobs:
                yield job
            token = page.next_page_token
            if not token:
                return

    async def cancel_job(self, name: str) -> pb.Job:
        """Ask a job to stop. Raises FailedPrecondition when its version is being registered already."""
        job: pb.Job = await self._caller.unary(self._stub.CancelJob, pb.CancelJobRequest(name=name))
        return job

    async def pause_job(self, name: str) -> pb.Job:
        """Ask a job to pause; it is PAUSED soon after. Raises FailedPrecondition when its training is over."""
        job: pb.Job = await self._caller.unary(self._stub.PauseJob, pb.PauseJobRequest(name=name))
        return job

    async def resize_job(self, name: str, *, workers: int = 0, shards: int = 0) -> pb.Job:
        """Ask for other numbers of workers and shards; the job goes on meanwhile, and tells of it until it is done.

        Args:
            name: `jobs/{job}`.
            workers, shards: how many; 0 = as many as now.

        Raises:
            FailedPrecondition: another change is being made (JOB_RESIZING), or it is too late (JOB_NOT_RESIZABLE).
            Invalid: it cannot have so many.
        """
        request = pb.ResizeJobRequest(name=name, workers=workers, shards=shards)
        job: pb.Job = await self._caller.unary(self._stub.ResizeJob, request)
        return job

    async def resume_job(self, name: str, *, shards: int = 0) -> pb.Job:
        """Let a paused job go on where it was.

        Args:
            name: `jobs/{job}`.
            shards: number of parameter-server shards to go on with; 0 = as many as before.

        Raises:
            FailedPrecondition: it is still being paused, or has ended.
            Invalid: it cannot have so many shards.
        """
        job: pb.Job = await self._caller.unary(self._stub.ResumeJob, pb.ResumeJobRequest(name=name, shards=shards))
        return job

    async def delete_job(self, name: str) -> None:
        """Delete a job that has ended, with its logs. Raises FailedPrecondition before it has ended."""
        await self._caller.unary(self._stub.DeleteJob, pb.DeleteJobRequest(name=name))

    async def watch_job(self, name: str) -> AsyncGenerator[pb.Job, None]:
        """The job now and after every change, up to its final state; a broken stream is begun again.

        Changes that come fast are folded together, and so is what happens while the stream is broken; `changes` and
        `epochs` of each job are whole all the same, and `events` has each of them once.

        Raises:
            NotFound: there is no such job, or it was deleted meanwhile.
            Unavailable: the service did not come back in time.
        """
        patience = _Patience(self._reconnect_for)
        last: pb.Job | None = None
        while True:
            stream = self._caller.stream(self._stub.WatchJob, pb.WatchJobRequest(name=name))
            try:
                async with aclosing(stream) as jobs:
                    async for job in jobs:
                        patience.renew()
                        if job == last:  # a stream that is begun again begins with the job as it is
                            continue
                        last = job
                        yield job
                        if job.state in ENDED:
                            return
            except _BROKEN as error:
                await patience.wait(error)

    async def wait_job(self, name: str) -> pb.Job:
        """The job in its final state, whatever that is. Raises as `watch_job`."""
        async with aclosing(self.watch_job(name)) as jobs:
            async for job in jobs:
                if job.state in ENDED:
                    return job
        raise errors.Internal("a watch ended before its job did")

    async def logs(self, name: str, from_line: int = 0, *, follow: bool = False) -> AsyncGenerator[pb.LogLine, None]:
        """The log lines of a job from a line number on, each once and in order, also over broken streams.

        Args:
            name: `jobs/{job}`.
            from_line: first line, from 0.
            follow: go on until the job ends.

        Raises:
            NotFound: there is no such job, or it was deleted meanwhile.
            Unavailable: the service did not come back in time.
        """
        patience = _Patience(self._reconnect_for)
        while True:
            request = pb.StreamLogsRequest(name=name, from_line=from_line, follow=follow)
            stream = self._caller.stream(self._stub.StreamLogs, request)
            try:
                async with aclosing(stream) as lines:
                    async for line in lines:
                        patience.renew()
                        from_line = line.line + 1
                        yield line
                return
            except _BROKEN as error:
                await patience.wait(error)

    async def events(
        self, name: str, from_number: int = 0, *, follow: bool = False
    ) -> AsyncGenerator[pb.JobEvent, None]:
        """What has happened to a job: its states and finished epochs, each once and in order, also over broken streams.

        Args:
            name: `jobs/{job}`.
            from_number: number of the first event; 0 = the first one that is remembered.
            follow: go on until the job ends.

        Raises:
            NotFound: there is no such job, or it was deleted meanwhile.
            OutOfRange: the first event is forgotten; its metadata says which is the first one that is not.
            Unavailable: the service did not come back in time.
        """
        patience = _Patience(self._reconnect_for)
        while True:
            request = pb.StreamEventsRequest(name=name, from_number=from_number, follow=follow)
            stream = self._caller.stream(self._stub.StreamEvents, request)
            try:
                async with aclosing(stream) as events:
                    async for event in events:
                        patience.renew()
                        from_number = event.number + 1
                        yield event
                return
            except _BROKEN as error:
                await patience.wait(error)

    async def explain_job(self, name: str) -> pb.JobExplanation:
        """What a job waits for and who holds up the others, as its workers and shards are now. Raises NotFound."""
        found: pb.JobExplanation = await self._caller.unary(self._stub.ExplainJob, pb.ExplainJobRequest(name=name))
        return found

    async def catalogue(self) -> pb.Catalogue:
        """Models, data sets, optimizers, strategies, schedules and codecs that a job can name, and their parameters."""
        catalogue: pb.Catalogue = await self._caller.unary(self._stub.ListCatalogue, pb.ListCatalogueRequest())
        return catalogue

    async def close(self) -> None:
        """Close the connection."""
        await self._caller.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class _Patience:
    """How long a broken stream is begun again: `seconds` from the last thing that it brought."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    def renew(self) -> None:
        self._until = time.monotonic() + self._seconds

    async def wait(self, error: errors.TidemillError) -> None:
        if time.monotonic() >= self._until:
            raise error
        await asyncio.sleep(_PAUSE)


def _spec(spec: pb.JobSpec | Mapping[str, Any]) -> pb.JobSpec:
    if isinstance(spec, pb.JobSpec):
        return spec
    try:
        return json_format.ParseDict(dict(spec), pb.JobSpec())
    except json_format.ParseError as error:
        raise errors.invalid("spec", str(error)[:500]) from error
