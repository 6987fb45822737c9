"""What is logged, as clients of the Open Inference Protocol see and set it."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from tidemill.errors import Invalid, Unimplemented
from tidemill.inference.inputs import shown

FILE, INFO, WARNING, ERROR = "log_file", "log_info", "log_warning", "log_error"
VERBOSE, FORMAT = "log_verbose_level", "log_format"
_SWITCHES = {INFO: logging.INFO, WARNING: logging.WARNING, ERROR: logging.ERROR}
_FORMATS = ("default", "ISO8601")
_DEEPEST = 2**16


class LogSettings(logging.Filter):
    """Switches for the levels of a logger. Safe to use from any thread.

    Args:
        logger: whose level follows the switches.
        handlers: what of its records gets out; they drop what is switched off.
    """

    def __init__(self, logger: logging.Logger, handlers: Sequence[logging.Handler]) -> None:
        super().__init__()
        self._logger = logger
        self._before = logger.level
        level = logger.getEffectiveLevel()
        self._now: dict[str, bool | int | str] = {
            FILE: "",
            **{name: level <= least for name, least in _SWITCHES.items()},
            VERBOSE: 1 if level <= logging.DEBUG else 0,
            FORMAT: "default",
        }
        self._lock = threading.Lock()
        self._set: dict[str, bool | int | str] = {}
        self.updated: Callable[[Mapping[str, bool | int | str]], None] | None = None
        """Called after each change, with what was changed."""
        self._handlers = list(handlers)
        for handler in self._handlers:
            handler.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is wanted."""
        if not self._set:
            return True
        level = record.levelno
        if level < logging.INFO:
            return bool(self._now[VERBOSE])
        name = INFO if level < logging.WARNING else WARNING if level < logging.ERROR else ERROR
        return bool(self._now[name])

    @property
    def changes(self) -> dict[str, bool | int | str]:
        """What was changed."""
        return dict(self._set)

    def settings(self) -> dict[str, bool | int | str]:
        """What is in force, by name."""
        return dict(self._now)

    def update(self, changes: Mapping[str, bool | int | str]) -> None:
        """Change settings, all of them or none.

        Raises:
            Invalid: a name or a value is wrong.
            Unimplemented: a file is named: logs go where the operator says.
        """
        for name, value in changes.items():
            _check(name, value)
        if not changes:
            return
        with self._lock:
            self._now = {**self._now, **changes}
            self._set = {**self._set, **changes}
            levels = [level for name, level in _SWITCHES.items() if self._now[name]]
            least = logging.DEBUG if self._now[VERBOSE] else min(levels, default=logging.CRITICAL)
            self._logger.setLevel(least)
        if self.updated is not None:
            self.updated(changes)

    def close(self) -> None:
        """Drop nothing any more, and log what was logged before."""
        self._logger.setLevel(self._before)
        for handler in self._handlers:
            handler.removeFilter(self)


def _check(name: str, value: bool | int | str) -> None:
    if name == FILE:
        raise Unimplemented("log file location can not be updated through network protocol", reason="FILE_REFUSED")
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise Invalid(f"expect boolean for '{name}'", reason="WRONG_SETTING")
    elif name == VERBOSE:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _DEEPEST:
            raise Invalid(f"expect an unsigned integer of at most {_DEEPEST} for '{name}'", reason="WRONG_SETTING")
    elif name == FORMAT:
        if value not in _FORMATS:
            raise Invalid(f"invalid '{name}': expect {' or '.join(_FORMATS)}", reason="WRONG_SETTING")
    else:
        raise Invalid(f"unknown log setting '{shown(name)}'", reason="UNKNOWN_SETTING")
