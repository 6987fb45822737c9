"""Experiments with faults, in short: promises hold, and a planted fault is caught."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SHORT = {
    "serving_kill": ("--kills", "2", "--rate", "50"),
    "serving_rolling": ("--stops", "2", "--rate", "50"),
    "serving_memory": ("--rounds", "3", "--megabytes", "50"),
    "serving_crash": ("--crashes", "2", "--every", "30", "--rate", "60"),
    "fuzz_grpc": ("--requests", "800", "--growth", "30", "--refusal-ms", "20000"),
    "fuzz_http": ("--requests", "800", "--growth", "30", "--refusal-ms", "20000"),
    "training_orchestrator": ("--kills", "3", "--seed", "8"),
    "training_worker": ("--faults", "2", "--epochs", "4"),
    "training_shard": ("--kills", "4", "--recovery", "60"),
    "training_copies": ("--kills", "2", "--recovery", "60"),
    "serving_swaps": ("--swaps", "8", "--corrupt", "4", "--rate", "50"),
}
ONCE = {
    "serving_kill": ("--kills", "1"),
    "serving_rolling": ("--stops", "1"),
    "serving_memory": ("--rounds", "1"),
    "fuzz_grpc": ("--requests", "300"),
    "fuzz_http": ("--requests", "300"),
    "training_worker": ("--faults", "1"),
    "training_shard": ("--kills", "1"),
    "training_copies": ("--kills", "1"),
}
"""Once is enough for a fault that is always caught."""


def experiment(name: str, tmp_path: Path, *flags: str) -> Any:
    """What it writes, once it has succeeded."""
    command = [sys.executable, str(ROOT / "scripts" / "faults" / f"{name}.py"), "--json", str(tmp_path / "found.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "found.json").read_text())


@pytest.mark.parametrize("name", SHORT)
def test_promises_hold(name: str, tmp_path: Path) -> None:
    found = experiment(name, tmp_path, *SHORT[name])
    assert found["promises"]
    assert all(promise["kept"] for promise in found["promises"])


@pytest.mark.parametrize("name", SHORT)
def test_a_planted_fault_is_caught(name: str, tmp_path: Path) -> None:
    found = experiment(name, tmp_path, *SHORT[name], *ONCE.get(name, ()), "--plant")
    assert found["planted"]
    assert not all(promise["kept"] for promise in found["promises"])
