"""Several processes on one port: connections are dealt out evenly between them.

With SO_REUSEPORT the kernel picks a process by a hash of the connection's addresses: of four connections of one client
all go to the same of two processes in one of eight cases. Where the kernel lets us, a program of ours deals them out in
turn (`roundrobin`). Elsewhere a classic one picks by the port of the client: kernels before 5.12 give rising even ports
to connections that are made one after the other, so they go round; later ones add noise, which makes it a hash again.
"""

import ctypes
import logging
import os
import socket
import struct
import sys

from tidemill import errors
from tidemill.rpc import roundrobin

LOG = logging.getLogger(__name__)
_SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF = 51, 52
_NETWORK_HEADER = 0xFFFFFFFF - 0x100000 + 1
_LOAD_BYTE, _LOAD_HALF, _SHIFT_RIGHT, _MODULO, _IF_EQUAL, _JUMP, _RETURN_A = 0x30, 0x28, 0x74, 0x94, 0x15, 0x05, 0x16
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def check_free(host: str, port: int) -> None:
    """Return when nobody listens on the port: sharing it, one would not be told.

    Raises:
        Unavailable: with reason PORT_IN_USE.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            target = f"{host}:{port}"
            raise errors.Unavailable(
                f"cannot listen on {target}: is the port in use?", reason="PORT_IN_USE", metadata={"address": target}
            ) from error


def deal_out(port: int, processes: int) -> bool:
    """Deal connections out between the processes that listen on the port, this one among them; whether that worked."""
    if sys.platform != "linux" or processes < 2:
        return False
    dealt = False
    for number in _listening(port):
        with socket.socket(fileno=os.dup(number)) as listener:
            dealt |= _attach(listener, processes)
    return dealt


def _attach(listener: socket.socket, processes: int) -> bool:
    return _in_turn(listener, processes) or _by_port(listener, processes)


def _in_turn(listener: socket.socket, processes: int) -> bool:
    try:
        program = roundrobin.load(processes)
    except OSError as error:
        LOG.info("connections are not dealt out in turn", extra={"error": str(error)})
        return False
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_EBPF, program)
    except OSError as error:
        LOG.info("connections are not dealt out in turn", extra={"error": str(error)})
        return False
    finally:
        os.close(program)
    return True


def _by_port(listener: socket.socket, processes: int) -> bool:
    # The client's port lies behind a network header without options. A socket for version 6 gets both versions.
    steps = [
        (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
        (_SHIFT_RIGHT, 0, 0, 4),
        (_IF_EQUAL, 0, 2, 4),
        (_LOAD_HALF, 0, 0, _NETWORK_HEADER + 20),
        (_JUMP, 0, 0, 1),
        (_LOAD_HALF, 0, 0, _NETWORK_HEADER + 40),
        (_SHIFT_RIGHT, 0, 0, 1),
        (_MODULO, 0, 0, processes),
        (_RETURN_A, 0, 0, 0),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(steps), ctypes.addressof(buffer))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
    except OSError as error:
        LOG.info("connections are dealt out by the kernel's hash", extra={"error": str(error)})
        return False
    return True


def _listening(port: int) -> list[int]:
    """Descriptors of this process that listen on the TCP port."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            number = int(name)
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue  # what is no socket would keep its duplicate
            with socket.socket(fileno=os.dup(number)) as candidate:
                listens = candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if listens and candidate.family in _FAMILIES and candidate.getsockname()[1] == port:
                    found.append(number)
        except (OSError, ValueError):  # closed meanwhile
            continue
    return found
