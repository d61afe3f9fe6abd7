"""A network of one's own: what its loopback interface counts, this process and its children have sent."""

import ctypes
import fcntl
import socket
import struct
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # sched.h
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1  # sockios.h, if.h


def enter_own_network() -> bool:
    """Move this process, and those it will start, into a network namespace that has a loopback interface alone.

    Returns whether the system allows it; where it does not, everything stays as it was. Comes before other threads
    are started, which would stay behind.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    return True


def loopback_bytes() -> int:
    """Bytes sent so far through the loopback interface of this network namespace, headers included, by whomever."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    raise OSError("/proc/self/net/dev has no loopback interface")
