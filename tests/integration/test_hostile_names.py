"""No name in any request to any of our servers is more than a name: from the descriptors of all their services."""

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from tests.support import onnxmodels, requesttexts
from tests.support.hostilenames import MODULES, Name, Place, places
from tests.support.modelfolders import Folder
from tests.support.watched import Touched, Watched, watched

Code = grpc.StatusCode
REFUSED = {Code.INVALID_ARGUMENT, Code.NOT_FOUND}
SERVICES = ("registry", "artifacts", "parameters", "training", "inference")
PLACES = {f"{place.service.name}.{place.method.name}:{'.'.join(place.path)}": place for place in places()}


def kind(place: Place) -> Any:
    """What the text is."""
    fields = requesttexts.FIELDS
    return fields.get(f"{place.method.name} {place.field}") or fields.get(place.field)


NAMES = {key: place for key, place in PLACES.items() if isinstance(kind(place), Name)}


class Servers:
    """Calls by descriptor to the servers in one process."""

    def __init__(self, process: Watched) -> None:
        self.process = process
        self._channels = {name: grpc.insecure_channel(process.address(name)) for name in SERVICES}
        self._of = {module.DESCRIPTOR.name: name for module, name in MODULES.items()}

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    def call(self, method: Any, request: Any) -> tuple[Code, str]:
        """Code and text of one call; of a stream it is the first answer that counts."""
        service = method.containing_service
        channel = self._channels[self._of[service.file.name]]
        shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        answer = GetMessageClass(method.output_type)
        stub = getattr(channel, shape)(
            f"/{service.full_name}/{method.name}", type(request).SerializeToString, answer.FromString
        )
        try:
            found = stub(iter([request]) if method.client_streaming else request, timeout=20)
            if method.server_streaming:
                first = next(found, None)
                found.cancel()
                said = getattr(first, "error_message", "")
                return (Code.INVALID_ARGUMENT, said) if said else (Code.OK, "")
        except grpc.RpcError as raised:
            error: Any = raised
            return error.code(), error.details()
        return Code.OK, ""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    def prepare(made: Watched) -> None:
        Folder(made.models).version("m", 1, onnxmodels.scale(2))

    with watched(tmp_path_factory.mktemp("watched"), *SERVICES, prepare=prepare) as process:
        running = Servers(process)
        for name in ("CreateModel", "CreateModelVersion", "SetAlias"):
            method = next(place.method for place in PLACES.values() if place.method.name == name)
            request: Any = requesttexts.request(method)
            if name == "CreateModel":
                request.model.name = "models/m"
            assert running.call(method, request) == (Code.OK, ""), name
        yield running
        running.close()


def test_every_text_of_every_request_is_known() -> None:
    """A new field has to be said to be a name, which is then attacked below, or to be harmless, and why."""
    assert not [key for key, place in PLACES.items() if kind(place) is None]
    known = {place.field for place in PLACES.values()}
    assert {key.rpartition(" ")[2] for key in requesttexts.FIELDS} == known
    assert len(NAMES) > 90


def test_requests_without_a_fault_in_a_name_pass(servers: Servers) -> None:
    """Else what is refused below would be refused for another reason."""
    methods = {place.method.full_name: place.method for place in NAMES.values()}
    found = {name: servers.call(method, requesttexts.request(method)) for name, method in methods.items()}
    unexpected = {Code.INVALID_ARGUMENT, Code.UNKNOWN, Code.INTERNAL, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED}
    later = (
        "GPUs not supported",
        "Unable to open shared memory region: 'none'",
    )  # what is said once the names are right
    bad = {name: said for name, said in found.items() if said[0] in unexpected and not said[1].endswith(later)}
    assert not bad, bad


def shared_memory(event: str, about: str, _: str) -> bool:
    """Whether it is the look for an object of shared memory, by one plain name in the one folder for them."""
    return event == "open" and (about == "/dev/shm" or re.fullmatch(r"(?!\.\.?$)[A-Za-z0-9._-]+", about) is not None)


@pytest.mark.parametrize("method", sorted({key.partition(":")[0] for key in NAMES}))
def test_names_are_names(servers: Servers, method: str) -> None:
    since = servers.process.mark()
    bad = []
    with Touched(servers.process.outside) as touched:
        for key, place in NAMES.items():
            if key.partition(":")[0] != method:
                continue
            for value in kind(place).values():
                request = requesttexts.request(place.method)
                place.put(request, value)
                code, text = servers.call(place.method, request)
                if code not in REFUSED | kind(place).also or len(text) > 1024 or "Traceback" in text:
                    bad.append((".".join(place.path), value[:60], code, text[:200]))
        assert touched.names() == []
    assert not bad, bad[:10] if len(bad) > 10 else bad
    assert [event for event in servers.process.trespasses(since) if not shared_memory(*event)] == []
    assert not [*(servers.process.folder / "empty").iterdir()]
    assert servers.process.alive
