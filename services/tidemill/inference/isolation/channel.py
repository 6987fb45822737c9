"""Messages between the server and a model's process: JSON behind its length, with file descriptors beside it."""

import json
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]

MAX_MESSAGE = 64 << 20
"""Most bytes of a message. Tensors are not in it, so only a broken peer comes near."""
_LENGTH = struct.Struct("<I")
_CHUNK = 1 << 16
_DESCRIPTORS = 4
_SEND_SECONDS = 10


class ChannelClosed(Exception):
    """The other side is gone, or does not read any more."""


class Channel:
    """One end of a socket pair. Any thread may send; one receives.

    A message that the other side does not take within 10 s ends the channel: half a message cannot be taken back.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_SECONDS, 0))
        self._sending = threading.Lock()
        self._data = bytearray()
        self._descriptors: deque[int] = deque()
        self._poll: select.poll | None = None

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send `message`, and copies of open file descriptors.

        Raises:
            ChannelClosed: nobody will read it.
        """
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MAX_MESSAGE:
            raise ValueError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE} are sent")
        frame = _LENGTH.pack(len(data)) + data
        try:
            with self._sending:
                sent = socket.send_fds(self._socket, [frame], list(descriptors)) if descriptors else 0
                self._socket.sendall(memoryview(frame)[sent:])
        except OSError as error:
            self.shut()
            raise ChannelClosed from error

    def receive(self, timeout: float | None = None, also: int | None = None) -> Message | None:
        """The next message; None when the other side is gone.

        Args:
            timeout: seconds to wait for each piece of it; None = as long as it takes.
            also: a descriptor that is readable when the other side is gone, though others may hold its socket open.

        Raises:
            TimeoutError: nothing came in time.
        """
        while True:
            if (message := self._whole()) is not None:
                return message
            if not self._wait(timeout, also):
                return None
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, _CHUNK, _DESCRIPTORS)
            except OSError:
                return None
            self._descriptors.extend(descriptors)
            if not data:
                return None
            self._data += data

    def descriptor(self) -> int:
        """The oldest received file descriptor that was not taken yet; the caller closes it."""
        return self._descriptors.popleft()

    def shut(self) -> None:
        """Let both sides see the end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has ended before

    def close(self) -> None:
        """Free the descriptors."""
        self._socket.close()
        while self._descriptors:
            socket.close(self._descriptors.popleft())

    def _whole(self) -> Message | None:
        if len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        end = _LENGTH.size + length
        if length > MAX_MESSAGE:
            raise ValueError(f"a message of {length} bytes; at most {MAX_MESSAGE} are read")
        if len(self._data) < end:
            return None
        message: Message = json.loads(self._data[_LENGTH.size : end])
        del self._data[:end]
        return message

    def _wait(self, timeout: float | None, also: int | None) -> bool:
        """Whether there is something to read, be it the end."""
        if also is None and timeout is None:
            return True
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
            if also is not None:
                self._poll.register(also, select.POLLIN)
        events = dict(self._poll.poll(None if timeout is None else max(0, timeout) * 1000))
        if not events:
            raise TimeoutError
        return self._socket.fileno() in events
