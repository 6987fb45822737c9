"""The training service, which kills itself at one edge of a job's life, and can have a planted fault.

`TRAINING_DIES` says where, as `WHEN EDGE NUMBER`: `before` or `after` a write that takes a job from one state to
another (`running>finishing`; the same state twice for any other change of it), `create` or a `launch`; the NUMBERth
time in this process.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tidemill import config, errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.training.__main__ import main
from tidemill.training.jobs import Job
from tidemill.training.launchers import local
from tidemill.training.store import Duty, JobStore
from tidemill.training.workers_servicer import WorkerServicer


class Death:
    """Comes at one edge."""

    def __init__(self, place: str, note: Path) -> None:
        self._when, self._edge, left = place.split()
        self._left = int(left)
        self._note = note

    def at(self, when: str, edge: str) -> None:
        """This edge is reached."""
        if (when, edge) == (self._when, self._edge):
            self._left -= 1
            if not self._left:
                self._note.touch()
                os.kill(os.getpid(), signal.SIGKILL)


def plant(death: Death) -> None:
    """Let the service die there."""
    states: dict[str, str] = {}
    save, create, launch = JobStore.save, JobStore.create, subprocess.Popen

    async def dying_create(self: JobStore, job: Job, request_id: str = "") -> Job:
        death.at("before", "create")
        made = await create(self, job, request_id)
        death.at("after", "create")
        return made

    async def dying_save(self: JobStore, job: Job, *, duties: Sequence[Duty] = ()) -> Job:
        before = await self.find(job.id)
        states[job.id] = before.state.value if before else ""
        edge = f"{states[job.id]}>{job.state.value}"
        death.at("before", edge)
        stored = await save(self, job, duties=duties)
        death.at("after", edge)
        return stored

    def dying_launch(*arguments: Any, **options: Any) -> Any:
        death.at("before", "launch")
        started = launch(*arguments, **options)
        death.at("after", "launch")
        return started

    JobStore.create, JobStore.save = dying_create, dying_save  # type: ignore[method-assign]
    subprocess.Popen = dying_launch  # type: ignore[misc, assignment]


async def nobody(*_: Any) -> None:
    """Finds no worker again."""


def forget() -> None:
    """Start workers anew without looking for those who live; and let these go on, else they might end in time."""
    beat = WorkerServicer.Heartbeat

    async def lenient(self: WorkerServicer, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        try:
            answer = await beat(self, request, context)
        except (errors.Stale, errors.Unauthenticated):
            return pb.HeartbeatResponse()
        answer.stop = False
        return answer

    local.Local.adopt = nobody  # type: ignore[method-assign, assignment]
    WorkerServicer.Heartbeat = lenient  # type: ignore[method-assign]


if __name__ == "__main__":
    variables = config.environ()
    if "TRAINING_DIES" in variables:
        plant(Death(variables["TRAINING_DIES"], Path(variables["TRAINING_DIED"])))
    if variables.get("TRAINING_PLANTED") == "forgets-workers":
        forget()
    sys.exit(main())
