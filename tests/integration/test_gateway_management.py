"""The management API over a scripted training service: requests, errors, streams, checks, traces and the drain."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from google.protobuf import timestamp_pb2

from tests.support.gateway import Gateway, ScriptedTraining, serve_gateway, serve_training
from tests.support.rawhttp import exchange
from tests.support.wait import until
from tidemill import errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.gateway import problems, server
from tidemill.gateway.server import HttpServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@dataclass
class World:
    """A gateway over a scripted training service, and a client of the management port."""

    gateway: Gateway
    training: ScriptedTraining
    training_address: str
    http: httpx.AsyncClient


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[World]:
    async with (
        serve_training() as (training, address),
        serve_gateway(training_address=address) as gateway,
        gateway.client() as http,
    ):
        yield World(gateway, training, address, http)


@pytest.fixture
def world(running: World) -> World:
    running.training.reset()
    running.gateway.spans.clear()
    return running


async def test_path_query_and_body_become_one_request(world: World) -> None:
    spec = {
        "model": {"name": "cnn", "parameters": {"width": 8}},
        "workers": 2,
        "seed": "7",
        "earlyStopping": {"patience": 3},
    }
    created = await world.http.post("/api/v1/jobs?job_id=a&request_id=r", json=spec)
    assert created.status_code == 201
    assert created.headers["location"] == "/api/v1/jobs/a"
    assert created.headers["etag"] == '"1"'
    request = world.training.requests[-1]
    assert (request.job_id, request.request_id, request.validate_only) == ("a", "r", False)
    assert (request.spec.model.name, request.spec.workers, request.spec.seed) == ("cnn", 2, 7)
    assert request.spec.early_stopping.patience == 3
    assert created.json()["spec"]["early_stopping"] == {"patience": 3, "min_delta": 0.0}
    checked = await world.http.post("/api/v1/jobs?validate_only=true", json=spec)
    assert checked.status_code == 200
    assert world.training.requests[-1].validate_only


async def test_lists_are_paged_and_filtered(world: World) -> None:
    listed = await world.http.get("/api/v1/jobs?page_size=3&page_token=t&state=STATE_FAILED")
    assert listed.json()["next_page_token"] == "more"
    expected = pb.ListJobsRequest(page_size=3, page_token="t", state=pb.Job.STATE_FAILED)
    assert world.training.requests[-1] == expected


async def test_verbs_of_a_job(world: World) -> None:
    read = await world.http.get("/api/v1/jobs/a")
    assert (read.json()["name"], read.json()["state"]) == ("jobs/a", "STATE_RUNNING")
    assert read.headers["etag"] == '"7"'
    again = await world.http.get("/api/v1/jobs/a", headers={"If-None-Match": '"7"'})
    assert (again.status_code, again.content) == (304, b"")
    cancelled = await world.http.post("/api/v1/jobs/a:cancel")
    assert cancelled.json()["state"] == "STATE_CANCELLING"
    paused = await world.http.post("/api/v1/jobs/a:pause")
    assert paused.json()["state"] == "STATE_PAUSING"
    resized = await world.http.post("/api/v1/jobs/a:resize?workers=3&shards=2")
    assert resized.json()["resize"] == {"workers": 3, "shards": 2}
    assert world.training.requests[-1] == pb.ResizeJobRequest(name="jobs/a", workers=3, shards=2)
    resumed = await world.http.post("/api/v1/jobs/a:resume?shards=3")
    assert resumed.json()["state"] == "STATE_PENDING"
    assert world.training.requests[-1] == pb.ResumeJobRequest(name="jobs/a", shards=3)
    deleted = await world.http.delete("/api/v1/jobs/a")
    assert (deleted.status_code, deleted.content) == (204, b"")
    head = await world.http.head("/api/v1/jobs/a")
    assert (head.status_code, head.content) == (200, b"")
    assert (await world.http.get("/api/v1/catalogue")).json()["models"][0]["name"] == "mlp"


@pytest.mark.parametrize("kind", errors.BY_CODE.values())
async def test_every_error_of_a_service_becomes_its_problem(world: World, kind: type[errors.TidemillError]) -> None:
    world.training.error = kind("what is wrong", reason="SOME_REASON", metadata={"a": "b"}, retry_after=2)
    answer = await world.http.get("/api/v1/jobs/a")
    found = answer.json()
    assert answer.status_code == found["status"] == problems.STATUSES[kind.code]
    assert answer.headers["content-type"] == "application/problem+json"
    assert (found["detail"], found["reason"]) == ("what is wrong", "SOME_REASON")
    assert found["metadata"] == {"a": "b"}
    assert found["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["retry-after"] == "2"


async def test_violations_name_the_fields(world: World) -> None:
    world.training.error = errors.invalid("spec.epochs", "must be positive")
    found = (await world.http.post("/api/v1/jobs", json={})).json()
    assert found["violations"] == [{"field": "spec.epochs", "problem": "must be positive"}]


async def test_an_unexpected_error_says_nothing_of_itself(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.training.error = ZeroDivisionError("secret")
    found = (await world.http.get("/api/v1/jobs/a", headers={"X-Request-ID": "mine"})).json()
    assert (found["status"], found["reason"], found["request_id"]) == (500, "UNEXPECTED", "mine")
    assert "secret" not in json.dumps(found)
    # The service logs the detail under the id that the caller knows.
    logged = [record for record in caplog.records if record.message == "unexpected error"]
    assert [getattr(record, "request_id", "") for record in logged] == ["mine"]


async def test_a_service_that_is_not_there_is_named(world: World) -> None:
    answer = await world.http.get("/api/v1/models")
    assert (answer.status_code, answer.json()["reason"]) == (503, "BACKEND_UNREACHABLE")
    assert answer.json()["detail"] == "the registry service does not answer"
    assert answer.headers["retry-after"] == "1"
    status = (await world.http.get("/api/v1/status")).json()
    assert status["ready"] is False
    found = {service["name"]: service["status"] for service in status["services"]}
    assert found == {
        "registry": "UNREACHABLE",
        "artifacts": "UNREACHABLE",
        "training": "SERVING",
        "inference": "UNREACHABLE",
    }


BAD_REQUESTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "no such path": ({"url": "/api/v1/nothing"}, 404, "UNKNOWN_PATH"),
    "a path that ends with a slash": ({"url": "/api/v1/jobs/"}, 404, "UNKNOWN_PATH"),
    "no such verb": ({"method": "PUT", "url": "/api/v1/jobs"}, 405, "METHOD_NOT_ALLOWED"),
    "a bad name": ({"url": "/api/v1/jobs/.."}, 404, "UNKNOWN_PATH"),
    "dots in a name": ({"url": "/api/v1/jobs/a..b"}, 400, "INVALID_NAME"),
    "encoded dots": ({"url": "/api/v1/jobs/%2e%2e"}, 400, "INVALID_NAME"),
    "an encoded slash": ({"url": "/api/v1/jobs/a%2fb"}, 400, "INVALID_PATH"),
    "an encoded backslash": ({"url": "/api/v1/jobs/a%5Cb"}, 400, "INVALID_PATH"),
    "an encoded zero": ({"url": "/api/v1/jobs/a%00"}, 400, "INVALID_PATH"),
    "an encoded line break": ({"url": "/api/v1/jobs/a%0a"}, 400, "INVALID_PATH"),
    "wide dots": ({"url": "/api/v1/jobs/%EF%BC%8E"}, 400, "INVALID_NAME"),
    "bytes that are no text": ({"url": "/api/v1/jobs/%ff"}, 400, "INVALID_NAME"),
    "a long name": ({"url": "/api/v1/jobs/" + "a" * 129}, 400, "INVALID_NAME"),
    "an unknown parameter": ({"url": "/api/v1/jobs?page=1"}, 400, "UNKNOWN_PARAMETER"),
    "a body of another type": (
        {"method": "POST", "url": "/api/v1/jobs", "content": b"{}"},
        415,
        "UNSUPPORTED_MEDIA_TYPE",
    ),
    "a compressed body": (
        {"method": "POST", "url": "/api/v1/jobs", "json": {}, "headers": {"Content-Encoding": "gzip"}},
        415,
        "UNSUPPORTED_ENCODING",
    ),
    "a body that is a list": ({"method": "POST", "url": "/api/v1/jobs", "json": []}, 400, "INVALID_BODY"),
    "no such field": ({"method": "POST", "url": "/api/v1/jobs", "json": {"epoch": 1}}, 400, "INVALID_BODY"),
    "a field of another type": ({"method": "POST", "url": "/api/v1/jobs", "json": {"model": 1}}, 400, "INVALID_BODY"),
    "a field of a wrong value": (
        {"method": "POST", "url": "/api/v1/jobs", "json": {"workers": 2**40}},
        400,
        "INVALID_BODY",
    ),
    "a lone surrogate": (
        {
            "method": "POST",
            "url": "/api/v1/jobs",
            "content": rb'{"alias": "\ud800"}',
            "headers": {"Content-Type": "application/json"},
        },
        400,
        "INVALID_BODY",
    ),
    "too large a body": (
        {"method": "POST", "url": "/api/v1/jobs", "json": {"alias": "x" * (5 << 20)}},
        413,
        "BODY_TOO_LARGE",
    ),
    "a foreign host": ({"url": "/api/v1/jobs", "headers": {"Host": "evil.example"}}, 421, "UNKNOWN_HOST"),
    "a foreign origin": ({"url": "/api/v1/jobs", "headers": {"Origin": "http://evil.example"}}, 403, "CROSS_ORIGIN"),
    "a bad time": ({"url": "/api/v1/jobs", "headers": {"X-Request-Timeout": "soon"}}, 400, "INVALID_ARGUMENT"),
    "an endless time": ({"url": "/api/v1/jobs", "headers": {"X-Request-Timeout": "inf"}}, 400, "INVALID_ARGUMENT"),
    "a bad resume": ({"url": "/api/v1/jobs/a/logs", "headers": {"Last-Event-ID": "x"}}, 400, "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_bad_requests_are_refused(world: World, name: str) -> None:
    given, status, reason = BAD_REQUESTS[name]
    request = world.http.build_request(given.get("method", "GET"), given["url"], **{
        key: value for key, value in given.items() if key in ("content", "json", "headers")
    })  # fmt: skip
    if "%" in given["url"] or ".." in given["url"]:  # as written, not as the client would tidy it
        request.url = request.url.copy_with(raw_path=given["url"].encode())
    answer = await world.http.send(request)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert not world.training.requests
    if status == 405:
        assert answer.headers["allow"] == "GET, POST"


LARGE = b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"


async def test_an_answer_reaches_a_client_that_is_not_done_talking(world: World) -> None:
    """A reset would take the answer back, or end the client's sending with an error."""
    size = 16 << 20
    sent = LARGE + b"Content-Length: %d\r\n\r\n" % size + b"x" * size
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.ports["management"])
    async with asyncio.timeout(60):
        writer.write(sent)
        await writer.drain()
        writer.write_eof()
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"BODY_TOO_LARGE" in answer
    writer.close()


