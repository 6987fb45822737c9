"""What a worker prints, as lines with their positions."""

from tidemill.training.launchers.base import MAX_LINE, Output


class Printed:
    """Breaks up bytes into lines, and hands each on with the number of bytes up to its end.

    Args:
        output: takes the lines.
        position: number of bytes before those that come first.
    """

    def __init__(self, output: Output, position: int = 0) -> None:
        self._output = output
        self._rest = b""
        self._position = position

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
        text, begin = self._rest + data, 0
        while True:
            newline = text.find(b"\n", begin)
            end = newline if newline >= 0 else len(text)
            if end - begin > MAX_LINE:
                cut = _cut(text, begin + MAX_LINE)
                self._hand_on(text[begin:cut], cut - begin)
                begin = cut
            elif newline >= 0:
                self._hand_on(text[begin:newline], newline + 1 - begin)
                begin = newline + 1
            else:
                break
        self._rest = text[begin:]

    def end(self) -> None:
        """There is no more: a last line without its end counts as well."""
        if self._rest:
            self._hand_on(self._rest, len(self._rest))
            self._rest = b""

    def _hand_on(self, line: bytes, size: int) -> None:
        self._position += size
        self._output(line.decode("utf-8", "replace").removesuffix("\r"), self._position)


def _cut(text: bytes, end: int) -> int:
    """The last place up to `end` that is not inside of a character."""
    for place in range(end, end - 4, -1):
        if text[place] & 0xC0 != 0x80:
            return place
    return end
