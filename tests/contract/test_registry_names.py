"""Bad names in every field of every RPC of the registry that holds one, found by reflection."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from tests.support.registry import DIGEST, serve_registry
from tidemill import errors
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.kv.sqlite import SqliteKv
from tidemill.rpc.methods import Method, methods
from tidemill.rpc.status import translated

IDENTIFIERS = [
    *("..", ".", "a..b", "../etc", "..%2fetc", "a/b", "a/../b", "/a", "a/", "//", "\\a", "a\\..\\b", "C:a"),
    *("a\0", "\0a", "a\0b", "a\n", "\ra", "a b", "a ", " a", "\ta", "a\u200b", "a\u202eb", "\ufeffa"),
    *("-a", ".a", "_a", "%2e%2e", "a%00", "~", "$HOME", "`id`", "$(id)", "a;b", "a|b", "a*", "a?", "{a}", "a'", 'a"'),
    *("ａ", "．．", "é", "e\u0301", "ｍｏｄｅｌ", "١", "моdel", "🐟", "a" * 129, "a" * 300, "a" * 100_000),
]
"""No part of a resource name may be one of these."""
WHOLE = ["models", "models/", "/models/a", "models//a", "digits", "projects/p/models/m", "models/m/versions", "//x"]
"""No resource name may be one of these."""
NUMBERS = ["0", "00", "01", "-1", "+1", "1e3", "0x1", "1.0", "9" * 19, "9" * 400, "1 "]
"""No version may have one of these numbers."""

NAMES = ("name", "parent", "model", "service", "instance_id")
RESOURCES = ("model", "model_version", "alias", "instance")
PATTERNS = {
    "Model": "models/{}",
    "ModelVersion": "models/{}/versions/1",
    "Alias": "models/{}/aliases/a",
    "Instance": "instances/{}",
}
OUTPUT_ONLY = {"CreateModelVersion.model_version.name", "RegisterInstance.instance.name"}
EMPTY_ALLOWED = {"Watch.model", "ListInstances.service"}

ALL = [method for service in pb.DESCRIPTOR.services_by_name.values() for method in methods(service)]


def _fields(message: Any, path: str = "") -> Iterator[str]:
    """Paths of the fields that hold a name."""
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_STRING and field.name in NAMES:
            yield f"{path}{field.name}"
        elif not path and field.name in RESOURCES:
            yield from _fields(field.message_type, f"{field.name}.")


CASES = [
    pytest.param(method, path, id=f"{method.name}.{path}")
    for method in ALL
    for path in _fields(method.request.DESCRIPTOR)
    if f"{method.name}.{path}" not in OUTPUT_ONLY
]


def test_every_rpc_is_covered() -> None:
    assert {case.values[0].name for case in CASES} == {method.name for method in ALL} - {"ListModels"}  # type: ignore[union-attr]


@pytest.mark.parametrize(("method", "path"), CASES)
async def test_bad_names_are_refused_and_named(method: Method, path: str) -> None:
    kv = await SqliteKv.open(":memory:")
    async with serve_registry(kv) as client:
        await client.create_model("m")
        await client.create_version("m", format="onnx", artifact=DIGEST)
        await client.set_alias("m", "a", 1)
        revision = await client.revision()
        for value in _bad_values(method, path):
            request = _valid_request(method)
            _set(request, path, value)
            with pytest.raises(errors.Invalid) as refused:
                await _call(client._caller.channel, method, request)
            assert refused.value.violations, value[:50]
            assert len(refused.value.message) <= errors.MAX_TEXT
        assert await client.revision() == revision
        assert await client.list_instances() == []
    await kv.close()


def _bad_values(method: Method, path: str) -> Iterator[str]:
    if f"{method.name}.{path}" not in EMPTY_ALLOWED:
        yield ""
    if path.endswith(("service", "instance_id")):
        yield from IDENTIFIERS
        return
    pattern = "models/{}" if path.endswith(("parent", "model")) else PATTERNS[_resource(method)]
    for identifier in ["", *IDENTIFIERS]:
        yield pattern.format(identifier)
        if pattern.count("/") == 3:
            yield f"{pattern.format('m').rpartition('/')[0]}/{identifier}"
    yield from WHOLE
    if pattern.endswith("versions/1"):
        numbers = ["0", "00", "01", "9" * 19] if method.name == "GetModelVersion" else NUMBERS  # or it is an alias
        yield from (f"models/m/versions/{number}" for number in numbers)
    if pattern.endswith("aliases/a"):
        yield from (f"models/m/aliases/{number}" for number in ("0", "7", "42"))


def _resource(method: Method) -> str:
    """The resource that an RPC is about: what comes after the verb."""
    return next(name for name in sorted(PATTERNS, key=len, reverse=True) if method.name.endswith(name))


def _valid_request(method: Method) -> Message:
    request: Any = method.request()
    match method.name:
        case "CreateModelVersion":
            request.parent = "models/m"
            request.model_version.CopyFrom(pb.ModelVersion(format="onnx", artifact=DIGEST))
        case "SetAlias":
            request.version = 1
        case "RegisterInstance":
            instance = pb.Instance(service="s", address="127.0.0.1:1", ttl=Duration(seconds=30))
            request.instance.CopyFrom(instance)
            request.instance_id = "i"
    return request  # type: ignore[no-any-return]


def _set(request: Message, path: str, value: str) -> None:
    *parents, last = path.split(".")
    target: Any = request
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, last, value)


async def _call(channel: grpc.aio.Channel, method: Method, request: Message) -> None:
    make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    codec = {
        "request_serializer": method.request.SerializeToString,
        "response_deserializer": method.response.FromString,
    }
    call = make(method.path, **codec)(request, timeout=20)
    with translated():
        if method.server_streaming:
            async for _ in call:
                return
        else:
            await call
