"""What is logged, as clients set it."""

import logging
from collections.abc import Iterator

import pytest

from tidemill.errors import Invalid, TidemillError, Unimplemented
from tidemill.inference.logsettings import LogSettings

LOGGER = logging.getLogger("tests.logsettings")


class Kept(logging.Handler):
    """Keeps the names of levels."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.levels.append(record.levelname)


@pytest.fixture
def handler() -> Iterator[Kept]:
    kept = Kept()
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    LOGGER.addHandler(kept)
    yield kept
    LOGGER.removeHandler(kept)


@pytest.fixture
def settings(handler: Kept) -> Iterator[LogSettings]:
    made = LogSettings(LOGGER, [handler])
    yield made
    made.close()


def logged(handler: Kept) -> list[str]:
    handler.levels.clear()
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        LOGGER.log(level, "said")
    return list(handler.levels)


def test_tells_what_is_in_force(settings: LogSettings) -> None:
    assert settings.settings() == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({}, ["INFO", "WARNING", "ERROR"]),
        ({"log_info": False}, ["WARNING", "ERROR"]),
        ({"log_warning": False}, ["INFO", "ERROR"]),
        ({"log_error": False, "log_info": False, "log_warning": False}, []),
        ({"log_verbose_level": 1, "log_info": False}, ["DEBUG", "WARNING", "ERROR"]),
        ({"log_format": "ISO8601"}, ["INFO", "WARNING", "ERROR"]),
    ],
)
def test_switches(
    settings: LogSettings, handler: Kept, changes: dict[str, bool | int | str], levels: list[str]
) -> None:
    settings.update(changes)
    assert logged(handler) == levels
    assert settings.settings().items() >= changes.items()
    settings.close()
    assert logged(handler) == ["INFO", "WARNING", "ERROR"]


@pytest.mark.parametrize(
    ("name", "value", "kind", "text"),
    [
        ("log_file", "x.log", Unimplemented, "log file location can not be updated through network protocol"),
        ("log_info", 1, Invalid, "expect boolean for 'log_info'"),
        ("log_verbose_level", True, Invalid, "expect an unsigned integer of at most 65536 for 'log_verbose_level'"),
        ("log_verbose_level", 2**32 - 1, Invalid, "expect an unsigned integer"),
        ("log_format", "xml", Invalid, "invalid 'log_format': expect default or ISO8601"),
        ("log_colour", True, Invalid, "unknown log setting 'log_colour'"),
    ],
)
def test_refuses_wrong_settings(
    settings: LogSettings, name: str, value: bool | int | str, kind: type[TidemillError], text: str
) -> None:
    before = settings.settings()
    with pytest.raises(kind) as refused:
        settings.update({"log_warning": False, name: value})
    assert refused.value.message.startswith(text)
    assert settings.settings() == before
