"""Output in pieces that say where they begin, as lines with positions."""

import base64
from collections.abc import Mapping
from typing import Any

from tidemill.training.launchers.base import Output
from tidemill.training.printed import Printed


class Lines:
    """Hands on the lines of a worker.

    Args:
        output: takes them.
        position: where the first piece is expected to begin.
    """

    def __init__(self, output: Output, position: int) -> None:
        self._output = output
        self._handed = position
        self._printed = Printed(self._hand_on, position)
        self.position = position
        """Where the next piece is to begin."""

    def feed(self, begin: int, data: bytes) -> None:
        """Take a piece; when it begins later than the last has ended, a line tells of the gap."""
        if begin > self.position:
            self._printed.end()
            self._hand_on(f"({begin - self.position} bytes of output are lost: too many were waiting)", begin)
            self._printed = Printed(self._hand_on, begin)
        self._printed.feed(data)
        self.position = begin + len(data)

    def take(self, part: Mapping[str, Any]) -> None:
        """Take what the bridge tells: a piece, or a text of its own."""
        if "text" in part:
            self.tell(part["text"])
        else:
            self.feed(part["begin"], base64.b64decode(part["data"]))

    def end(self) -> None:
        """There is no more: a last line without its end counts as well."""
        self._printed.end()

    def tell(self, text: str) -> None:
        """Hand on a line that the worker has not printed."""
        self._output(text, self._handed)

    def _hand_on(self, text: str, position: int) -> None:
        self._handed = position
        self._output(text, position)
