"""The grammar of filters."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import Invalid
from tidemill.registry import filters
from tidemill.registry.filters import Condition
from tidemill.registry.models import Draft, Lineage, Model, ModelVersion


def model(name: str, **tags: str) -> Model:
    return Model(model=name, tags=tags)


def version(**metrics: float) -> ModelVersion:
    draft = Draft(format="onnx", artifact="a" * 64, metrics=metrics, tags={"k.l": "v"}, lineage=Lineage(job="jobs/j"))
    return ModelVersion(model="m", version=1, draft=draft)


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("", []),
        ("  \t\n", []),
        ('tags.a="b"', [Condition("tags.a", "=", "b")]),
        ('  tags.a  =  "b"  ', [Condition("tags.a", "=", "b")]),
        ('tags.a.b-c_d = "x AND y"', [Condition("tags.a.b-c_d", "=", "x AND y")]),
        (r'tags.a = "q\"\\\n☝"', [Condition("tags.a", "=", 'q"\\\n☝')]),
        ("metrics.x >= -1.5e-3", [Condition("metrics.x", ">=", -0.0015)]),
        ("metrics.x<.5 AND metrics.x!=+2.", [Condition("metrics.x", "<", 0.5), Condition("metrics.x", "!=", 2.0)]),
        ('a = "1" AND b = 2 AND c < 3', [Condition("a", "=", "1"), Condition("b", "=", 2.0), Condition("c", "<", 3.0)]),
    ],
)
def test_what_can_be_written(text: str, conditions: list[Condition]) -> None:
    assert filters.parse(text) == conditions


@pytest.mark.parametrize(
    "text",
    [
        "tags.a",
        "tags.a =",
        '= "b"',
        'tags.a "b"',
        "tags.a = b",
        'tags.a = "b',
        'tags.a = "b" AND',
        'AND tags.a = "b"',
        'tags.a = "b" OR tags.c = "d"',
        'tags.a = "b" and tags.c = "d"',
        'tags.a = "b" tags.c = "d"',
        'tags.a = "b",',
        "tags.a = 'b'",
        '(tags.a = "b")',
        'tags.a == "b"',
        '"tags.a" = "b"',
        'tags.a = "\\x"',
        'tags.a = "\n"',
        "metrics.x > NaN",
        "metrics.x > inf",
        "metrics.x > 1e999",
        "metrics.x > 0x10",
        "metrics.x > 1_0",
        "metrics.x > --1",
        "metrics.x > =",
        " AND ".join(["metrics.x > 1"] * 17),
        'tags.a = "' + "b" * 5000 + '"',
        "(" * 4000,
        '"' * 4001,
    ],
)
def test_what_cannot_be_written(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        filters.parse(text)
    assert refused.value.reason == "INVALID_FILTER"
    assert set(refused.value.violations) == {"filter"}


@pytest.mark.parametrize(
    "text",
    [
        'name = "x"',
        'name = "models/"',
        'name = "models/a*b"',
        'name = "models/**"',
        'name = "models/../x"',
        'name = "models/\\ud800*"',
        'name != "models/a"',
        'tags. = "x"',
        'tags..a = "x"',
        'tags = "x"',
        'tags.a < "x"',
        "tags.a = 1",
        "metrics.x > 1",
        'description = "x"',
    ],
)
def test_models_have_only_some_conditions(text: str) -> None:
    with pytest.raises(Invalid):
        filters.models(text)


@pytest.mark.parametrize(
    "text", ['name = "models/a"', 'metrics.x = "1"', "artifact = 1", 'format != "onnx"', "lineage = 1", "version > 1"]
)
def test_versions_have_only_some_conditions(text: str) -> None:
    with pytest.raises(Invalid):
        filters.versions(text)


def test_models_match_by_name_and_tags() -> None:
    models = [model("a", k="1"), model("ab", k="2"), model("b", k="1")]

    def chosen(text: str) -> str:
        found = filters.models(text)
        assert all(each.model.startswith(found.prefix) for each in models if found.matches(each))
        return ",".join(each.model for each in models if found.matches(each))

    assert chosen("") == chosen('name = "models/*"') == "a,ab,b"
    assert chosen('name = "models/a"') == "a"
    assert chosen('name = "models/a*"') == "a,ab"
    assert chosen('name = "models/a*" AND name = "models/ab*"') == "ab"
    assert chosen('tags.k = "1"') == "a,b"
    assert chosen('tags.k = "1" AND name = "models/b*"') == "b"
    assert chosen('tags.other = ""') == ""


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("metrics.x = 1", True),
        ("metrics.x != 1", False),
        ("metrics.x < 1", False),
        ("metrics.x <= 1", True),
        ("metrics.x > 0.999", True),
        ("metrics.x >= 1.001", False),
        ("metrics.y != 1", False),
        ('tags.k.l = "v"', True),
        ('format = "onnx" AND lineage.job = "jobs/j"', True),
        ('lineage.job = "jobs/other"', False),
    ],
)
def test_versions_match(text: str, matches: bool) -> None:
    assert filters.versions(text).matches(version(x=1.0)) is matches


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for read in (filters.parse, filters.models, filters.versions):
        with suppress(Invalid):
            read(text)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=100))
def test_any_text_can_be_asked_for(value: str) -> None:
    wanted = filters.models(f"tags.k = {json.dumps(value)}")
    assert wanted.matches(model("m", k=value))
    assert not wanted.matches(model("m", k=value + "x"))
