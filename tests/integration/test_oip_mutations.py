"""Thousands of requests with mistakes in them, to every method: each is answered, or refused with a reason."""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.mutation import Mutator
from tests.support.oipexamples import WORDS, examples, infers, versions
from tests.support.oipserver import OipServer, oip_server
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import NotFound

MUTANTS = 150
"""For each of the twenty methods."""
BAD = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}
TELLTALES = ("Traceback", "0x", "/dev/shm", "object at", ".py", "Errno")


class Control:
    """Takes what it is told, as long as it is about the one model that there is."""

    def load(self, model: str, config: str, files: Mapping[str, bytes], version: str = "") -> None:
        self.unload(model, False)

    def unload(self, model: str, dependents: bool, version: str = "") -> None:
        if model != "add":
            raise NotFound(f"Request for unknown model: '{model}' is not found")


@pytest.fixture(scope="module")
def key() -> Iterator[str]:
    path = Path("/dev/shm") / f"oiptest-{uuid.uuid4().hex}"
    path.write_bytes(bytes(64))
    yield path.name
    path.unlink()


@pytest.fixture(scope="module")
def server() -> Iterator[OipServer]:
    with oip_server(versions(), control=Control(), share=True, sample=0.0) as running:
        yield running


def good(server: OipServer) -> None:
    """The server still answers as it should."""
    answer = server.stub.ModelInfer(infers()[1], timeout=20)
    assert len(answer.raw_output_contents) == 1


def check(code: grpc.StatusCode, text: str, request: Any) -> None:
    assert code not in BAD, (code, text, request)
    assert len(text) <= 1024
    assert not [word for word in TELLTALES if word in text and word not in str(request)], text


@pytest.mark.parametrize("method", sorted(examples("")))
def test_mutants(server: OipServer, key: str, method: str) -> None:
    mutants = [*Mutator(20, (*WORDS, key)).mutants(examples(key)[method], MUTANTS)]
    call: Any = getattr(server.stub, method)
    if method == "ModelStreamInfer":
        replies = [*call(iter(mutants), timeout=60)]
        failed = Counter(bool(reply.error_message) for reply in replies)
        assert failed[True] > MUTANTS // 10
        for reply in replies:
            check(grpc.StatusCode.OK, reply.error_message, mutants)
    else:
        for mutant in mutants:
            try:
                call(mutant, timeout=20)
            except grpc.RpcError as error:
                found: Any = error
                check(found.code(), found.details(), mutant)
    good(server)
    assert server.unused
    assert not any(region._users for region in server.regions.find("system"))


def test_the_mistakes_are_many(key: str) -> None:
    """Most mutants differ, and they are the same the next time."""
    for found in examples(key).values():
        first, again = ([*Mutator(20, WORDS).mutants(found, 50)] for _ in range(2))
        assert first == again
    seen = {mutant.SerializeToString(deterministic=True) for mutant in Mutator(1, WORDS).mutants(infers(), 200)}
    assert len(seen) > 150
    assert isinstance(infers()[0], pb.ModelInferRequest)
