"""A server for clients to be tried on, and what their programs say of it."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import clientmodels
from tests.support.servecommand import serve
from tests.support.up import free_offset
from tests.support.venvs import ROOT, venv
from tidemill.cli.stack import INFERENCE, OIP_REST


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running `tidemill serve`.

    Args:
        grpc, http: host:port of its two protocols.
        repository: its models.
    """

    grpc: str
    http: str
    repository: Path

    def python(
        self, environment: str, program: str, *only: str, variables: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """What a program of `tests.support.clientprograms` found in an environment: the error of each check, or ""."""
        command = [str(venv(environment)), "-m", f"tests.support.clientprograms.{program}"]
        return outcomes(
            [*command, self.grpc, self.http, str(self.repository), *only], {**os.environ, **(variables or {})}
        )


def failures(found: dict[str, str]) -> dict[str, str]:
    """Those checks that failed."""
    return {check: error for check, error in found.items() if error}


@contextmanager
def served(
    folder: Path,
    *flags: str,
    models: Sequence[str] = clientmodels.MODELS,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """A server over a repository below `folder`, with these models loaded and these further variables."""
    root, offset = clientmodels.write(folder / "models"), free_offset()
    loads = [word for name in models for word in ("--load-model", name)]
    common = ("--model-control", "explicit", "--allow-client-shm", "--server-name", "triton")
    with serve(root, offset, *common, *loads, *flags, environment=environment) as process:
        yield Served(grpc=f"127.0.0.1:{INFERENCE + offset}", http=f"127.0.0.1:{OIP_REST + offset}", repository=root)
        process.terminate()
        process.wait(20)


def outcomes(command: Sequence[str], environment: dict[str, str] | None = None) -> dict[str, str]:
    """The error of each check that a program tells of, or "", by its name."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return {outcome["check"]: outcome["error"] for outcome in told}
