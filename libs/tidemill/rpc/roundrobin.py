"""An eBPF program by which the kernel deals connections out in turn between sockets that share a port.

It is a socket filter for SO_ATTACH_REUSEPORT_EBPF (Linux 4.5): it counts calls in a map of one number, and returns the
count modulo the number of sockets (an atomic fetch-and-add: Linux 5.12). Loading it takes CAP_BPF, or root's rights
beside a seccomp filter that lets `bpf` pass.
"""

import ctypes
import os
import platform
import struct

_CALLS = {"x86_64": 321, "aarch64": 280}
"""Number of the system call `bpf`."""
_MAP_CREATE, _PROG_LOAD = 0, 5
_ARRAY, _SOCKET_FILTER = 2, 1
_SIZE = 120
"""Bytes of the call's argument: what is behind the fields that are set must be zero."""
_LICENSE = b"Apache-2.0\0"


def load(sockets: int) -> int:
    """Descriptor of a program that gives 0 … `sockets` - 1 in turn; the caller closes it.

    Raises:
        OSError: the kernel does not allow it, or does not know how.
    """
    counter = _bpf(_MAP_CREATE, struct.pack("=IIIII", _ARRAY, 4, 4, 1, 0))
    try:
        code = _program(counter, sockets)
        steps = ctypes.create_string_buffer(code, len(code))
        license = ctypes.create_string_buffer(_LICENSE)
        where = (ctypes.addressof(steps), ctypes.addressof(license))
        return _bpf(_PROG_LOAD, struct.pack("=IIQQ", _SOCKET_FILTER, len(code) // 8, *where))
    finally:
        os.close(counter)  # the program keeps its map


def _program(counter: int, sockets: int) -> bytes:
    r0, r1, r2, frame = 0, 1, 2, 10
    steps = [
        (0x62, frame, 0, -4, 0),  # the key: element 0
        (0xBF, r2, frame, 0, 0),
        (0x07, r2, 0, 0, -4),
        (0x18, r1, 1, 0, counter),  # two steps: the address of the map that this descriptor stands for
        (0x00, 0, 0, 0, 0),
        (0x85, 0, 0, 0, 1),  # r0 = the element's address
        (0x15, r0, 0, 5, 0),  # which is never missing, but the kernel wants to see this asked
        (0xB7, r1, 0, 0, 1),
        (0xC3, r0, r1, 0, 1),  # r1 = the element, which is one more from now on
        (0x94, r1, 0, 0, sockets),
        (0xBF, r0, r1, 0, 0),
        (0x95, 0, 0, 0, 0),
        (0xB7, r0, 0, 0, 0),
        (0x95, 0, 0, 0, 0),
    ]
    return b"".join(struct.pack("=BBhi", code, to | of << 4, offset, value) for code, to, of, offset, value in steps)


def _bpf(command: int, argument: bytes) -> int:
    number = _CALLS.get(platform.machine())
    if number is None:
        raise OSError("bpf is not known on this machine")
    argument = argument.ljust(_SIZE, b"\0")
    call = ctypes.CDLL(None, use_errno=True).syscall
    result = call(number, command, ctypes.create_string_buffer(argument, _SIZE), _SIZE)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(result)
