"""The OpenAPI document is sound, and says what the route tables do."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import settings
from tidemill.gateway import schemas
from tidemill.gateway.app import build
from tidemill.gateway.route import Route
from tidemill.gateway.server import HttpServer
from tidemill.gateway.site import Site


@pytest.fixture
async def routes() -> Any:
    """Every route of the management port."""
    app = build(settings())
    server = app.server
    assert isinstance(server, HttpServer)
    main = server.main
    assert isinstance(main, Site)
    yield [route for front in main.fronts for route in front.table.routes]
    await app.stop(grace=0)


@pytest.fixture
async def document(routes: list[Route]) -> Any:
    """What the route of the document answers."""
    route = next(route for route in routes if route.path == "/openapi.json")
    response = await route.handler(None)  # type: ignore[arg-type]
    return json.loads(bytes(response.body))


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            yield verb, path, operation


def nodes(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


async def test_every_route_is_in_the_document_and_nothing_else(routes: list[Route], document: Any) -> None:
    served = {(route.verb.lower(), route.template) for route in routes}
    assert len(served) == len(routes) > 50
    assert {(verb, path) for verb, path, _ in operations(document)} == served


async def test_the_structure_is_that_of_openapi(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    assert document["info"].keys() == {"title", "version", "description"}
    tags = {tag["name"] for tag in document["tags"]}
    seen = set()
    for _, path, operation in operations(document):
        assert set(operation) <= {
            "tags", "operationId", "summary", "description", "parameters", "requestBody", "responses"
        }  # fmt: skip
        assert set(operation["tags"]) <= tags
        assert operation["operationId"] not in seen
        seen.add(operation["operationId"])
        assert operation["summary"]
        assert len(operation["summary"]) < 160
        places = [(parameter["in"], parameter["name"]) for parameter in operation["parameters"]]
        assert len(places) == len(set(places))
        assert [name for place, name in places if place == "path"] == re.findall(r"\{(\w+)\}", path)
        for parameter in operation["parameters"]:
            assert parameter["in"] in ("path", "query", "header")
            assert parameter["description"]
            assert parameter["schema"]
            assert parameter.get("required", False) == (parameter["in"] == "path")
        assert any(status == "default" or status.startswith("2") for status in operation["responses"])
        for answer in operation["responses"].values():
            assert answer["description"]
        for media in operation.get("requestBody", {"content": {}})["content"].values():
            assert media.keys() == {"schema"}


async def test_references_lead_somewhere_and_every_schema_is_used(document: Any) -> None:
    found = {node["$ref"] for node in nodes(document) if isinstance(node, dict) and "$ref" in node}
    assert {ref.removeprefix(schemas.PREFIX) for ref in found} == set(document["components"]["schemas"])


async def test_everything_of_the_protos_is_described(document: Any) -> None:
    for name, schema in document["components"]["schemas"].items():
        if name in schemas.known():
            assert schema["description"], name
            for field, property in schema.get("properties", {}).items():
                assert property["description"], (name, field)


async def test_texts_and_types_come_from_the_protos(document: Any) -> None:
    job = document["components"]["schemas"]["Job"]["properties"]
    assert job["state"]["$ref"] == "#/components/schemas/JobState"
    assert job["state"]["readOnly"] is True
    assert job["create_time"]["format"] == "date-time"
    assert document["components"]["schemas"]["Model"]["properties"]["tags"]["additionalProperties"] == {
        "type": "string"
    }
    dataset = document["components"]["schemas"]["Dataset"]
    assert dataset["allOf"] == [{"not": {"required": ["builtin", "artifact"]}}]
    create = document["paths"]["/api/v1/jobs"]["post"]
    assert create["operationId"] == "CreateJob"
    assert [parameter["name"] for parameter in create["parameters"]] == ["job_id", "request_id", "validate_only"]
    assert set(create["responses"]) == {"201", "default"}
