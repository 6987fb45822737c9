"""How a request's version finds a loaded one."""

import pytest

from tests.unit.inference import fakes
from tests.unit.inference.fakes import version
from tidemill.errors import Invalid, NotFound, TidemillError, Unavailable
from tidemill.inference.loaded import Loaded
from tidemill.inference.repository import Entry, Model, Repository, State, Status


def ready(number: int) -> Status:
    return Status(State.READY, loaded=fakes.loaded(version(number)))


LOADING = Status(State.LOADING)
FAILED = Status(State.UNAVAILABLE, "is broken")


def repository(**models: Model) -> Repository:
    made = Repository("champion")
    made.publish(models)
    return made


M = Model({1: ready(1), 2: ready(2), 3: LOADING, 4: FAILED}, {"champion": 1, "canary": 2, "next": 3})
PLAIN = Model({5: ready(5), 7: ready(7), 9: FAILED}, {"other": 5, "more": 7, "most": 9})
EMPTY = Model()


@pytest.mark.parametrize(
    ("model", "asked", "number"),
    [("m", "", 1), ("m", "champion", 1), ("m", "canary", 2), ("m", "2", 2), ("plain", "", 7), ("plain", "5", 5)],
)
def test_finds_by_number_alias_default_alias_or_highest(model: str, asked: str, number: int) -> None:
    models = repository(m=M, plain=PLAIN)
    with models.acquire(model, asked) as loaded:
        assert loaded.version.number == number
    assert models.ready(model, asked)


@pytest.mark.parametrize(
    ("model", "asked", "kind", "text"),
    [
        ("nope", "", NotFound, "Request for unknown model: 'nope' is not found"),
        ("nope", "x", NotFound, "Request for unknown model: 'nope' is not found"),
        ("empty", "", NotFound, "Request for unknown model: 'empty' has no available versions"),
        ("m", "99", NotFound, "Request for unknown model: 'm' version 99 is not found"),
        ("m", "3", Unavailable, "Request for unknown model: 'm' version 3 is not at ready state"),
        ("m", "next", Unavailable, "Request for unknown model: 'm' version 3 is not at ready state"),
        ("m", "4", Unavailable, "Request for unknown model: 'm' version 4 is not at ready state"),
        *(
            (
                "m",
                asked,
                Invalid,
                f"failed to get model version from specified version string '{asked}' (details: stol), "
                "version should be an integral value > 0",
            )
            for asked in ("x", "0", "-1", "1.0", " 1", "٣", "9" * 40, "chaMpion")
        ),
    ],
)
def test_refuses_with_the_texts_that_clients_know(model: str, asked: str, kind: type[TidemillError], text: str) -> None:
    models = repository(m=M, empty=EMPTY)
    with pytest.raises(kind) as refused:
        models.acquire(model, asked)
    assert refused.value.message == text
    assert not models.ready(model, asked)


def test_index() -> None:
    models = repository(plain=PLAIN, empty=EMPTY)
    assert list(models.index(only_ready=False)) == [
        Entry("empty", "", "", ""),
        Entry("plain", "5", "READY", ""),
        Entry("plain", "7", "READY", ""),
        Entry("plain", "9", "UNAVAILABLE", "is broken"),
    ]
    assert [entry.version for entry in models.index(only_ready=True)] == ["5", "7"]


def test_describes_what_would_serve() -> None:
    loaded, versions = repository(m=M).describe("m", "canary")
    assert loaded.version.number == 2
    assert versions == [1, 2]


def test_retired_version_ends_with_its_last_use() -> None:
    loaded = fakes.loaded(version(1))
    ended: list[int] = []
    assert loaded.acquire()
    assert loaded.acquire()
    loaded.retire(lambda: ended.append(1))
    assert not loaded.acquire()
    with loaded:
        pass
    assert ended == []
    with loaded:
        pass
    assert ended == [1]


def test_unused_version_ends_at_once() -> None:
    loaded = fakes.loaded(version(1))
    ended: list[int] = []
    loaded.retire(lambda: ended.append(1))
    assert ended == [1]


def test_request_that_meets_a_retired_version_takes_its_successor() -> None:
    models = repository(m=Model({1: ready(1)}, {"champion": 1}))
    old = M.versions[1].loaded
    assert old is not None

    class Moving(Loaded):
        """Retired between the look and the use, as when an alias moves at that moment."""

        def acquire(self) -> bool:
            models.publish({"m": Model({2: ready(2)}, {"champion": 2})})
            return False

    base = fakes.loaded(version(1))
    moving = Status(
        State.READY,
        loaded=Moving(base.version, base.configuration, base.runtime, base.scheduler, base.statistics, base.trace),
    )
    models.publish({"m": Model({1: moving}, {"champion": 1})})
    with models.acquire("m", "") as loaded:
        assert loaded.version.number == 2


def test_first_use_is_told_once() -> None:
    loaded = fakes.loaded(version(1))
    assert [loaded.first_time() for _ in range(3)] == [True, False, False]
