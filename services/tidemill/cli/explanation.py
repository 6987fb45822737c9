"""What a job waits for, shown to people."""

from collections.abc import Mapping

from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.cli.output import print_table, printable, size, when

_PARTS: Mapping["pb.ShardSight.Part.ValueType", str] = {
    pb.ShardSight.PART_UNSPECIFIED: "no answer",
    pb.ShardSight.PART_MISSING: "without it",
    pb.ShardSight.PART_EMPTY: "empty",
    pb.ShardSight.PART_READY: "ready",
}


def show_explanation(found: pb.JobExplanation) -> None:
    """The sentence, and what it was made of."""
    print(printable(f"{found.name} {found.summary}"))
    if found.workers:
        print()
        _show_workers(found)
    if found.shards:
        print()
        _show_shards(found)
    if any(shard.members for shard in found.shards):
        print()
        _show_members(found)
    if found.HasField("meeting"):
        there = ", ".join(map(str, found.meeting.present)) or "nobody"
        missing = ", ".join(map(str, found.meeting.missing)) or "nobody"
        print(f"\nmeeting {found.meeting.generation}: there {there}; missing {missing}")
    if found.before:
        print(printable(f"\nbefore it: {', '.join(found.before)}"))


def _show_workers(found: pb.JobExplanation) -> None:
    rows = (
        (
            worker.rank,
            worker.attempt,
            pb.WorkerSight.Condition.Name(worker.condition).removeprefix("CONDITION_").lower()
            if worker.condition
            else "",
            worker.phase,
            worker.step,
            f"{worker.step_seconds:.1f}" if worker.HasField("step_seconds") else "",
            f"{worker.silence_seconds:.1f}" if worker.HasField("silence_seconds") else "",
            size(worker.bytes_in_flight) if worker.bytes_in_flight else "",
            worker.pid or "",
            worker.waits_for,
        )
        for worker in found.workers
    )
    columns = [
        *("worker#", "attempt#", "is", "does", "step#", "s at it#", "s silent#", "in flight#", "process#"),
        "waits for",
    ]
    print_table(columns, rows, fold=["waits for"])


def _show_shards(found: pb.JobExplanation) -> None:
    rows = []
    for number, shard in enumerate(found.shards):
        rows.append(
            (
                number,
                shard.address,
                _PARTS[shard.part],
                shard.version if shard.part == pb.ShardSight.PART_READY else "",
                ", ".join(map(str, shard.arrived)),
                shard.error,
            )
        )
    print_table(["shard#", "address", "is", "version#", "has pushes of", "error"], rows, fold=["error"])


def _show_members(found: pb.JobExplanation) -> None:
    rows = (
        (
            number,
            member.rank,
            member.clock,
            size(member.bytes_in_flight) if member.bytes_in_flight else "",
            when(member.seen_time),
            member.waits_for,
        )
        for number, shard in enumerate(found.shards)
        for member in shard.members
    )
    print_table(["shard#", "worker#", "clock#", "in flight#", "last seen", "waits for"], rows, fold=["waits for"])
