"""Frames of HTTP/2 by hand: for what no client would send. Layouts as in RFC 9113, header fields as in RFC 7541."""

import socket
import struct
from collections.abc import Iterator, Mapping

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def fields(headers: Mapping[str, str]) -> bytes:
    """A block of header fields, each as a literal that is not indexed."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())


def call(stream: int, path: str) -> bytes:
    """The HEADERS of a gRPC call that goes on."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "127.0.0.1",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return frame(HEADERS, END_HEADERS, stream, fields(headers))


def reset(stream: int) -> bytes:
    """The end of a stream that nobody wants any more."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


def _text(text: str) -> bytes:
    data = text.encode()
    length = len(data)
    if length < 127:
        return bytes([length]) + data
    head, length = bytearray([127]), length - 127
    while length >= 128:
        head.append(length % 128 + 128)
        length //= 128
    return bytes(head) + bytes([length]) + data


class Connection:
    """A connection that has said hello: as a context manager.

    Args:
        port: of 127.0.0.1.
        timeout: seconds that any single read or write may take.
    """

    def __init__(self, port: int, timeout: float = 20.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout)
        self._rest = b""
        self.send(PREFACE + frame(SETTINGS))

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *raised: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """Whether it could be sent: the other end may have hung up."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Type, flags, stream and payload of what comes, until the other end hangs up."""
        while True:
            while len(self._rest) < 9 or len(self._rest) < 9 + self._length():
                try:
                    data = self._socket.recv(1 << 16)
                except ConnectionResetError:
                    return
                if not data:
                    return
                self._rest += data
            length = self._length()
            kind, flags, stream = struct.unpack_from(">BBI", self._rest, 3)
            payload, self._rest = self._rest[9 : 9 + length], self._rest[9 + length :]
            yield kind, flags, stream, payload

    def _length(self) -> int:
        return int.from_bytes(self._rest[:3])

    def alive(self) -> bool:
        """Whether the other end answers a ping, after all that came before it."""
        if not self.send(frame(PING, 0, 0, b"tidemill")):
            return False
        return any(kind == PING and flags & ACK for kind, flags, *_ in self.frames())
