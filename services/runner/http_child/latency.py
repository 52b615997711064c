"""Round trips: on the idle line, under load, and what they say of its responsiveness."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median

from services.runner.confined import Failed
from services.runner.http_child.connection import Connection, Endpoint
from services.runner.http_child.exchange import Exchange
from services.runner.http_child.service import Service
from services.runner.http_child.tasks import Loop, Steps, Task, Wait

IDLE_PINGS = 24
LEAST_PINGS = 5
IDLE_S = 2.0
LOADED_PINGS = 20
ENOUGH_S = 2.0
"""So much time spent on the way tells as much of a latency as LEAST_PINGS."""
SPACING_S = 0.05
GRADES = (("A+", 0.005), ("A", 0.03), ("B", 0.06), ("C", 0.2), ("D", 0.4))
"""Below so many seconds of latency that load adds (docs/accuracy.md); else F."""


@dataclass
class Idle:
    """Round trips on the idle line, in seconds."""

    round_trips_s: list[float] = field(default_factory=list)
    connect_s: float = 0
    kernel_s: float | None = None
    """The shortest round trip that the kernel saw (TCP_INFO): to hold against the median."""

    @property
    def latency_s(self) -> float:
        """Return the median."""
        return median(self.round_trips_s)

    @property
    def jitter_s(self) -> float:
        """Return the mean difference of one round trip to the next (the D of RFC 3550, section 6.4.1, not smoothed)."""
        trips = self.round_trips_s
        return fmean(abs(after - before) for before, after in pairwise(trips))


def idle(endpoint: Endpoint, service: Service, most: int = IDLE_PINGS) -> Steps[Idle]:
    """Ask for nothing, again and again, on a connection that is open already; the first round trip does not count.

    Raises: Failed.
    """
    connection = Connection(endpoint)
    found = Idle()
    try:
        yield from connection.open()
        found.connect_s = connection.connect_s
        exchange = Exchange(connection)
        yield from _ping(exchange, service)
        end = time.monotonic() + IDLE_S
        while len(found.round_trips_s) < most and (len(found.round_trips_s) < LEAST_PINGS or time.monotonic() < end):
            found.round_trips_s.append((yield from _ping(exchange, service)))
        info = connection.info()
        found.kernel_s = info.min_rtt / 1e6 if info and info.min_rtt else None
    finally:
        connection.close()
    return found


def _ping(exchange: Exchange, service: Service) -> Steps[float]:
    began = time.monotonic()
    answer = yield from exchange.ask(service.ping)
    info = exchange.connection.info()
    round_trip_s = on_the_way_s(answer.at - began, service.answering_s(answer), info.min_rtt / 1e6 if info else 0)
    body = yield from exchange.body(answer, service.ping)
    if body:
        raise Failed("bad_answer", f"{service.ping} answered with a page, beginning with {body[:20]!r}, instead of nothing")
    if not answer.keeps_open:
        exchange.connection.reopen()
        yield from exchange.connection.open()
    return round_trip_s


def on_the_way_s(round_trip_s: float, answering_s: float, least_s: float) -> float:
    """Return a round trip less what the server says it took to answer, as far as that can be true.

    Nothing is on the way for less than the kernel's shortest round trip, `least_s` (0 where that is not known), and a server that
    claims all of the time or more has counted something else.
    """
    if answering_s >= round_trip_s:
        return round_trip_s
    return max(round_trip_s - answering_s, min(round_trip_s, least_s))


@dataclass
class Probes:
    """Round trips during a load, each with the moment at which it began."""

    kept: list[tuple[float, float]] = field(default_factory=list)
    """On connections that were open before the load: HTTP."""
    fresh: list[tuple[float, float, float, float]] = field(default_factory=list)
    """On connections of their own: moment, connect, TLS handshake, HTTP."""
    unanswered_s: list[float] = field(default_factory=list)
    """How long those had been on the way, on open connections, that were so still when the load ended."""

    def since(self, moment: float) -> "Probes":
        """Return those that began since a moment, and all that came to no end."""
        kept = [each for each in self.kept if each[0] >= moment]
        return Probes(kept, [each for each in self.fresh if each[0] >= moment], self.unanswered_s)

    def latencies_s(self) -> list[float]:
        """Return the HTTP round trips.

        One that never came back was at least so long on its way, and counts with that where it is more than the others' median:
        a queue of seconds lets few come back before the load ends, and without the others the shortest of them.
        """
        trips = [each[1] for each in self.kept] + [each[3] for each in self.fresh]
        usual_s = median(trips) if trips else 0
        return trips + [each for each in self.unanswered_s if each > usual_s]

    def latency_s(self) -> float | None:
        """Return the median of the HTTP round trips; None when too little is known."""
        latencies = self.latencies_s()
        return median(latencies) if len(latencies) >= LEAST_PINGS or sum(latencies) >= ENOUGH_S else None

    def added_s(self, idle_s: float) -> float | None:
        """Return how far their median lies above an idle line's; None when they are few."""
        latency_s = self.latency_s()
        return None if latency_s is None else latency_s - idle_s

    def responsiveness_rpm(self) -> float | None:
        """Return round trips per minute under load (draft-ietf-ippm-responsiveness, section 5.1.3); None when too few are known.

        The mean of what fresh connections do (60 s over the mean of the trimmed means of connecting, handshake and HTTP) and
        what open ones do (60 s over that of HTTP). The draft measures the latter on the loaded connections themselves; in HTTP/1.1
        these have no room for another request, so connections beside them stand for them.
        """
        if len(self.kept) < LEAST_PINGS or len(self.fresh) < 2:
            return None
        columns = [[each[column] for each in self.fresh] for column in (1, 2, 3)]
        fresh_s = fmean(trimmed(column) for column in columns if any(column))
        return (60 / fresh_s + 60 / trimmed([each[1] for each in self.kept])) / 2


