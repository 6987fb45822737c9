"""Every error of the catalogue has a status and a problem document, in each of the three protocols."""

import json

import pytest

from tidemill import errors
from tidemill.gateway import problems
from tidemill.gateway.problems import Refused
from tidemill.gateway.routes import oip, tfs

# error class -> status in the management API, the Open Inference Protocol, TensorFlow Serving's REST API
STATUSES = {
    errors.Invalid: (400, 400, 400),
    errors.NotFound: (404, 404, 404),
    errors.AlreadyExists: (409, 400, 409),
    errors.FailedPrecondition: (409, 400, 400),
    errors.Stale: (409, 400, 409),
    errors.OutOfRange: (400, 400, 400),
    errors.Exhausted: (429, 429, 429),
    errors.Unavailable: (503, 503, 503),
    errors.DeadlineExceeded: (504, 504, 504),
    errors.Cancelled: (499, 400, 499),
    errors.Unauthenticated: (401, 401, 401),
    errors.PermissionDenied: (403, 403, 403),
    errors.Unimplemented: (501, 501, 501),
    errors.DataLoss: (500, 500, 500),
    errors.Internal: (500, 500, 500),
}


def test_the_table_knows_every_class() -> None:
    assert set(STATUSES) == set(errors.BY_CODE.values())
    assert set(problems.STATUSES) == set(errors.Code)


@pytest.mark.parametrize("kind", STATUSES)
def test_management_api(kind: type[errors.TidemillError]) -> None:
    response = problems.render(kind("what is wrong", metadata={"model": "m", "request_id": "theirs"}), "r1")
    found = json.loads(bytes(response.body))
    assert response.status_code == found["status"] == STATUSES[kind][0]
    assert response.headers["content-type"] == "application/problem+json"
    assert found["type"] == f"urn:tidemill:error:{kind.default_reason}"
    assert (found["detail"], found["reason"], found["request_id"]) == ("what is wrong", kind.default_reason, "r1")
    assert found["metadata"] == {"model": "m"}
    assert found["title"]


@pytest.mark.parametrize("kind", STATUSES)
def test_inference_protocols(kind: type[errors.TidemillError]) -> None:
    for column, render in ((1, oip.render), (2, tfs.render)):
        response = render(kind("what is wrong"), "r1")
        assert response.status_code == STATUSES[kind][column]
        assert json.loads(bytes(response.body)) == {"error": "what is wrong"}
        assert response.headers["content-type"] == "application/json"


def test_violations_and_the_time_to_retry_are_told() -> None:
    error = errors.Exhausted("full", violations={"a.b": "is too much"}, retry_after=1.2)
    response = problems.render(error, "r")
    found = json.loads(bytes(response.body))
    assert found["violations"] == [{"field": "a.b", "problem": "is too much"}]
    assert found["retry_after"] == 1.2
    assert response.headers["retry-after"] == "2"


def test_http_has_statuses_of_its_own() -> None:
    response = problems.render(Refused(405, "no", reason="METHOD_NOT_ALLOWED", headers={"Allow": "GET"}), "r")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
    assert json.loads(bytes(response.body))["title"] == "Method Not Allowed"


def test_a_caller_who_is_not_known_is_told_how_to_say_who_it_is() -> None:
    assert "www-authenticate" in problems.render(errors.Unauthenticated("who are you"), "r").headers


def test_fronts_are_told_apart_by_path() -> None:
    for path, owner in (
        ("/v2", "oip"),
        ("/v2/x", "oip"),
        ("/v22", ""),
        ("/v1/x", "tfs"),
        ("/V1/x", "tfs"),
        ("/v1", ""),
    ):
        assert oip.owns(path) == (owner == "oip")
        assert tfs.owns(path) == (owner == "tfs")
