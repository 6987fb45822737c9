"""The RPCs of worker processes: find who calls, convert, call, convert."""

from typing import Any

from google.protobuf.empty_pb2 import Empty

from tidemill import names
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.api.training.v1 import training_pb2_grpc as rpc
from tidemill.errors import invalid
from tidemill.training import convert
from tidemill.training.jobs import MAX_ERROR, MAX_TRACEBACK, Copy
from tidemill.training.tokens import Tokens
from tidemill.training.workshop import Seat

MAX_ADDRESS = 300
"""Longest address where workers meet, in characters."""


class WorkerServicer(rpc.WorkerServiceServicer):
    """What worker processes call."""

    def __init__(self, tokens: Tokens[Seat]) -> None:
        self._tokens = tokens

    async def GetTask(self, request: pb.GetTaskRequest, context: Any) -> pb.Task:
        seat = self._tokens.find(request.token)
        return convert.to_task(seat.employer.task(seat.rank, seat.attempt))

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        seat = self._tokens.find(request.token)
        answer = await seat.employer.beat(seat.rank, seat.attempt, convert.from_beat(request))
        return pb.HeartbeatResponse(
            stop=answer.stop,
            generation=answer.generation,
            pause=answer.pause,
            move=answer.move,
            placement=answer.placement,
        )

    async def Meet(self, request: pb.MeetRequest, context: Any) -> pb.MeetResponse:
        seat = self._tokens.find(request.token)
        if request.lost < 0:
            raise invalid("lost", "must not be negative")
        if len(request.address) > MAX_ADDRESS or not request.address.isprintable():
            raise invalid("address", f"must be at most {MAX_ADDRESS} printable characters")
        place = await seat.employer.meet(seat.rank, seat.attempt, lost=request.lost, address=request.address)
        return pb.MeetResponse(generation=place.generation, address=place.address, checkpoint=place.checkpoint)

    async def ChooseCopy(self, request: pb.ChooseCopyRequest, context: Any) -> pb.ChooseCopyResponse:
        seat = self._tokens.find(request.token)
        if request.copy not in (0, 1):
            raise invalid("copy", "must be 0 or 1")
        if request.term < 0:
            raise invalid("term", "must not be negative")
        found = await seat.employer.choose_copy(
            seat.rank, seat.attempt, Copy(shard=request.shard, term=request.term, copy=request.copy)
        )
        return pb.ChooseCopyResponse(term=found.term, copy=found.copy)

    async def ReportCheckpoint(self, request: pb.ReportCheckpointRequest, context: Any) -> Empty:
        seat = self._tokens.find(request.token)
        if request.step < 0:
            raise invalid("step", "must not be negative")
        if request.paused and request.moved:
            raise invalid("moved", "cannot be while the job is being paused")
        if request.checkpoint or request.step or not (request.paused or request.moved):
            names.check_digest(request.checkpoint, "checkpoint")
        await seat.employer.report_checkpoint(
            seat.rank,
            seat.attempt,
            request.checkpoint,
            request.step,
            paused=request.paused,
            moved=request.moved,
        )
        return Empty()

    async def ReportEpoch(self, request: pb.ReportEpochRequest, context: Any) -> pb.ReportEpochResponse:
        seat = self._tokens.find(request.token)
        if request.epoch.checkpoint:
            names.check_digest(request.epoch.checkpoint, "epoch.checkpoint")
        decision = await seat.employer.report_epoch(seat.rank, seat.attempt, convert.from_epoch(request.epoch))
        return pb.ReportEpochResponse(stop=decision.stop, best_epoch=decision.best_epoch)

    async def ReportResult(self, request: pb.ReportResultRequest, context: Any) -> Empty:
        seat = self._tokens.find(request.token)
        names.check_digest(request.result.artifact, "result.artifact")
        for field in ("dataset_digest", "test_samples"):
            if getattr(request.result, field):
                names.check_digest(getattr(request.result, field), f"result.{field}")
        convert.from_signature(request.result.signature, "result.signature")
        await seat.employer.report_result(seat.rank, seat.attempt, convert.from_result(request.result))
        return Empty()

    async def ReportFailure(self, request: pb.ReportFailureRequest, context: Any) -> Empty:
        seat = self._tokens.find(request.token)
        if len(request.error) > MAX_ERROR:
            raise invalid("error", f"must be at most {MAX_ERROR} characters")
        if len(request.traceback.encode()) > MAX_TRACEBACK:
            raise invalid("traceback", f"must be at most {MAX_TRACEBACK} bytes")
        seat.employer.report_failure(
            seat.rank,
            seat.attempt,
            request.error,
            final=request.final,
            step=request.step,
            traceback=request.traceback,
            group_lost=request.group_lost,
        )
        return Empty()
