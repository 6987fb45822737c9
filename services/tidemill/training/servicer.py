"""The RPCs of callers: convert, call, convert."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.empty_pb2 import Empty

from tidemill import names
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.api.training.v1 import training_pb2_grpc as rpc
from tidemill.rpc import paging
from tidemill.telemetry.propagation import traceparent
from tidemill.training import convert
from tidemill.training.desk import Desk
from tidemill.training.diagnosis.convert import to_explanation
from tidemill.training.diagnosis.inquiry import Inquiry

PAGE_BYTES = 3 << 20
"""Bytes of jobs after which a page ends: less than the largest message."""


class TrainingServicer(rpc.TrainingServiceServicer):
    """Jobs as resources."""

    def __init__(self, desk: Desk, inquiry: Inquiry) -> None:
        self._desk = desk
        self._inquiry = inquiry

    async def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> pb.Job:
        job = await self._desk.create(
            convert.from_spec(request.spec),
            request.job_id,
            request.request_id,
            traceparent(),
            validate_only=request.validate_only,
        )
        return convert.to_job(job)

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.Job:
        return convert.to_job(await self._desk.get(_job(request.name)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        state = convert.from_state(request.state)
        after = paging.position(request.page_token, "jobs", str(request.state))
        found, more = await self._desk.page(paging.size(request.page_size), after, state)
        response, size = pb.ListJobsResponse(), 0
        for number, listed in enumerate(found):
            job = convert.to_job(listed.job)
            size += job.ByteSize()
            if number and size > PAGE_BYTES:
                more = True
                break
            response.jobs.append(job)
            after = listed.position
        if more:
            response.next_page_token = paging.token(after, "jobs", str(request.state))
        return response

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.Job:
        return convert.to_job(await self._desk.cancel(_job(request.name)))

    async def PauseJob(self, request: pb.PauseJobRequest, context: Any) -> pb.Job:
        return convert.to_job(await self._desk.pause(_job(request.name)))

    async def ResizeJob(self, request: pb.ResizeJobRequest, context: Any) -> pb.Job:
        return convert.to_job(await self._desk.resize(_job(request.name), request.workers, request.shards))

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> pb.Job:
        return convert.to_job(await self._desk.resume(_job(request.name), request.shards))

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Any) -> Empty:
        await self._desk.delete(_job(request.name))
        return Empty()

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.Job]:
        async with aclosing(self._desk.watch(_job(request.name))) as jobs:
            async for job in jobs:
                yield convert.to_job(job)

    async def StreamEvents(self, request: pb.StreamEventsRequest, context: Any) -> AsyncIterator[pb.JobEvent]:
        found = self._desk.events(_job(request.name), request.from_number, follow=request.follow)
        async with aclosing(found) as events:
            async for event in events:
                yield convert.to_event(event)

    async def StreamLogs(self, request: pb.StreamLogsRequest, context: Any) -> AsyncIterator[pb.LogLine]:
        async with aclosing(self._desk.log(_job(request.name), request.from_line, follow=request.follow)) as lines:
            async for line in lines:
                yield convert.to_line(line)

    async def ExplainJob(self, request: pb.ExplainJobRequest, context: Any) -> pb.JobExplanation:
        return to_explanation(await self._inquiry.explain(_job(request.name)))

    async def ListCatalogue(self, request: pb.ListCatalogueRequest, context: Any) -> pb.Catalogue:
        found = await self._desk.catalogue()
        return pb.Catalogue(
            models=convert.to_entries(found.models),
            datasets=convert.to_entries(found.datasets),
            optimizers=convert.to_entries(found.optimizers),
            strategies=convert.to_entries(found.strategies),
            schedules=convert.to_entries(found.schedules),
            codecs=convert.to_entries(found.codecs),
        )


def _job(name: str) -> str:
    (identifier,) = names.split(name, "jobs")
    return identifier
