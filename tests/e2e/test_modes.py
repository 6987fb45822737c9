"""A job whose workers go apart, asked for over REST, and what is refused there."""

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.support.up import Up
from tidemill.cli.stack import MANAGEMENT

pytestmark = [pytest.mark.xdist_group("platform"), pytest.mark.timeout(120)]

SPEC = {
    "model": {"name": "mlp", "parameters": {"hidden": [16]}},
    "dataset": {"builtin": "iris"},
    "optimizer": {"name": "adam", "parameters": {"learning_rate": 0.01}},
    "epochs": 12,
    "batch_size": 32,
    "workers": 2,
    "shards": 2,
}


def create(up: Up, **fields: Any) -> Any:
    url = f"http://{up.stack.address(MANAGEMENT)}/api/v1/jobs"
    data = json.dumps({**SPEC, **fields}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as response:
        return json.load(response)


def test_workers_may_go_apart(up: Up) -> None:
    way = {"mode": "ssp", "staleness": 2}
    schedule = {"name": "cosine", "parameters": {"steps": 100}}
    created = create(up, consistency=way, schedule=schedule, l1=1e-5, codec={"name": "auto"})
    assert created["spec"]["consistency"]["staleness"] == 2
    lines = up.cli("logs", created["name"], "--follow").stdout
    job = up.json("jobs", "show", created["name"])
    assert job["state"] == "STATE_SUCCEEDED", job.get("error")
    assert job["result"]["test"]["accuracy"] >= 0.7
    used = sum(int(epoch["samples"]) for epoch in job["epochs"])
    assert 12 * 120 - 2 * 16 <= used <= 12 * 120, "the other worker may be two halves of a batch behind"
    for rank in range(2):
        assert f"rank {rank} chooses fp32: what is pushed lies in memory that is shared with the shards" in lines


def test_what_does_not_go_together_is_named(up: Up) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        create(up, strategy="all_reduce", consistency={"mode": "asp"}, codec={"name": "int8"}, clip_norm=-1)
    assert refused.value.code == 400
    text = refused.value.read().decode()
    for field in ("spec.consistency.mode", "spec.codec.name", "spec.clip_norm"):
        assert field in text
