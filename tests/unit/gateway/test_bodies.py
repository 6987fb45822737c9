"""Bodies are bounded in size, depth and memory before they are parsed."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from tidemill import errors
from tidemill.gateway.bodies import MAX_CONTAINERS, MAX_DEPTH, MAX_MEMBERS, Bodies, check_depth, parse
from tidemill.gateway.problems import Refused


def request(chunks: list[bytes], headers: dict[str, str] | None = None) -> Request:
    """A request whose body comes in these chunks; None of them = the caller hangs up."""
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    raw = [(key.encode(), value.encode()) for key, value in (headers or {}).items()]
    return Request({"type": "http", "headers": raw, "method": "POST"}, receive)


def depth(value: Any) -> int:
    """How deep lists and objects are nested in each other."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


values = st.recursive(
    st.none() | st.booleans() | st.text(alphabet='[]{}"\\a\n', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[{"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(value=values, extra=st.integers(0, 40), wide=st.booleans())
def test_exactly_what_is_nested_too_deep_is_refused(value: Any, extra: int, wide: bool) -> None:
    for _ in range(extra):
        value = [value]
    document: Any = [value, *([[]] * (MAX_DEPTH + 1 if wide else 0))]
    text = json.dumps(document).encode()
    if depth(document) <= MAX_DEPTH:
        assert parse(text) == document
    else:
        with pytest.raises(errors.Invalid, match="nested"):
            parse(text)


@pytest.mark.parametrize(
    "text",
    [b"[" * 10**6, b"[" * 10**5 + b"]" * 10**5, b'{"a":' * 10**5, b"]" * 10**5 + b"[" * 100, b'["' + b'\\"[' * 10**5],
    ids=["open", "closed", "objects", "wrong way round", "unterminated string"],
)
def test_deep_and_broken_documents_are_refused_without_being_parsed(text: bytes) -> None:
    with pytest.raises(errors.Invalid) as refused:
        check_depth(text)
    assert refused.value.reason == "INVALID_JSON"


def test_brackets_in_strings_do_not_count() -> None:
    text = json.dumps({"a": "[{" * 1000 + '\\"', "b": '"' + "[" * 1000}).encode()
    assert parse(text)["b"].endswith("[")


def test_too_many_parts_are_refused() -> None:
    with pytest.raises(errors.Invalid, match="opening brackets"):
        parse(b"[" + b"[]," * MAX_CONTAINERS + b"[]]")


@pytest.mark.parametrize("text", [b"", b"{", b"nul", b'"\xff"', b"[1,]", b"1" * 5000, b"[1] 2", b"\xef\xbb\xbf{}"])
def test_what_is_no_json_is_invalid(text: bytes) -> None:
    with pytest.raises(errors.Invalid) as refused:
        parse(text)
    assert refused.value.reason == "INVALID_JSON"


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity"])
def test_tokens_that_are_no_json_are_understood_on_demand_only(token: str) -> None:
    text = f"[{token}]".encode()
    assert str(parse(text, nonfinite=True)[0]) in ("nan", "inf", "-inf")
    with pytest.raises(errors.Invalid, match=token):
        parse(text)


async def test_body_comes_whole() -> None:
    bodies = Bodies(limit=10, buffered=20)
    async with bodies.received(request([b"abc", b"def"])) as body:
        assert body == b"abcdef"


@pytest.mark.parametrize("headers", [{"content-length": "11"}, {}], ids=["announced", "chunked"])
async def test_body_over_the_limit_is_413(headers: dict[str, str]) -> None:
    bodies = Bodies(limit=10, buffered=20)
    with pytest.raises(Refused) as refused:
        async with bodies.received(request([b"x" * 6, b"x" * 5], headers)):
            raise AssertionError
    assert refused.value.status == 413


async def test_bodies_in_memory_are_bounded_together_and_freed_after_use() -> None:
    bodies = Bodies(limit=10, buffered=15)
    for _ in range(3):
        async with bodies.received(request([b"x" * 10])):
            with pytest.raises(errors.Unavailable) as busy:
                async with bodies.received(request([b"x" * 10])):
                    raise AssertionError
            assert busy.value.retry_after == 1
    async with bodies.received(request([b"x" * 10])) as body:
        assert len(body) == 10


def test_members_are_counted_outside_of_strings_alone() -> None:
    """An object costs more memory than an array, and each of its members more than an element."""
    most = MAX_MEMBERS
    fine = b'{"a:":["' + b":{" * most + b'"]}'
    assert parse(fine) == {"a:": [":{" * most]}
    members = b"{" + b",".join(b'"%d":0' % number for number in range(most - 1)) + b"}"
    assert len(parse(members)) == most - 1
    for many in (members[:-1] + b',"x":0}', b"[" + b"{}," * most + b"{}]", b"[" + b'{"":0},' * (most // 2) + b"{}]"):
        with pytest.raises(errors.Invalid, match="objects and members"):
            parse(many)