def trimmed(values: Sequence[float]) -> float:
    """Return the mean of the lowest 95 % (the draft's TM95)."""
    ordered = sorted(values)
    return fmean(ordered[: max(1, math.ceil(len(ordered) * 0.95))])


def grade(added_s: float) -> str:
    """Return the letter for the latency that load adds."""
    return next((letter for letter, below_s in GRADES if added_s < below_s), "F")


class Probing:
    """Probes that go on until they are stopped: on two connections that stay open, and on ever new ones."""

    def __init__(self, loop: Loop, endpoint: Endpoint, service: Service) -> None:
        self.found = Probes()
        self._loop = loop
        steps = (_kept(endpoint, service, self.found), _kept(endpoint, service, self.found), _fresh(endpoint, service, self.found))
        self._tasks: list[Task] = [loop.start(each) for each in steps]

    def stop(self) -> str | None:
        """Stop, and return what went wrong with one of them."""
        for task in self._tasks:
            self._loop.stop(task)
        return next((str(task.problem) for task in self._tasks if task.problem), None)


def _kept(endpoint: Endpoint, service: Service, found: Probes) -> Steps[None]:
    connection = Connection(endpoint)
    try:
        yield from connection.open()
        exchange = Exchange(connection)
        while True:
            began = time.monotonic()
            try:
                found.kept.append((began, (yield from _ping(exchange, service))))
            except GeneratorExit:
                found.unanswered_s.append(time.monotonic() - began)
                raise
            yield Wait(began + SPACING_S)
    finally:
        connection.close()


def _fresh(endpoint: Endpoint, service: Service, found: Probes) -> Steps[None]:
    while True:
        connection = Connection(endpoint)
        try:
            began = time.monotonic()
            yield from connection.open()
            round_trip_s = yield from _ping(Exchange(connection), service)
            found.fresh.append((began, connection.connect_s, connection.tls_s, round_trip_s))
        finally:
            connection.close()
        yield Wait(began + SPACING_S)
