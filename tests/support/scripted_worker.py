"""A worker process that does what its job's `code_revision` says, in place of training; run by the real launcher.

The script is words separated by spaces, `what:rank[:times]`: the first `times` attempts (default 1) of that rank do it,
any number for `*`. Gates are files in the directory `gates` beside the service's data directory: who waits for one goes
on when it is there.

    crash      kills itself in the first step          exit     ends with status 3, having printed why
    hang       gives no further sign of life           fail     reports a failure that a new worker may not meet
    final      reports a failure that any would meet   stubborn ignores SIGTERM and starts a child that does as well
    start      waits for the gate `start` before its first sign of life
    train      waits for the gate `train` in its first epoch, while it gives signs of life
    epoch      waits for the gate `epoch-N` before it reports epoch N
    export     waits for the gate `export` before it reports the result
    chatty     prints many lines                       worse    every epoch is worse than the one before
    lost       finds the parameters gone after epoch 1
    deaf       does not pause when it is told to       mortal   kills itself when it is told to
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from tidemill import config, errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.parameters import ParametersAdmin, ParametersClient
from tidemill.clients.workers import WorkerClient

ELEMENTS = 8
STEPS = 10
SAMPLES = 5
SIGNATURE = '{"inputs": [{"name": "x", "dtype": "DATA_TYPE_FP32", "shape": [-1, 4]}], "labels": ["a", "b", "c"]}'


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def misbegotten_child() -> None:
    """Start a process that does not want to end."""
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", child])


class Stop(Exception):
    """The service said so."""


class Worker:
    """One scripted worker."""

    def __init__(self, client: WorkerClient, task: pb.Task, gates: Path) -> None:
        self.client = client
        self.task = task
        self.gates = gates
        self.phase = "starting"
        self.step = 0
        self.samples = 0

    def does(self, what: str) -> bool:
        """Whether the script lets this process do it."""
        for word in self.task.spec.code_revision.split():
            name, rank, times = (*word.split(":"), "1", "1")[:3]
            if name == what and int(rank) == self.task.rank:
                return times == "*" or self.task.attempt < int(times)
        return False

    async def beat(self) -> None:
        """One sign of life."""
        try:
            response = await self.client.heartbeat(
                self.phase, step=self.step, steps_per_epoch=STEPS, loss=1 / (self.step + 1), samples=self.samples
            )
        except (errors.Unavailable, errors.DeadlineExceeded):  # the service will be back, or the launcher ends us
            return
        if response.stop:
            raise Stop
        if response.pause and not self.does("deaf"):
            if self.does("mortal"):
                os.kill(os.getpid(), signal.SIGKILL)
            await self.pause()
            raise Stop

    async def pause(self) -> None:
        """Keep the state, and go no further."""
        kept = await self.keep("checkpoint", f"state of {self.task.job} {self.step}".encode()) if self.step else ""
        say(f"kept {self.step}")
        await self.client.report_checkpoint(kept, self.step, paused=True)

    async def lose(self) -> None:
        """Keep a checkpoint, go on, and find that the parameters are gone."""
        kept = await self.keep("checkpoint", f"state of {self.task.job} {self.step}".encode())
        await self.client.report_checkpoint(kept, self.step)
        self.step += 7
        await self.beat()
        await self.client.report_failure("there is no such group", final=True, step=self.step, group_lost=True)
        sys.exit(1)

    async def gate(self, name: str) -> None:
        """Wait for a gate, giving signs of life."""
        while not (self.gates / name).exists():
            await self.beat()
            await asyncio.sleep(0.05)

    async def run(self) -> int:
        """Do everything; the exit status."""
        if self.task.checkpoint:
            say(f"goes on from {self.task.checkpoint}")
        say(f"rank {self.task.rank} attempt {self.task.attempt} of {self.task.job}")
        for number in range(2000 if self.does("chatty") else 0):
            say(f"line {number}")
        if self.does("stubborn"):
            misbegotten_child()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        await self.join()
        self.phase = "training"
        say("training")
        await self.beat()
        await self.misbehave()
        if self.task.rank != 0:
            while True:
                await asyncio.sleep(0.05)
                await self.beat()
        await self.train()
        return 0

    async def join(self) -> None:
        """Rank 0 makes the parameter group; the others wait for it, as workers do."""
        if self.task.rank != 0:
            async with ParametersAdmin(self.task.shards) as admin:
                while True:
                    with suppress(errors.NotFound):
                        await admin.get_group(self.task.group)
                        return
                    await asyncio.sleep(0.05)
        optimizer = self.task.spec.optimizer
        async with ParametersAdmin(self.task.shards) as admin:
            await admin.create_group(
                self.task.group,
                [("w", [ELEMENTS])],
                optimizer=optimizer.name,
                parameters=dict(optimizer.parameters.items()),  # type: ignore[arg-type]
                workers=self.task.spec.workers,
            )
        with ParametersClient(self.task.shards, self.task.group) as client:
            await asyncio.to_thread(client.load, np.ones(ELEMENTS, np.float32))

    async def misbehave(self) -> None:
        """What the script asks for at the first step."""
        if self.does("crash"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does("exit"):
            say("there is no more paper")
            sys.exit(3)
        if self.does("hang"):
            await asyncio.sleep(600)
        if self.does("fail"):
            await self.client.report_failure("the disk is full", final=False, step=1, traceback="in line 7")
            sys.exit(1)
        if self.does("final"):
            await self.client.report_failure("loss is nan at step 7", final=True, step=7)
            sys.exit(1)

    async def train(self) -> None:
        """Epochs that have not been reported yet, and the result."""
        digest, stop, best = "", False, 0
        for number in range(1, self.task.spec.epochs + 1):
            if stop:
                break
            if self.does("train") and number == 1:
                await self.gate("train")
            if number > len(self.task.epochs):
                self.samples += STEPS * SAMPLES
            self.step = number * STEPS
            await self.beat()
            if self.does("epoch"):
                await self.gate(f"epoch-{number}")
            digest = await self.keep("checkpoint", f"weights of {self.task.job} {number}".encode())
            loss = float(number) if self.does("worse") else 1.0 / number
            validation = pb.Metrics(loss=loss, accuracy=0.5, precision=0.5, recall=0.5, f1=0.5, samples=7)
            epoch = pb.Epoch(
                epoch=number, train_loss=1.0 / number, validation=validation, samples=STEPS * SAMPLES, checkpoint=digest
            )
            response = await self.client.report_epoch(epoch)
            stop, best = response.stop, response.best_epoch
            say(f"epoch {number} is done")
            if self.does("lost") and number == 1:
                await self.lose()
        self.phase = "exporting"
        await self.beat()
        if self.does("export"):
            await self.gate("export")
        await self.client.report_result(
            pb.Result(
                artifact=await self.keep("model", f"model of {self.task.job}".encode()),
                best_epoch=best,
                test=pb.Metrics(loss=0.25, accuracy=0.75, precision=0.7, recall=0.6, f1=0.65, samples=9),
                parity=1e-6,
                dataset_digest="d" * 64,
                signature=SIGNATURE,
                test_samples=await self.keep("dataset", f"samples of {self.task.job}".encode()),
            )
        )
        say("the result is there")

    async def keep(self, kind: str, content: bytes) -> str:
        """Store an artifact."""
        async with ArtifactsClient(self.task.artifacts) as artifacts:
            made = await artifacts.create_artifact(
                kind, {"content": content}, labels={"job": self.task.job}, reference=self.task.job
            )
        return made.digest


def silently(gate: Path) -> None:
    """Wait for a gate without any sign of life."""
    while not gate.exists():
        time.sleep(0.05)


def watch_input() -> None:
    """End with the launcher."""
    while os.read(0, 4096):
        pass
    os._exit(1)


async def main() -> int:
    """The exit status."""
    threading.Thread(target=watch_input, daemon=True).start()
    variables = config.environ()
    gates = Path(variables["TIDEMILL_WORKER_DATA"]).parents[2] / "gates"
    async with WorkerClient(variables["TIDEMILL_TRAINING_ADDRESS"], variables["TIDEMILL_WORKER_TOKEN"]) as client:
        task = await client.get_task()
        worker = Worker(client, task, gates)
        if worker.does("start"):
            await asyncio.to_thread(silently, gates / "start")
        try:
            return await worker.run()
        except (Stop, errors.Stale, errors.Unauthenticated):
            return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
