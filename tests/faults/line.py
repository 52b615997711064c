"""A line to another place, which can be cut and slowed down: a network namespace of its own; needs root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.servers import Nats

# the addresses that RFC 5737 sets aside for documentation: nobody else has them
HERE, _NEAR, THERE = "198.51.100.1", "198.51.100.5", "198.51.100.6"
"""Where the bus listens, and where the other place is."""


class Line:
    """A pair of virtual interfaces: one here, the other one in the namespace."""

    def __init__(self, name: str) -> None:
        self._name, self._near, self._far = name, f"{name}a", f"{name}b"
        self.inside = ("ip", "netns", "exec", name)
        """What to put before a command that is to run at the other end."""

    def make(self) -> None:
        """Make both ends, and the address here: not one of the line, which would be gone while it is cut."""
        _ip(f"addr add {HERE}/32 dev lo")
        _ip(f"netns add {self._name}")
        _ip(f"link add {self._near} type veth peer name {self._far} netns {self._name}")
        _ip(f"addr add {_NEAR}/30 dev {self._near}")
        _ip(f"link set {self._near} up")
        _ip(f"-n {self._name} addr add {THERE}/30 dev {self._far}")
        _ip(f"-n {self._name} link set {self._far} up")
        _ip(f"-n {self._name} link set lo up")
        _ip(f"-n {self._name} route add default via {_NEAR}")

    def remove(self) -> None:
        """Take all of it away, as far as it was made."""
        for command in (f"link del {self._near}", f"netns del {self._name}", f"addr del {HERE}/32 dev lo"):
            subprocess.run(["ip", *command.split()], capture_output=True, check=False)

    def cut(self) -> None:
        """Let nothing through any more; neither end is told."""
        _ip(f"link set {self._near} down")

    def mend(self) -> None:
        """Let everything through again."""
        _ip(f"link set {self._near} up")

    def slow_down(self, kilobits: int) -> None:
        """Let so much through per second in each direction, after a queue of up to two seconds."""
        limit = f"root tbf rate {kilobits}kbit burst 2kb latency 2s"
        subprocess.run(["tc", "qdisc", "add", "dev", self._near, *limit.split()], check=True)
        subprocess.run([*self.inside, "tc", "qdisc", "add", "dev", self._far, *limit.split()], check=True)


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)


@contextmanager
def laid() -> Iterator[Line]:
    """Give a line; skip the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes a network namespace")
    line = Line(f"rf{os.getpid()}")
    try:
        try:
            line.make()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespace can be made here: {getattr(error, 'stderr', error)}")
        yield line
    finally:
        line.remove()


def reachable(server: Nats) -> str:
    """Let a server listen where the line ends, and return its URL."""
    server.kill()
    server.configuration.write_text(server.configuration.read_text().replace('listen: "127.0.0.1:', 'listen: "0.0.0.0:'))
    server.start()
    return server.url.replace("127.0.0.1", HERE)
