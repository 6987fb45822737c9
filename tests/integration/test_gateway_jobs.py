"""Jobs through the gateway, over a real training service whose workers are scripted."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateway import serve_gateway
from tests.support.training import spec, world


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        world(tmp_path) as neighbours,
        neighbours.training(),
        serve_gateway(
            training_address=neighbours.apps[-1].address, registry_address=neighbours.settings["registry_address"]
        ) as gateway,
        gateway.client() as client,
    ):
        yield client


def events(text: str) -> list[tuple[str, Any]]:
    """Name and data of each server-sent event."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


async def test_a_job_from_its_creation_to_its_deletion(http: httpx.AsyncClient) -> None:
    made = await http.post("/api/v1/jobs?job_id=first", json=spec(register_as="models/flowers", alias="champion"))
    assert (made.status_code, made.json()["state"]) == (201, "STATE_PENDING")
    assert made.json()["spec"]["optimizer"]["name"] == "adam"
    seen = events((await http.get("/api/v1/jobs/first/events")).text)
    assert seen[-1] == ("end", {})
    last = seen[-2][1]
    assert (seen[-2][0], last["state"]) == ("job", "STATE_SUCCEEDED")
    assert [epoch["epoch"] for epoch in last["epochs"]] == [1, 2]
    assert last["result"]["model_version"] == "models/flowers/versions/1"
    version = (await http.get("/api/v1/models/flowers/versions/champion")).json()
    assert version["lineage"]["job"] == "jobs/first"

    lines = events((await http.get("/api/v1/jobs/first/logs")).text)[:-1]
    assert [line["line"] for _, line in lines] == [str(number) for number in range(len(lines))]
    assert lines[-1][1]["text"] == "the job has succeeded"
    rest = events((await http.get("/api/v1/jobs/first/logs", headers={"Last-Event-ID": "0"})).text)[:-1]
    assert rest == lines[1:]

    told = events((await http.get("/api/v1/jobs/first/history")).text)[:-1]
    assert [event["number"] for _, event in told] == [str(number) for number in range(len(told))]
    states = [event.get("state", f"epoch {event.get('epoch', {}).get('epoch')}") for _, event in told]
    assert states[0] == "STATE_PENDING"
    assert states[-4:] == ["epoch 1", "epoch 2", "STATE_FINISHING", "STATE_SUCCEEDED"]
    rest = events((await http.get("/api/v1/jobs/first/history", headers={"Last-Event-ID": "2"})).text)[:-1]
    assert rest == told[3:]
    why = (await http.get("/api/v1/jobs/first/explanation")).json()
    assert (why["summary"], why["stuck"]) == ("has succeeded: it waits for nothing", False)
    assert (await http.get("/api/v1/jobs/none/explanation")).status_code == 404

    listed = (await http.get("/api/v1/jobs?state=STATE_SUCCEEDED")).json()["jobs"]
    assert [job["name"] for job in listed] == ["jobs/first"]
    assert (await http.delete("/api/v1/jobs/first")).status_code == 204
    gone = await http.get("/api/v1/jobs/first/events")
    assert (gone.status_code, gone.headers["content-type"]) == (404, "application/problem+json")


async def test_a_job_that_cannot_be_is_refused_by_field(http: httpx.AsyncClient) -> None:
    wrong = await http.post("/api/v1/jobs", json=spec(epochs=-1))
    assert wrong.status_code == 400
    assert any("epochs" in violation["field"] for violation in wrong.json()["violations"])
    checked = await http.post("/api/v1/jobs?validate_only=true&job_id=never", json=spec())
    assert checked.status_code == 200
    assert (await http.get("/api/v1/jobs/never")).status_code == 404
    assert "location" not in checked.headers


async def test_the_catalogue_names_what_a_job_is_made_of(http: httpx.AsyncClient) -> None:
    found = (await http.get("/api/v1/catalogue")).json()
    assert {"mlp", "cnn"} <= {entry["name"] for entry in found["models"]}
    assert {"adam", "sgd"} <= {entry["name"] for entry in found["optimizers"]}
    assert "iris" in {entry["name"] for entry in found["datasets"]}
