"""Virtual environments for clients that cannot or should not share the test process."""

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def venv(name: str, constraints_file: Path | None = None) -> Path:
    """The python of `.cache/<name>-venv`, made on first use with exactly the packages of the constraints file.

    The file pins everything that is installed, dependencies included; it is `scripts/constraints-<name>.txt` unless
    given, and a change of it makes the environment anew. Processes that ask at the same time wait for one of them.
    Making one may take longer than a test usually may: mark such tests with `pytest.mark.timeout(600)`. Nothing is
    compiled ahead: of most packages little is ever imported, and that little compiles itself.
    """
    constraints = constraints_file or ROOT / "scripts" / f"constraints-{name}.txt"
    folder = ROOT / ".cache" / f"{name}-venv"
    python = folder / "bin" / "python"
    ready = folder / f".ready-{hashlib.sha256(constraints.read_bytes()).hexdigest()[:16]}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            _run(sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder))
            pip = [sys.executable, "-m", "pip", "--python", str(python)]
            _run(*pip, "install", "--quiet", "--no-compile", "--no-deps", "-r", str(constraints))
            _run(*pip, "check")
            ready.touch()
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
