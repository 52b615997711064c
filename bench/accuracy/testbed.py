"""A client, a router and a server in network namespaces of their own, joined by a line of given rate, delay and loss.

    with laid(parse("100/20,10ms")) as testbed:
        server = testbed.start("server", "iperf3", "-s")

The namespaces have no names: each belongs to a process that ends when its standard input does, which this process holds the
other end of. Every other process in them is killed when this one dies. So however this one ends, the kernel takes all of it away.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from bench.accuracy.lines import HEADER_BYTES, Line

CLIENT, SERVER = "198.51.100.2", "203.0.113.2"
"""The addresses of both ends, from the networks that RFC 5737 sets aside for documentation."""
ROUTER_TO_CLIENT, ROUTER_TO_SERVER = "198.51.100.1", "203.0.113.1"
ROOT = Path(__file__).parents[2]


class NotAllowed(Exception):
    """This machine or account cannot have network namespaces; the message says what failed."""


class CommandFailed(Exception):
    """A command in a namespace failed; the message says which, and what it said."""


class ServerFailed(Exception):
    """A server did not come to listen; the message has the end of what it said."""


@dataclass(frozen=True)
class Count:
    """What has arrived at an interface so far, at an instant of the monotonic clock."""

    at: float
    bytes: int
    packets: int

    @property
    def payload_bytes(self) -> int:
        """Return the bytes without headers: right for packets of TCP, whether cut into segments or not, for each has one header."""
        return self.bytes - self.packets * HEADER_BYTES


class Bed:
    """The three namespaces; `laid` makes and removes them."""

    def __init__(self, line: Line, seed: int) -> None:
        self.line, self._seed = line, seed
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._started: list[subprocess.Popen[Any]] = []
        self._delay: subprocess.Popen[str] | None = None
        self._files = tempfile.TemporaryDirectory(prefix="refresher-accuracy-")
        self.directory = Path(self._files.name)
        """For whoever needs a file while the testbed is there."""

    def command(self, where: str, *command: str) -> list[str]:
        """Return the command that runs one in a namespace (`client`, `router`, `server`), and dies with this process."""
        inside = f"--net=/proc/{self._holders[where].pid}/ns/net"
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", inside, "--", *command]

    def start(self, where: str, *command: str, **options: Any) -> "subprocess.Popen[Any]":
        """Start a process in a namespace; it is ended with the testbed, if not before."""
        process = subprocess.Popen(self.command(where, *command), cwd=ROOT, **options)
        self._started.append(process)
        return process

    def run(self, where: str, command: str) -> str:
        """Run a command in a namespace and return what it prints. Raises: CommandFailed."""
        done = subprocess.run(self.command(where, *command.split()), capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailed(f"`{command}` failed in the {where}'s namespace: {done.stderr.strip()}")
        return done.stdout

    def count(self, direction: str) -> Count:
        """Return what has arrived at the end that receives in a direction, `down` or `up`."""
        holder = self._holders["client" if direction == "down" else "server"]
        for text in Path(f"/proc/{holder.pid}/net/dev").read_text().splitlines():
            name, _, numbers = text.partition(":")
            if name.strip() == "line":
                received_bytes, packets = numbers.split()[:2]
                return Count(monotonic(), int(received_bytes), int(packets))
        raise RuntimeError("the interface is gone")

    def queued_s(self, direction: str) -> float:
        """Return how long the queue in front of the shaped line takes to drain at this moment."""
        rate = self.line.rate_bps(direction)
        if not rate:
            return 0.0
        shown = json.loads(self.run("router", f"tc -s -j qdisc show dev {_shaped(direction)} root"))
        return float(shown[0]["backlog"]) * 8 / rate

    def serve(self, port: int, *command: str, environment: dict[str, str] | None = None, deadline_s: float = 30) -> None:
        """Start a server in the server's namespace and wait until it listens. Raises: ServerFailed."""
        log = self.directory / f"server-{port}.log"
        with log.open("w") as said:
            process = self.start("server", *command, env={**os.environ, **(environment or {})}, stdout=said, stderr=said)
        tables = [Path(f"/proc/{self._holders['server'].pid}/net/{name}") for name in ("tcp", "tcp6")]
        end = monotonic() + deadline_s
        while not any(_listens(table, port) for table in tables):
            if process.poll() is not None or monotonic() > end:
                raise ServerFailed(f"{' '.join(command)} does not listen on port {port}: {log.read_text()[-1_000:]}")
            sleep(0.05)

    def make(self) -> None:
        """Make the namespaces, the links and the routes. Raises: NotAllowed."""
        try:
            self._make()
        except CommandFailed as error:
            raise NotAllowed(str(error)) from None

    def remove(self) -> dict[str, tuple[int, int]]:
        """End everything; return how many packets the delay program carried and lost, if there was one."""
        for process in self._started:
            process.kill()
        counts = {}
        if self._delay:
            self._delay.terminate()
            said, _ = self._delay.communicate(timeout=30)
            counts = {way: (carried, lost) for way, (carried, lost) in json.loads(said or "{}").items()}
        for process in (*self._started, *self._holders.values()):
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()
            process.wait()
        self._started, self._delay = [], None
        self._holders.clear()
        self._files.cleanup()
        return counts

    def _make(self) -> None:
        for name in ("client", "router", "server"):
            self._hold(name)
            self.run(name, "ip link set lo up")
            self.run(name, "sysctl -eqw net.ipv6.conf.default.disable_ipv6=1 net.ipv4.ip_forward=1")
        self._join("client", "client", CLIENT, ROUTER_TO_CLIENT)
        if self.line.round_trip_s or self.line.loss:
            self._carry()
        self._join("server", "server", SERVER, ROUTER_TO_SERVER, made=self._delay is not None)
        for direction in ("down", "up"):
            if rate := self.line.rate_bps(direction):
                limits = f"burst {self.line.burst_bytes(direction)} limit {self.line.queue_bytes(direction)}"
                self.run("router", f"tc qdisc replace dev {_shaped(direction)} root tbf rate {rate:.0f}bit {limits}")

    def _hold(self, name: str) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            holder = subprocess.Popen(["unshare", "--net", "cat"], bufsize=0, **pipes)  # type: ignore[call-overload]
        except OSError as error:
            raise NotAllowed(f"no network namespace can be made: {error}") from None
        self._holders[name] = holder
        with suppress(BrokenPipeError):
            holder.stdin.write(b"\n")  # it comes back when `cat` runs: by then the namespace is there
        if not holder.stdout.readline():
            raise NotAllowed(f"no network namespace can be made: {holder.stderr.read().decode().strip()}")

    def _carry(self) -> None:
        program = (sys.executable, "-m", "bench.accuracy.delay", "server", "far", str(self.line.round_trip_s / 2), str(self.line.loss))
        self._delay = subprocess.Popen(
            # ahead of what it is to delay: a late frame would be measured as the line's
            self.command("router", "nice", "-n", "-10", *program, str(self._seed)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._delay.stdout
        assert self._delay.stderr
        if self._delay.stdout.readline() != "ready\n":
            raise NotAllowed(f"no TAP device can be made: {self._delay.stderr.read().strip().splitlines()[-1:]}")
        self.run("router", f"ip link set far netns {self._holders['server'].pid} name line")
        self.run("router", "ip link set server txqueuelen 10000")
        self.run("server", "ip link set line txqueuelen 10000")

    def _join(self, end: str, near: str, address: str, router: str, *, made: bool = False) -> None:
        """Join a namespace to the router: over there the interface is called `line`."""
        if not made:
            self.run("router", f"ip link add {near} type veth peer name line netns {self._holders[end].pid}")
        self.run("router", f"ip addr add {router}/24 dev {near}")
        self.run("router", f"ip link set {near} up")
        self.run(end, f"ip addr add {address}/24 dev line")
        self.run(end, "ip link set line up")
        # by route: a namespace may not change its default to one that the machine has not made free for all
        self.run(end, f"ip route add default via {router} congctl cubic")
        self._introduce(end, near, address, router)

    def _introduce(self, end: str, near: str, address: str, router: str) -> None:
        """Tell both ends each other's hardware address: a question for it would be delayed and could be lost."""
        for where, device, other, asked, there in (("router", near, end, "line", address), (end, "line", "router", near, router)):
            hardware = json.loads(self.run(other, f"ip -j link show dev {asked}"))[0]["address"]
            self.run(where, f"ip neigh replace {there} lladdr {hardware} dev {device} nud permanent")


def _listens(table: Path, port: int) -> bool:
    """Tell whether a table of sockets, as in proc(5), has one that listens on a port."""
    rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def _shaped(direction: str) -> str:
    """Return the router's interface whose queue a direction waits in: in the middle, so that no sender feels it as its own."""
    return "client" if direction == "down" else "server"


@contextmanager
def laid(line: Line, seed: int = 1) -> Iterator[Bed]:
    """Give a testbed, and take it away. Raises: NotAllowed."""
    testbed = Bed(line, seed)
    try:
        testbed.make()
        yield testbed
    finally:
        testbed.remove()
