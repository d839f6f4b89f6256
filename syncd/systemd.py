"""Talking to systemd, and closing this process to debuggers. No dependency; called by the daemon.

The protocol is that of sd_notify(3): datagrams of ``NAME=value`` lines to the socket that ``$NOTIFY_SOCKET`` names.
Without that variable every notification is a no-op, so that the daemon runs the same from a shell.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from typing import Final

from syncd.errors import StartError

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_M_ARENA_MAX: Final = -8


def notify(*lines: str) -> bool:
    """Send ``NAME=value`` lines as one datagram; true if there was somebody to send it to.

    A manager that does not answer is no reason to stop delivering keys, so a failed send is false, not an error.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # the abstract namespace: a leading NUL on the wire
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(0)  # a full socket must not hold up the event loop
            sock.connect(address)
            sock.send("\n".join(lines).encode())
    except OSError:
        return False
    return True


def ready(status: str = "") -> bool:
    """The daemon answers requests. Also ends a reload."""
    return notify("READY=1", *_status(status))


def reloading(status: str = "") -> bool:
    """A reload begins; `ready` ends it. The timestamp tells systemd which request this answers."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", *_status(status))


def stopping(status: str = "") -> bool:
    """The daemon takes no new requests and is finishing what it has."""
    return notify("STOPPING=1", *_status(status))


def status(text: str) -> bool:
    """One line for ``systemctl status``."""
    return notify(*_status(text))


def watchdog() -> bool:
    """Still working. Call it only when the writer answered just now."""
    return notify("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds within which systemd wants to hear `watchdog`; ping at half of it. None when it does not watch us."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None


def not_dumpable() -> None:
    """Keep this process out of core files, and its memory from other processes of its user (S6).

    A limit on core size does not reach a core_pattern that is a pipe; this does. It holds until the next exec, and is
    read back: a daemon that cannot close itself raises StartError.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
    prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise StartError("this process can be dumped to a core file", hint="prctl(PR_SET_DUMPABLE) must be allowed")


def few_arenas() -> None:
    """Let all threads share two heaps: with one for each, what they free stays with them, and the daemon grows."""
    if hasattr(ctypes.CDLL(None), "mallopt"):  # glibc's; musl has one heap anyway
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _status(text: str) -> list[str]:
    """A status is one line: a second one would be read as another assignment."""
    return [f"STATUS={' '.join(text.split())}"] if text else []
