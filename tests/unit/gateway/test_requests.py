"""Query parameters, ranges, hosts and paths: what of a request becomes what, and what is refused."""

import pytest
from starlette.requests import Request
from starlette.responses import Response

from tidemill import errors
from tidemill.api.registry.v1 import registry_pb2
from tidemill.api.training.v1 import training_pb2
from tidemill.gateway.hosts import Hosts
from tidemill.gateway.observe import peer
from tidemill.gateway.problems import Refused
from tidemill.gateway.queries import fill
from tidemill.gateway.ranges import requested, sent
from tidemill.gateway.route import Route, Table


def test_query_fills_fields_by_type() -> None:
    jobs = training_pb2.ListJobsRequest()
    fill(jobs, [("page_size", "7"), ("page_token", "é"), ("state", "STATE_RUNNING")], ())
    assert jobs == training_pb2.ListJobsRequest(page_size=7, page_token="é", state=training_pb2.Job.STATE_RUNNING)
    update = registry_pb2.UpdateModelRequest()
    fill(update, [("update_mask", "tags, description")], {"model"})
    assert list(update.update_mask.paths) == ["tags", "description"]
    logs = training_pb2.StreamLogsRequest()
    fill(logs, [("follow", ""), ("from_line", "-1")], {"name"})
    assert logs == training_pb2.StreamLogsRequest(follow=True, from_line=-1)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ([("page_size", "1"), ("page_size", "2")], "page_size"),
        ([("page_size", "many")], "page_size"),
        ([("page_size", "1_000")], "page_size"),
        ([("page_size", "²")], "page_size"),
        ([("page_size", str(2**31))], "page_size"),
        ([("page_size", "9" * 5000)], "page_size"),
        ([("state", "RUNNING")], "state"),
        ([("other", "1")], "other"),
    ],
)
def test_bad_query_is_invalid(query: list[tuple[str, str]], field: str) -> None:
    with pytest.raises(errors.Invalid) as refused:
        fill(training_pb2.ListJobsRequest(), query, ())
    assert field in refused.value.violations


def test_fields_that_come_from_elsewhere_are_not_parameters() -> None:
    with pytest.raises(errors.Invalid):
        fill(training_pb2.StreamLogsRequest(), [("name", "jobs/x")], {"name"})
    with pytest.raises(errors.Invalid):
        fill(registry_pb2.SetAliasRequest(), [("version", "1")], {"*"})


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 10)),
        ("bytes=90-200", (90, 10)),
        ("bytes=-10", (90, 10)),
        ("bytes=-200", (0, 100)),
        ("bytes=5-4", None),
        ("bytes=0-1,5-6", None),
        ("bytes=-", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=" + "1" * 5000 + "-", None),
        ("", None),
    ],
)
def test_ranges_of_100_bytes(header: str, part: tuple[int, int] | None) -> None:
    assert requested(header, 100) == part


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=200-300", "bytes=-0"])
def test_ranges_that_are_not_there(header: str) -> None:
    with pytest.raises(Refused) as refused:
        requested(header, 100)
    assert (refused.value.status, refused.value.headers["Content-Range"]) == (416, "bytes */100")


def test_offset_of_a_body() -> None:
    assert sent("", 10) == 0
    assert sent("bytes 5-14/20", 10) == 5
    for bad in ("bytes 5-13/20", "bytes 15-24/20", "bytes 5-4/20", "bytes */20", "bytes 5-14/*", "5-14/20"):
        with pytest.raises(errors.Invalid):
            sent(bad, 10)


def request(headers: dict[str, str], client: tuple[str, int] | None = None) -> Request:
    raw = [(key.encode(), value.encode()) for key, value in headers.items()]
    return Request({"type": "http", "headers": raw, "method": "GET", "client": client})


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.1.2.3", "[::1]", "[::1]:80", "models.example:8080"]
)
def test_known_hosts_pass(host: str) -> None:
    Hosts(["Models.example"]).check(request({"host": host}))


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.1", "[::1", "a@b:c", "::1"],
)
def test_foreign_hosts_are_misdirected(host: str) -> None:
    with pytest.raises(Refused) as refused:
        Hosts(["models.example"]).check(request({"host": host}))
    assert refused.value.status == 421
    Hosts(anything=True).check(request({"host": host}))


def test_pages_of_other_sites_may_not_call() -> None:
    hosts = Hosts()
    hosts.check(request({"host": "localhost:8080", "origin": "http://localhost:8080"}))
    for origin in ("http://evil.example", "http://localhost:9999", "null", ""):
        with pytest.raises(Refused) as refused:
            hosts.check(request({"host": "localhost:8080", "origin": origin}))
        assert refused.value.status == 403


@pytest.mark.parametrize(
    ("client", "name"),
    [
        (("127.0.0.1", 5), "ipv4:127.0.0.1:5"),
        (("::1", 5), "ipv6:[::1]:5"),
        (("::ffff:127.0.0.1", 5), "ipv4:127.0.0.1:5"),
        (("testclient", 5), ""),
        (None, ""),
    ],
)
def test_the_other_end_in_the_words_of_grpc(client: tuple[str, int] | None, name: str) -> None:
    assert peer(request({}, client)) == name


async def nothing(_: Request) -> Response:
    return Response()


def test_routes_are_found_by_verb_and_path() -> None:
    def route(verb: str, path: str) -> Route:
        return Route(verb=verb, path=path, handler=nothing, operation={})

    get, cancel, number = route("GET", "/jobs/{job}"), route("POST", "/jobs/{job}:cancel"), route("GET", "/v/{n:int}")
    table = Table([get, cancel, number])
    assert table.find("GET", "/jobs/a") == (get, {"job": "a"})
    assert table.find("HEAD", "/jobs/a") == (get, {"job": "a"})
    assert table.find("POST", "/jobs/a:cancel") == (cancel, {"job": "a"})
    assert table.find("GET", "/jobs/a:cancel") == frozenset({"POST"})
    assert table.find("DELETE", "/jobs/a") == frozenset({"GET"})
    for path in ("/jobs/a/b", "/jobs/", "/jobs/a\n", "/JOBS/a", "/v/x", "/v/²"):
        assert table.find("GET", path) == frozenset()
    assert table.find("GET", "/v/12") == (number, {"n": "12"})
    assert number.template == "/v/{n}"
    assert Table([get], ignore_case=True).find("GET", "/JOBS/a") == (get, {"job": "a"})
