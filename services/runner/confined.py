"""What a child process that measures is allowed, and its way to speak; its parent is `services.runner.child`."""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import sys
import threading
from typing import Any

STACK_BYTES = 256 * 1024
"""Instead of 8 MB: a library may start a thread per request."""
LONGEST_TEXT = 1_000
LINES = 200
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
STATUS_KINDS = {429: "rate_limited", 401: "blocked", 403: "blocked", 407: "blocked"}
"""What a server or a proxy says of us, and not of what was asked for."""
_NO_WAY = {errno.ENETUNREACH, errno.ENETDOWN}
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses that nobody has (RFC 5737, RFC 3849): whatever leads to the internet leads to them."""


class Failed(Exception):
    """The run ends without a measurement; `kind` and message become those of the ProbeError."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def is_no_way(error: OSError) -> bool:
    """Tell whether the network itself says that there is no way: to an address, or to where a resolver might be."""
    if isinstance(error, socket.gaierror):  # EAI_AGAIN alone may be a resolver that is there, and has trouble of its own
        return error.errno == socket.EAI_AGAIN and not any(_has_way(*each) for each in _ELSEWHERE)
    return error.errno in _NO_WAY


def _has_way(family: int, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as line:
            line.connect((address, 9))  # of UDP: a look at the routes, nothing is sent
    except OSError:
        return False
    return True


def confine(parent: int, seconds: float, address_space_bytes: int) -> None:
    """Limit this process: in memory, in time, and in life to that of its parent.

    The parent ends it on time; the alarm is for where a process cannot ask to die with its parent (macOS).
    """
    with contextlib.suppress(ValueError, OSError):  # macOS knows no such limit, and a lower one may be set already
        resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, address_space_bytes))
    threading.stack_size(STACK_BYTES)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be asked for
        sys.exit("the runner that ordered this test is gone")


class Channel:
    """Messages to the parent, one JSON line each; any thread may send."""

    def __init__(self) -> None:
        """Take stdout for the messages alone: what else writes there goes to stderr from now on."""
        self._file = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self._lines = 0

    def send(self, kind: str, /, **content: Any) -> None:
        """Send a message."""
        line = json.dumps({"type": kind, **content}, allow_nan=False).encode()
        with self._lock:
            self._file.write(line + b"\n")
            self._file.flush()

    def log(self, text: str) -> None:
        """Send a line for the log; after many, no more."""
        self._lines += 1
        if self._lines <= LINES:
            self.send("log", text=_line(text))

    def fail(self, kind: str, message: str) -> None:
        """Say that there will be no measurement."""
        self.send("failure", kind=kind, message=_line(message))


def _line(text: str) -> str:
    """Return a line of bounded length: what a server said may hold anything."""
    return "".join(each if each.isprintable() else " " for each in text[:LONGEST_TEXT])
