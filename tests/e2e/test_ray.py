"""A job on the machines of a Ray cluster, one of which dies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.raycluster import ray_cluster
from tests.support.up import ROOT, processes_of

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("ray")]


def test_a_worker_whose_node_dies_is_replaced_on_another_one(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    with ray_cluster(tmp_path, nodes=2, cpus=2) as cluster:
        program = (sys.executable, "-m", "tests.support.ray_training", str(tmp_path / "job"))
        done = subprocess.run(
            [*cluster.namespace.prefix, *program, str(cluster.nodes[1].process.pid), *cluster.options()],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert sorted(seen["first"]) == [False, True], "there was one worker on each node"
    assert seen["state"] == "STATE_SUCCEEDED", (seen["error"], seen["log"][-30:])
    assert seen["restarts"] == 1
    assert seen["last"] == [True, True]
    assert any("has died" in line for line in seen["log"]), seen["log"][-30:]
    assert not processes_of(tmp_path)
