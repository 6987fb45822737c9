"""The benchmark of distributed training runs, and says what it found."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.up import ROOT

pytestmark = pytest.mark.timeout(300)


def test_it_measures_our_modes_beside_compute_alone(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "scripts/benchmarks/training.py"), f"--json={path}", "--peers="]
    command += ["--models=S", "--workers=2", "--modes=bsp-grpc", "--rounds=1", "--steps=10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    # Nothing that is promised was measured; and the parameters were those that one process comes to.
    assert done.returncode == 0, done.stderr
    assert "ours-bsp-grpc" in done.stdout
    facts: dict[str, Any] = json.loads(path.read_text())
    rows = {row["system"]: row for row in facts["medians"]}
    assert list(rows) == ["alone", "ours-bsp-grpc"]
    ours = rows["ours-bsp-grpc"]
    # Two workers push and pull 203,530 float32 each.
    assert ours["payload_mb"] == pytest.approx(2 * 2 * 4 * 203_530 / 1e6)
    assert rows["alone"]["payload_mb"] == 0
    assert set(ours["peak_mib"]) == {"shard-0", "worker-0", "worker-1"}
    assert all(row["p50_ms"] > 0 and row["cpu_s"] > 0 for row in rows.values())
    assert ours["overhead_ms"] == pytest.approx(ours["p50_ms"] - rows["alone"]["p50_ms"])
    assert [promise["kept"] for promise in facts["promises"]] == [None] * 8
    assert [len(found) for found in facts["rounds"]] == [1]
    assert len(facts["rounds"][0][0]["systems"]["ours-bsp-grpc"]["times"]) == 2 * 10
    assert facts["commit"] != "unknown"


@pytest.mark.parametrize("wrong", ["--modes=pigeon", "--steps=7"])
def test_it_refuses_what_it_does_not_know(wrong: str) -> None:
    command = [sys.executable, str(ROOT / "scripts/benchmarks/training.py"), wrong]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr
