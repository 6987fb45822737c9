"""`train`, `jobs`, `logs` and `catalogue` in pipes and in a terminal, over a scripted training service."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.cli import COMMAND, addresses, environment, run, terminal
from tests.support.gateway import ScriptedTraining, serve_training
from tests.support.wait import until
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.errors import NotFound

State = pb.Job.State
TRAIN = ("train", "mlp", "digits", "--job", "x")


@pytest.fixture
async def training() -> AsyncIterator[tuple[ScriptedTraining, dict[str, str]]]:
    """A scripted training service, and the variables that point commands at it."""
    async with serve_training() as (scripted, address):
        yield scripted, addresses(training=address)


def job(state: "State.ValueType", *, done: int = 0, **fields: Any) -> pb.Job:
    made = pb.Job(name="jobs/x", state=state, **fields)
    made.progress.MergeFrom(pb.Progress(epoch=done + 1, epochs=4, step=done * 10 + 5, steps_per_epoch=10, loss=0.25))
    for number in range(1, done + 1):
        quality = pb.Metrics(loss=0.5, accuracy=0.875, f1=0.8, samples=10)
        made.epochs.add(epoch=number, train_loss=0.6, validation=quality, seconds=0.1, best=True)
    return made


def succeeded() -> pb.Job:
    ended = job(State.STATE_SUCCEEDED, done=4)
    ended.result.MergeFrom(
        pb.Result(
            artifact="0" * 64,
            model_version="models/m/versions/1",
            best_epoch=4,
            test=pb.Metrics(loss=0.5, accuracy=0.9, f1=0.8, samples=20),
            parity=1e-7,
        )
    )
    return ended


def play(scripted: ScriptedTraining, *jobs: pb.Job) -> None:
    for each in jobs:
        scripted.jobs.put_nowait(each)


async def test_train_in_a_pipe(training: Any) -> None:
    scripted, variables = training
    play(scripted, job(State.STATE_RUNNING, done=1), succeeded())
    flags = ["-p", "hidden=[64]", "-o", "learning_rate=0.1", "--optimizer", "adam", "--register", "m", "--workers", "2"]
    status, out, err = await run(*TRAIN, *flags, **variables)
    assert (status, err) == (0, "")
    assert out.splitlines()[:2] == [
        "jobs/x is running",
        "epoch   1  train loss 0.6000  val loss 0.5000  accuracy  87.50%  0.1 s  best",
    ]
    assert "held out       accuracy 90.00%, macro F1 0.8000, loss 0.5000, 20 samples" in out
    spec = scripted.requests[0].spec
    assert (spec.model.name, list(spec.model.parameters["hidden"])) == ("mlp", [64])
    assert (spec.optimizer.name, spec.optimizer.parameters["learning_rate"]) == ("adam", 0.1)
    assert (spec.dataset.builtin, spec.workers, spec.max_restarts) == ("digits", 2, 3)
    assert (spec.register_as, scripted.requests[0].job_id) == ("models/m", "x")


async def test_train_together(training: Any) -> None:
    scripted, variables = training
    play(scripted, succeeded())
    flags = [
        *("--mode", "ssp", "--staleness", "3", "--schedule", "cosine", "--schedule-parameter", "steps=50"),
        *("--clip-norm", "1.5", "--l1", "0.25", "--codec", "topk", "--codec-parameter", "fraction=0.5"),
        *("--durability", "wal", "--fsync", "--strategy", "parameter_server", "--arrival-order"),
        *("--checkpoint-steps", "7", "--interval-steps", "9"),
        *("--stragglers", "drop", "--most-dropped", "1", "--straggler-seconds", "0.5"),
    ]
    status, _, err = await run(*TRAIN, *flags, **variables)
    assert (status, err) == (0, "")
    spec = scripted.requests[0].spec
    assert (spec.consistency.mode, spec.consistency.staleness, spec.consistency.arrival_order) == ("ssp", 3, True)
    assert (spec.schedule.name, spec.schedule.parameters["steps"]) == ("cosine", 50)
    assert (spec.clip_norm, spec.l1, spec.checkpoint_steps) == (1.5, 0.25, 7)
    assert (spec.codec.name, spec.codec.parameters["fraction"]) == ("topk", 0.5)
    assert (spec.durability.mode, spec.durability.fsync, spec.durability.interval_steps) == ("wal", True, 9)
    assert (spec.stragglers.policy, spec.stragglers.most, spec.stragglers.after_seconds) == ("drop", 1, 0.5)
    assert spec.strategy == "parameter_server"
    for wrong in ("nan", "inf", "-1", "x"):
        status, _, err = await run(*TRAIN, "--clip-norm", wrong, **variables)
        assert status == 2
        assert "--clip-norm" in err


async def test_train_says_what_is_held_out_and_where_it_comes_from(training: Any) -> None:
    scripted, variables = training
    play(scripted, succeeded())
    flags = [
        *("--validation", "0.2", "--test", "0.25", "--patience", "3", "--min-delta", "0.01", "--code-revision", "r7"),
        *("--label-column", "kind", "--text-column", "words"),
    ]
    status, _, err = await run(*TRAIN, *flags, **variables)
    assert (status, err) == (0, "")
    spec = scripted.requests[0].spec
    assert (spec.split.validation, spec.split.test) == (0.2, 0.25)
    assert (spec.early_stopping.patience, spec.early_stopping.min_delta) == (3, 0.01)
    assert spec.code_revision == "r7"
    assert (spec.dataset.label_column, spec.dataset.text_column) == ("kind", "words"), "for the service to refuse"


async def test_train_for_programs(training: Any) -> None:
    scripted, variables = training
    play(scripted, job(State.STATE_RUNNING, done=1), succeeded())
    status, out, err = await run(*TRAIN, "--json", **variables)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["state"], found["result"]["best_epoch"], found["workers"]) == ("STATE_SUCCEEDED", 4, [])


async def test_train_without_waiting(training: Any) -> None:
    _, variables = training
    assert await run(*TRAIN, "--no-wait", **variables) == (0, "jobs/x\n", "")
    status, out, err = await run(*TRAIN, "--no-wait", "--plot", "curve.png", **variables)
    assert (status, out) == (1, "")
    assert "nothing to show with --no-wait" in err


async def test_a_job_that_fails_is_status_1_with_its_reason(training: Any) -> None:
    scripted, variables = training
    play(scripted, job(State.STATE_FAILED, error="the data set is empty"))
    status, out, err = await run(*TRAIN, "--json", **variables)
    assert (status, json.loads(out)["state"]) == (1, "STATE_FAILED")
    assert err == "tidemill: jobs/x failed: the data set is empty; its log: `tidemill logs x`\n"


async def test_a_terminal_shows_progress_and_ctrl_c_leaves_the_job(training: Any) -> None:
    scripted, variables = training
    async with terminal(*TRAIN, **variables) as screen:
        play(scripted, job(State.STATE_STARTING, workers=[pb.Worker(phase="starting")]))
        await screen.shows("starting  1 worker starting")
        play(scripted, job(State.STATE_RUNNING, done=2))
        await screen.shows("running  epoch 3/4  loss 0.2500  accuracy 87.50%")
        await screen.shows("62%")
        screen.press_ctrl_c()
        assert await screen.ended() == 130
        rest = screen.text.rpartition("^C")[2]
        assert "jobs/x goes on; `tidemill logs -f x` follows it, `tidemill jobs cancel x` stops it" in rest
        assert "Traceback" not in screen.text
        assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l"), "the cursor is shown again"
    await until(scripted.cancelled.is_set)


async def test_a_narrow_terminal_has_room_for_the_progress(training: Any) -> None:
    scripted, variables = training
    async with terminal(*TRAIN, columns=30, **variables) as screen:
        play(scripted, job(State.STATE_RUNNING, done=2))
        await screen.shows("running  epoch 3/4  loss 0.25…")
        play(scripted, succeeded())
        assert await screen.ended() == 0


async def test_logs_are_followed_until_ctrl_c(training: Any) -> None:
    scripted, variables = training
    line = pb.LogLine(line=0, rank=-1, text="training 100 %")
    line.time.FromSeconds(1_800_000_000)
    async with terminal("logs", "x", "-f", **variables) as screen:
        scripted.lines.put_nowait(line)
        await screen.shows("training training 100 %\r\n")
        screen.press_ctrl_c()
        assert await screen.ended() == 130
        assert "Traceback" not in screen.text


async def test_logs_for_programs(training: Any) -> None:
    scripted, variables = training
    for item in (pb.LogLine(rank=-1, text="a"), pb.LogLine(line=1, rank=0, text="b"), None):
        scripted.lines.put_nowait(item)
    status, out, err = await run("logs", "jobs/x", "--json", **variables)
    assert (status, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert first | {"time": None} == {"line": "0", "time": None, "rank": -1, "text": "a"}
    assert second["text"] == "b"


async def test_a_job_is_asked_to_stop(training: Any) -> None:
    _, variables = training
    assert await run("jobs", "cancel", "x", **variables) == (0, "jobs/x was asked to stop: cancelling\n", "")


async def test_a_job_is_paused_and_goes_on(training: Any) -> None:
    scripted, variables = training
    assert await run("jobs", "pause", "x", **variables) == (0, "jobs/x was asked to pause\n", "")
    assert await run("jobs", "resume", "x", "--shards", "3", **variables) == (0, "jobs/x goes on: pending\n", "")
    assert scripted.requests[-1] == pb.ResumeJobRequest(name="jobs/x", shards=3)


async def test_a_job_gets_other_workers_and_shards(training: Any) -> None:
    scripted, variables = training
    flags = ("--workers", "3", "--shards", "2")
    assert await run("jobs", "resize", "x", *flags, **variables) == (
        0,
        "jobs/x was asked for 3 workers and 2 shards\n",
        "",
    )
    assert scripted.requests[-1] == pb.ResizeJobRequest(name="jobs/x", workers=3, shards=2)


async def test_a_job_is_explained(training: Any) -> None:
    scripted, variables = training
    scripted.explanation = pb.JobExplanation(
        name="jobs/x",
        state=State.STATE_RUNNING,
        summary="waits for worker 1,\x1b[2J last heard of 42 s ago",
        stuck=True,
        culprits=[1],
        workers=[
            pb.WorkerSight(condition=pb.WorkerSight.CONDITION_ALIVE, phase="training", step=18, pid=7),
            pb.WorkerSight(rank=1, condition=pb.WorkerSight.CONDITION_SILENT, silence_seconds=42.25, step=17),
        ],
        shards=[
            pb.ShardSight(
                address="a:1",
                reachable=True,
                part=pb.ShardSight.PART_READY,
                version=17,
                arrived=[0],
                members=[pb.MemberSight(clock=18, waits_for="version 18"), pb.MemberSight(rank=1)],
            ),
            pb.ShardSight(address="b:2", error="refused"),
        ],
        meeting=pb.MeetingSight(generation=3, present=[0], missing=[1]),
        before=["jobs/y"],
    )
    status, out, err = await run("jobs", "why", "x", **variables)
    assert (status, err) == (0, "")
    assert scripted.requests[-1].name == "jobs/x"
    lines = out.splitlines()
    assert lines[0] == "jobs/x waits for worker 1,\\x1b[2J last heard of 42 s ago"
    assert " ".join(lines[2].split()) == "worker attempt is does step s at it s silent in flight process waits for"
    assert lines[4].split() == ["1", "0", "silent", "17", "42.2"]
    assert lines[7].split() == ["0", "a:1", "ready", "17", "0"]
    assert lines[8].split() == ["1", "b:2", "no", "answer", "refused"]
    assert lines[11].split() == ["0", "0", "18", "version", "18"]
    assert lines[-3:] == ["meeting 3: there 0; missing 1", "", "before it: jobs/y"]
    status, out, _ = await run("jobs", "why", "x", "--json", **variables)
    found = json.loads(out)
    assert (status, found["stuck"], found["workers"][1]["silence_seconds"]) == (0, True, 42.25)
    assert "silence_seconds" not in found["workers"][0], "not known"


async def test_what_the_service_refuses_is_one_line(training: Any) -> None:
    scripted, variables = training
    scripted.error = NotFound("jobs/x does not exist\nand never did")
    said = "tidemill: jobs/x does not exist and never did\n"
    assert await run("logs", "jobs/x", "-f", **variables) == (1, "", said)


async def test_the_catalogue(training: Any) -> None:
    _, variables = training
    status, out, _ = await run("catalogue", **variables)
    assert status == 0
    assert out.splitlines() == [
        "model",
        "mlp    A perceptron.",
        "",
        "no data set",
        "",
        "no optimizer",
        "",
        "no strategy",
        "",
        "no schedule",
        "",
        "no codec",
    ]


async def test_a_reader_of_the_log_may_go(training: Any) -> None:
    scripted, variables = training
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("logs", "x", "--follow"),
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**variables),
    )
    os.close(writer)
    try:
        scripted.lines.put_nowait(pb.LogLine(text="first"))
        assert b"first" in await asyncio.to_thread(os.read, reader, 1000)
        os.close(reader)
        scripted.lines.put_nowait(pb.LogLine(line=1, text="second"))
        _, err = await asyncio.wait_for(process.communicate(), 20)
        assert (process.returncode, err) == (141, b"")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
