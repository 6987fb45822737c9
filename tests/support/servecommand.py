"""`tidemill serve` as a process of its own."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serve(
    folder: Path, offset: int, *flags: str, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """A running command that has said that it is ready; killed at the end if it is still there.

    Args:
        folder: its models.
        offset: of its ports.
        flags: further arguments.
        environment: variables on top of this process's.
    """
    command = [sys.executable, "-m", "tidemill.cli", "serve", "--model-repository", str(folder)]
    log = folder.parent / "serve.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--port-offset", str(offset), *flags],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(folder.parent), **(environment or {})},
        )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        ready = next((line for line in process.stdout if "is ready" in line), "")
        assert ready, log.read_text()[-4000:]
        watchdog.cancel()
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
