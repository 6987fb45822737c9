"""Messages of explanations and what they stand for here."""

from collections.abc import Mapping

from tidemill.api.parameters.v1 import parameters_pb2
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.training.convert import to_time
from tidemill.training.diagnosis.inquiry import Explanation
from tidemill.training.diagnosis.sights import Condition, MeetingSight, MemberSight, ShardSight, WorkerSight

_CONDITIONS: Mapping[Condition, "pb.WorkerSight.Condition.ValueType"] = {
    Condition.UNKNOWN: pb.WorkerSight.CONDITION_UNSPECIFIED,
    Condition.ABSENT: pb.WorkerSight.CONDITION_ABSENT,
    Condition.STARTING: pb.WorkerSight.CONDITION_STARTING,
    Condition.ALIVE: pb.WorkerSight.CONDITION_ALIVE,
    Condition.SILENT: pb.WorkerSight.CONDITION_SILENT,
    Condition.ENDED: pb.WorkerSight.CONDITION_ENDED,
}
_MODES = {
    parameters_pb2.Consistency.MODE_SSP: "ssp",
    parameters_pb2.Consistency.MODE_ASP: "asp",
}


def from_group(address: str, part: parameters_pb2.Group) -> ShardSight:
    """What the shard at `address` says of its part of a group."""
    return ShardSight(
        address=address,
        has_part=True,
        is_ready=part.state == parameters_pb2.Group.STATE_READY,
        mode=_MODES.get(part.consistency.mode, "bsp"),
        spares=part.stragglers.most,
        version=part.version,
        arrived=tuple(part.arrived),
        members=tuple(
            MemberSight(
                worker=member.worker,
                attempt=member.attempt,
                clock=member.clock,
                waits_for=member.waits_for,
                in_flight=member.bytes_in_flight,
                seen=member.seen_time.ToMicroseconds() / 1e6,
                dropped=member.dropped,
            )
            for member in part.members
        ),
    )


def to_explanation(found: Explanation) -> pb.JobExplanation:
    """The message of what a job waits for."""
    case, verdict = found.case, found.verdict
    return pb.JobExplanation(
        name=case.job.name,
        state=pb.Job.State.Value(f"STATE_{case.job.state.name}"),
        summary=verdict.text,
        stuck=verdict.is_stuck,
        culprits=verdict.culprits,
        workers=[_to_worker(worker) for worker in case.workers],
        shards=[_to_shard(shard) for shard in case.shards],
        meeting=_to_meeting(case.meeting) if case.meeting else None,
        before=case.before,
        time=to_time(case.now),
    )


def _to_worker(worker: WorkerSight) -> pb.WorkerSight:
    return pb.WorkerSight(
        rank=worker.rank,
        attempt=worker.attempt,
        condition=_CONDITIONS[worker.condition],
        phase=worker.phase,
        step=worker.step,
        silence_seconds=worker.silence,
        step_seconds=worker.at_step,
        waits_for=worker.waits_for,
        bytes_in_flight=worker.in_flight,
        pid=worker.pid,
    )


def _to_shard(shard: ShardSight) -> pb.ShardSight:
    part = pb.ShardSight.PART_UNSPECIFIED
    if shard.reachable:
        part = pb.ShardSight.PART_EMPTY if shard.has_part else pb.ShardSight.PART_MISSING
    if shard.is_ready:
        part = pb.ShardSight.PART_READY
    return pb.ShardSight(
        address=shard.address,
        reachable=shard.reachable,
        error=shard.error,
        part=part,
        version=shard.version,
        arrived=shard.arrived,
        members=[
            pb.MemberSight(
                rank=member.worker,
                attempt=member.attempt,
                clock=member.clock,
                waits_for=member.waits_for,
                bytes_in_flight=member.in_flight,
                seen_time=to_time(member.seen),
                dropped=member.dropped,
            )
            for member in shard.members
        ],
    )


def _to_meeting(meeting: MeetingSight) -> pb.MeetingSight:
    return pb.MeetingSight(
        generation=meeting.generation, present=meeting.present, missing=meeting.missing, open=meeting.is_open
    )
