"""The worker's side of the training service: orders, signs of life and reports."""

import asyncio
import time
from types import TracebackType
from typing import Any, Self

from opentelemetry import trace

from tidemill import errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.api.training.v1 import training_pb2_grpc as pg
from tidemill.rpc.caller import DEFAULT_TIMEOUT, Caller

RETRY_FOR = 30.0
"""Seconds for which a report is repeated while the service cannot be reached."""
_PAUSE = 0.25


class WorkerClient:
    """Calls the training service on behalf of one worker process.

    Reports may be repeated without harm, so they are, while the service cannot be reached. Every method raises
    `Stale` when another process has this rank now and `Unauthenticated` when the token is of no job at work: end then.

    Args:
        address: `host:port` of the training service.
        token: the secret that the launcher gave to this process.
        tracer: makes client spans inside of a recorded span.
        timeout: seconds of one attempt of a call.
        retry_for: seconds for which a report is repeated before `Unavailable` is raised.
    """

    def __init__(
        self,
        address: str,
        token: str,
        *,
        tracer: trace.Tracer | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retry_for: float = RETRY_FOR,
    ) -> None:
        service = pb.DESCRIPTOR.services_by_name["WorkerService"]
        self._caller = Caller(address, [service], tracer=tracer, timeout=timeout)
        self._stub: Any = pg.WorkerServiceStub(self._caller.channel)
        self._token = token
        self._retry_for = retry_for

    async def get_task(self) -> pb.Task:
        """The worker's orders."""
        task: pb.Task = await self._repeat(self._stub.GetTask, pb.GetTaskRequest(token=self._token))
        return task

    async def heartbeat(
        self,
        phase: str,
        *,
        step: int = 0,
        steps_per_epoch: int = 0,
        loss: float = 0.0,
        samples: int = 0,
        generation: int = 0,
    ) -> pb.HeartbeatResponse:
        """A sign of life; `stop` in the answer asks to end at once, `pause` to end after this step.

        It is not repeated: the next one comes anyway.

        Args:
            phase: what the worker does: `starting`, `training`, `evaluating`, `exporting`.
            step: step that it is at, over all epochs.
            steps_per_epoch: steps of one epoch; 0 = not known yet.
            loss: training loss of its last step.
            samples: samples that this process has used since it started.
            generation: meeting of the job's workers that it is in; 0 = none.
        """
        request = pb.HeartbeatRequest(
            token=self._token,
            phase=phase,
            step=step,
            steps_per_epoch=steps_per_epoch,
            loss=loss,
            samples=samples,
            generation=generation,
        )
        response: pb.HeartbeatResponse = await self._caller.unary(self._stub.Heartbeat, request)
        return response

    async def meet(self, *, lost: int = 0, address: str = "") -> pb.MeetResponse:
        """Where to meet the other workers of the job; ask again while the answer has no address.

        Args:
            lost: meeting in which this worker has lost the others; 0 = none.
            address: `host:port` where rank 0 awaits the others; "" from all others.
        """
        request = pb.MeetRequest(token=self._token, lost=lost, address=address)
        response: pb.MeetResponse = await self._repeat(self._stub.Meet, request)
        return response

    async def choose_copy(self, shard: int, term: int = 0, copy: int = 0) -> tuple[int, int]:
        """Which copy of a replicated shard counts: the term in force (0 = both do), and the copy.

        Args:
            shard: of the job's group.
            term: from which on `copy` is to go on alone, when it is the next one; 0 = only ask.
            copy: 0 or 1.
        """
        request = pb.ChooseCopyRequest(token=self._token, shard=shard, term=term, copy=copy)
        response: pb.ChooseCopyResponse = await self._repeat(self._stub.ChooseCopy, request)
        return response.term, response.copy

    async def report_checkpoint(self, checkpoint: str, step: int, *, paused: bool = False, moved: bool = False) -> None:
        """Hand in from where the training goes on when nobody holds its state any more (rank 0).

        Args:
            checkpoint: digest of the artifact; "" at step 0: from the start.
            step: steps that are done in it.
            paused: whether this worker goes no further, as it was told to pause.
            moved: whether it asks for new orders now, as it was told to move.
        """
        request = pb.ReportCheckpointRequest(
            token=self._token, checkpoint=checkpoint, step=step, paused=paused, moved=moved
        )
        await self._repeat(self._stub.ReportCheckpoint, request)

    async def report_epoch(self, epoch: pb.Epoch) -> pb.ReportEpochResponse:
        """Hand in the metrics of a finished epoch (rank 0); the answer says whether to train on."""
        request = pb.ReportEpochRequest(token=self._token, epoch=epoch)
        response: pb.ReportEpochResponse = await self._repeat(self._stub.ReportEpoch, request)
        return response

    async def report_result(self, result: pb.Result) -> None:
        """Hand in what the job brought forth (rank 0)."""
        await self._repeat(self._stub.ReportResult, pb.ReportResultRequest(token=self._token, result=result))

    async def report_failure(
        self, error: str, *, final: bool, step: int = 0, traceback: str = "", group_lost: bool = False
    ) -> None:
        """Say why this worker ends; a `final` failure fails the job, any other lets a new worker take its place.

        Args:
            error: the reason in words, at most 4096 characters.
            final: whether a new worker would meet it again.
            step: step at which it happened.
            traceback: where in the code it happened, at most 8 KiB; "" when the reason says it all.
            group_lost: whether the parameter shards have lost the parameters.
        """
        request = pb.ReportFailureRequest(
            token=self._token, error=error[:4096], final=final, step=step, traceback=traceback, group_lost=group_lost
        )
        await self._repeat(self._stub.ReportFailure, request)

    async def close(self) -> None:
        """Close the connection."""
        await self._caller.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _repeat(self, method: Any, request: Any) -> Any:
        until = time.monotonic() + self._retry_for
        while True:
            try:
                return await self._caller.unary(method, request)
            except (errors.Unavailable, errors.DeadlineExceeded):
                if time.monotonic() >= until:
                    raise
            await asyncio.sleep(_PAUSE)
