"""Whole vectors over a TCP connection."""

import socket

from tidemill.tensors.blocks import Array


def connect(port: int) -> socket.socket:
    """A connection to a port of this host that does not wait to fill packets."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def receive(connection: socket.socket, into: Array) -> bool:
    """Fill a vector; whether there was one, and not the end of the connection."""
    view = into.data.cast("B")
    position = 0
    while position < len(view):
        got = connection.recv_into(view[position:])
        if not got:
            return False
        position += got
    return True
