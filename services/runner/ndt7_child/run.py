"""A measurement from beginning to end: find a machine that serves this client, download, upload."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from services.runner.confined import Channel, Failed
from services.runner.http_child.address import find
from services.runner.http_child.connection import Connection
from services.runner.http_child.load import Limits, Load, Loaded, rates_of, told_of
from services.runner.http_child.order import Way
from services.runner.http_child.streams import Stream
from services.runner.http_child.tasks import Loop
from services.runner.http_child.verdict import limited_by, worst
from services.runner.ndt7_child.machines import Machine, located, own
from services.runner.ndt7_child.websocket import Websocket

SLICE_S = 0.05
DATA_SHARE = 0.5
"""So much of what comes during a download must be its data."""
NO_LIMIT = 2**62


@dataclass(frozen=True)
class Order(Way):
    """The parent's order."""

    server: str | None
    locate: str
    download: bool
    upload: bool
    direction_s: float
    """How long each direction is loaded: the specification has ten seconds."""


class _NotServed(Failed):
    """A machine that does not take this client: the next one may."""


class Run:
    """One measurement."""

    def __init__(self, order: Order, channel: Channel) -> None:
        self._order, self._channel, self._loop = order, channel, Loop()

    def measure(self) -> dict[str, Any]:
        """Return what the parent reads as an answer, of the first machine that serves.

        Raises: Failed.
        """
        order, refusals = self._order, []
        self._channel.send("progress", phase="connecting")
        machines = own(order.server) if order.server else located(self._loop, order.locate, order)
        for machine in machines:
            try:
                return self._measured(machine)
            except _NotServed as refusal:
                refusals.append(refusal)
        raise Failed(refusals[-1].kind, "; ".join(str(each) for each in refusals))

    def _measured(self, machine: Machine) -> dict[str, Any]:
        details: dict[str, Any] = {"machine": machine.name}
        answer: dict[str, Any] = {"server": machine.server, "details": details}
        limits = []
        for phase in ("download", "upload"):
            if not getattr(self._order, phase):
                continue
            socket = self._opened(machine, phase)
            try:
                loaded = self._loaded(socket, phase)
                answer |= _rates(socket, phase, loaded)
                details[phase] = {**told_of(loaded), "mlab_bps": _mlab_bps(socket, phase)}
            finally:
                socket.connection.close()
            limits.append(limited_by(loaded, None, socket.connection.connect_s))
            if socket.told.min_rtt_s:
                answer.setdefault("latency_s", socket.told.min_rtt_s)
            if phase == "download" and socket.told.retransmission is not None:
                details["retransmission"] = socket.told.retransmission
        host = worst(limits, ("host",))
        # of one stream nobody can tell whether it is the line that holds it back
        return {**answer, "limited_by": host, "confidence": "underestimates" if host else "indicative"}

    def _opened(self, machine: Machine, phase: str) -> Websocket:
        if phase not in machine.urls:
            raise _NotServed("bad_answer", f"the locate service names no address of {machine.name} for a {phase}")
        connection, url = None, machine.urls[phase]
        try:
            place = find(self._loop, "http" + url.removeprefix("ws"), self._order)
            connection = Connection(place.endpoint)
            socket = Websocket(connection, url, phase)
            self._loop.finish(socket.open())
        except (Failed, ValueError) as problem:
            if connection:
                connection.close()
            if not isinstance(problem, Failed):
                raise _NotServed("bad_answer", f"{machine.name}: its address is none") from None
            if problem.kind == "misconfigured":
                raise
            raise _NotServed(problem.kind, f"{machine.name}: {problem}") from None
        self._channel.log(f"{phase} at {machine.name}, {urlsplit(place.url).netloc} ({place.endpoint.address[0]})")
        return socket

    def _loaded(self, socket: Websocket, phase: str) -> Loaded:
        tally = socket.connection.endpoint.tally
        limits = Limits(
            longest_s=self._order.direction_s,
            shortest_s=self._order.direction_s,
            max_bytes=NO_LIMIT,
            slice_s=SLICE_S,
            first_streams=1,
            most_streams=1,
            silence_s=self._order.timeout_s,
            round_trip_s=socket.connection.connect_s,
            added_s=lambda _: None,
            carried=tally.arrived_bytes if phase == "download" else tally.delivered_bytes,
        )
        steps = socket.download if phase == "download" else socket.upload
        load = Load(self._loop, phase, lambda: Stream(socket.connection, steps(), warm=True), limits, self._channel)
        loaded = load.run(lambda _: False)  # as long as M-Lab measures
        try:
            self._loop.finish(socket.end())
        except Failed as failed:  # what was measured stands
            self._channel.log(f"the end of the {phase}: {failed}")
        return loaded


def _rates(socket: Websocket, phase: str, loaded: Loaded) -> dict[str, Any]:
    """Return the rate, its spread and the bytes of a direction.

    Raises: Failed when what was carried was no test.
    """
    connection = socket.connection
    carried = connection.arrived_bytes() if phase == "download" else connection.delivered_bytes()
    if phase == "download" and socket.carried_bytes < DATA_SHARE * carried:
        raise Failed("bad_answer", f"{connection.endpoint} sent {carried} bytes, of which {socket.carried_bytes} are the download's data")
    if phase == "upload" and socket.told.received_bps is None:
        raise Failed("unconfirmed", f"{connection.endpoint} tells of not one byte of the upload")
    return {**rates_of(phase, loaded), f"{phase}_bytes": carried}


def _mlab_bps(socket: Websocket, phase: str) -> float | None:
    """Return the rate as M-Lab has it: the mean of the whole test, slow start included, at the receiving program or its TCP."""
    if phase == "upload":
        return socket.told.received_bps
    return socket.carried_bytes * 8 / (socket.carried_at - socket.opened_at)