async def test_a_client_that_never_stops_talking_is_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.ports["management"])
    async with asyncio.timeout(60):
        writer.write(LARGE + b"Content-Length: %d\r\n\r\n" % (1 << 40))
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 413 ")
        with suppress(ConnectionError):
            while True:  # for as long as it is let
                writer.write(b"x" * (1 << 16))
                await writer.drain()
    writer.close()


RAW_REQUESTS: dict[str, tuple[bytes, int]] = {
    "no host": (b"GET /api/v1/status HTTP/1.1\r\n\r\n", 400),
    "no host in an old request": (b"GET /api/v1/status HTTP/1.0\r\n\r\n", 421),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "length and chunks": (
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        400,
    ),
    "an unknown coding": (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: zip\r\n\r\n", 400),
    "a header without a name": (b"GET / HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n", 400),
    "headers that are too long": (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 40000 + b"\r\n\r\n", 431),
    "a path that is too long": (b"GET /" + b"x" * 40000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
    "a head without an end": (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 40000, 400),
    "too many headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "a proxy's target": (b"GET http://localhost/api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "a verb of one's own": (b"STEAL /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "very many chunks": (
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 17000,
        400,
    ),
}


@pytest.mark.parametrize("name", RAW_REQUESTS)
async def test_bad_http_is_refused_and_nobody_else_is_hurt(world: World, name: str) -> None:
    sent, status = RAW_REQUESTS[name]
    assert (await exchange(world.gateway.ports["management"], sent))[0] == status
    assert not world.training.requests
    assert (await world.http.get("/api/v1/jobs")).status_code == 200


async def test_progress_as_events(world: World) -> None:
    for state in (pb.Job.STATE_RUNNING, pb.Job.STATE_SUCCEEDED):
        world.training.jobs.put_nowait(pb.Job(name="jobs/a", state=state))
    world.training.jobs.put_nowait(None)
    answer = await world.http.get("/api/v1/jobs/a/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, end, rest = answer.text.split("\n\n")
    assert [event.split("\n")[0] for event in events] == ["event: job", "event: job"]
    states = [json.loads(event.split("data: ")[1])["state"] for event in events]
    assert states == ["STATE_RUNNING", "STATE_SUCCEEDED"]
    assert (end, rest) == ("event: end\ndata: {}", "")


async def test_logs_as_lines_of_json_and_from_where_one_stopped(world: World) -> None:
    for number in (4, 5):
        time = timestamp_pb2.Timestamp(seconds=number)
        world.training.lines.put_nowait(pb.LogLine(line=number, time=time, rank=-1, text='say "é"\u2028'))
    world.training.lines.put_nowait(None)
    answer = await world.http.get(
        "/api/v1/jobs/a/logs?follow=true&from_line=4", headers={"Accept": "application/x-ndjson"}
    )
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.split("\n") if line]
    assert [(line["line"], line["text"]) for line in lines] == [("4", 'say "é"\u2028'), ("5", 'say "é"\u2028')]
    assert world.training.requests[-1] == pb.StreamLogsRequest(name="jobs/a", from_line=4, follow=True)
    world.training.lines.put_nowait(pb.LogLine(line=9, text="x"))
    world.training.lines.put_nowait(None)
    resumed = await world.http.get("/api/v1/jobs/a/logs", headers={"Last-Event-ID": "8"})
    assert world.training.requests[-1].from_line == 9
    assert resumed.text.startswith("id: 9\nevent: line\ndata: ")


async def test_a_stream_that_is_refused_has_its_own_status(world: World) -> None:
    world.training.error = errors.NotFound("jobs/a does not exist", reason="JOB_NOT_FOUND")
    answer = await world.http.get("/api/v1/jobs/a/events")
    assert (answer.status_code, answer.json()["reason"]) == (404, "JOB_NOT_FOUND")


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_an_error_in_the_middle_of_a_stream_is_its_last_word(world: World, accept: str) -> None:
    world.training.jobs.put_nowait(pb.Job(name="jobs/a"))
    world.training.jobs.put_nowait(errors.Unavailable("gone", reason="STORE_DOWN"))
    answer = await world.http.get("/api/v1/jobs/a/events", headers={"Accept": accept})
    assert answer.status_code == 200
    if accept == "text/event-stream":
        last = answer.text.split("\n\n")[-2]
        assert last.startswith("event: problem\ndata: ")
        problem = json.loads(last.split("data: ")[1])
    else:
        problem = json.loads(answer.text.split("\n")[-2])["error"]
    assert (problem["reason"], problem["status"]) == ("STORE_DOWN", 503)


async def test_a_stream_begins_before_its_first_event_and_ends_when_nobody_listens(world: World) -> None:
    async with world.http.stream("GET", "/api/v1/jobs/a/events") as answer:
        assert answer.status_code == 200
    await asyncio.wait_for(world.training.cancelled.wait(), 10)


async def test_head_of_a_stream_has_no_body(world: World) -> None:
    answer = await world.http.head("/api/v1/jobs/a/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_the_time_of_a_request_is_passed_on(world: World) -> None:
    # On a busy machine the time may be over before the call has reached the service: then nothing is cancelled there.
    async with asyncio.timeout(30):
        while not world.training.cancelled.is_set():
            answer = await world.http.get("/api/v1/jobs/slow", headers={"X-Request-Timeout": "0.3"})
            assert (answer.status_code, answer.json()["status"]) == (504, 504)
            with suppress(TimeoutError):
                await asyncio.wait_for(world.training.cancelled.wait(), 1)


async def test_who_hangs_up_cancels_the_work(world: World) -> None:
    port = world.gateway.ports["management"]
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /api/v1/jobs/slow:cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
    await world.training.entered.wait()
    writer.close()
    await asyncio.wait_for(world.training.cancelled.wait(), 10)


async def test_traces_and_request_ids_go_through(world: World) -> None:
    headers = {"traceparent": TRACEPARENT, "X-Request-ID": "my-request"}
    answer = await world.http.get("/api/v1/jobs/a", headers=headers)
    assert answer.headers["x-request-id"] == "my-request"
    assert world.training.metadata["x-request-id"] == "my-request"
    assert world.training.metadata["traceparent"].split("-")[1] == TRACE
    spans = world.gateway.spans.get_finished_spans
    await until(lambda: any(span.name == "GET /api/v1/jobs/{job}" for span in spans()))
    server = next(span for span in spans() if span.name == "GET /api/v1/jobs/{job}")
    client = next(span for span in spans() if span.name.endswith("TrainingService/GetJob"))
    assert server.context is not None
    assert client.parent is not None
    assert f"{server.context.trace_id:032x}" == TRACE
    assert client.parent.span_id == server.context.span_id
    assert dict(server.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/api/v1/jobs/{job}",
        "http.response.status_code": 200,
        "tidemill.request_id": "my-request",
    }


async def test_answers_are_not_held_back(world: World) -> None:
    await world.http.get("/api/v1/jobs/a")
    server = world.gateway.app.server
    assert isinstance(server, HttpServer)
    sockets = [c.transport.get_extra_info("socket") for one in server.servers for c in one.server_state.connections]
    assert sockets
    assert all(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for found in sockets)


async def test_probes_leave_no_spans(world: World) -> None:
    assert (await world.http.get("/v2/health/live")).status_code == 503
    await world.http.get("/api/v1/jobs/a")
    await until(world.gateway.spans.get_finished_spans)
    assert not [span.name for span in world.gateway.spans.get_finished_spans() if "health" in span.name]


@pytest.mark.parametrize("given", ["", "x" * 65, "é", "a\tb"])
async def test_request_ids_unfit_for_a_log_are_replaced(world: World, given: str) -> None:
    answer = await world.http.get("/api/v1/jobs/a", headers={b"X-Request-ID": given.encode()})
    assert answer.headers["x-request-id"] not in ("", given)


async def test_requests_are_counted_by_route_and_status(world: World) -> None:
    value = world.gateway.app.telemetry.registry.get_sample_value

    def counted() -> tuple[float, float]:
        read = {"method": "GET", "route": "/api/v1/jobs/{job}", "status": "200"}
        lost = {"method": "GET", "route": "", "status": "404"}
        first, second = (value("tidemill_http_handled_total", labels) or 0 for labels in (read, lost))
        return first, second

    before = counted()
    for path in ("/api/v1/jobs/a", "/api/v1/jobs/b", "/nothing/at/all"):
        await world.http.get(path)
    await until(lambda: counted() == (before[0] + 2, before[1] + 1))


async def test_only_this_machine_may_call_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    class Nobody:
        def authorize(self, method: str, metadata: Any, peer: str) -> Any:
            seen.append((method, peer))
            raise errors.PermissionDenied("no", reason="NOT_LOOPBACK")

    monkeypatch.setattr("tidemill.gateway.app.authorizer", lambda config: Nobody())
    async with serve_gateway() as gateway, gateway.client() as http:
        for path, route in (("/api/v1/jobs/a", "/api/v1/jobs/{job}"), ("/nothing", ""), ("/docs", "/docs")):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["reason"]) == (403, "NOT_LOOPBACK")
            assert seen[-1][0] == f"HTTP GET {route}"
            assert seen[-1][1].startswith("ipv4:127.0.0.1:")


async def test_too_many_requests_at_a_time_are_turned_away(world: World) -> None:
    async with (
        serve_gateway(training_address=world.training_address, max_requests=1) as gateway,
        gateway.client() as http,
    ):
        slow = asyncio.create_task(http.get("/api/v1/jobs/slow"))
        await world.training.entered.wait()
        busy = await http.get("/api/v1/jobs/a")
        assert (busy.status_code, busy.json()["reason"]) == (503, "BUSY")
        world.training.release.set()
        assert (await slow).status_code == 200
        assert (await http.get("/api/v1/jobs/a")).status_code == 200


async def test_the_drain_lets_work_finish_and_ends_streams() -> None:
    async with (
        serve_training() as (training, address),
        serve_gateway(training_address=address) as gateway,
        gateway.client() as http,
        http.stream("GET", "/api/v1/jobs/a/events") as stream,
    ):
        slow = asyncio.create_task(http.get("/api/v1/jobs/slow"))
        await training.entered.wait()
        stopping = asyncio.create_task(gateway.app.server.stop(20))
        assert "event: end" not in (await stream.aread()).decode()
        assert not slow.done()
        with pytest.raises(httpx.ConnectError):
            await refused(gateway)
        training.release.set()
        assert (await slow).status_code == 200
        await stopping


async def refused(gateway: Gateway) -> None:
    """Call until nobody listens any more."""
    async with asyncio.timeout(10), gateway.client(limits=httpx.Limits(max_keepalive_connections=0)) as http:
        while True:
            # A connection that the kernel took just before the socket was closed is reset: the next one tells.
            with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
                await http.get("/docs")


async def test_what_does_not_finish_in_time_is_ended_with_an_answer() -> None:
    async with (
        serve_training() as (training, address),
        serve_gateway(training_address=address) as gateway,
        gateway.client() as http,
    ):
        slow = asyncio.create_task(http.get("/api/v1/jobs/slow"))
        await training.entered.wait()
        await gateway.app.server.stop(0)
        answer = await slow
        assert (answer.status_code, answer.json()["reason"]) == (503, "STOPPING")


async def test_the_page_is_complete_and_loads_nothing_from_elsewhere(world: World) -> None:
    page = await world.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for part, kind in (("docs.css", "text/css"), ("docs.js", "text/javascript"), ("schema.js", "text/javascript")):
        found = await world.http.get(f"/docs/{part}")
        assert found.headers["content-type"].startswith(kind)
        assert "http://" not in found.text + page.text
        assert "https://" not in found.text + page.text
    assert (await world.http.get("/docs/other")).status_code == 404
    assert (await world.http.get("/openapi.json")).json()["openapi"].startswith("3.1")


async def test_a_port_in_use_is_a_clear_error() -> None:
    async with serve_gateway() as gateway:
        for field, name in (("port", "management"), ("oip_port", "oip"), ("tfs_port", "tfs")):
            with pytest.raises(errors.Unavailable, match="in use") as refusal:
                async with serve_gateway(**{field: gateway.ports[name]}):
                    pass
            assert refusal.value.reason == "PORT_IN_USE"
