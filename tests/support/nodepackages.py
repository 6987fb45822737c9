"""Packages for programs in Node, installed once under `.cache`."""

import fcntl
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("@grpc/grpc-js@1.13.4", "@grpc/proto-loader@0.7.15")


def node_modules() -> Path:
    """The folder `node_modules` with `PACKAGES`; a program finds them when it is run in the folder around it."""
    folder = ROOT / ".cache" / "node"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = folder / "ready-1"
        if not ready.exists():
            command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1"]
            command += ["--fetch-timeout=30000", "--prefix", str(folder), *PACKAGES]
            done = subprocess.run(command, timeout=180, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            assert done.returncode == 0, f"npm cannot install {' '.join(PACKAGES)}:\n{done.stderr}"
            ready.touch()
    return folder / "node_modules"
