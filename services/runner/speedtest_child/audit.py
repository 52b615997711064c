"""The account of the library's requests: what each carried, and why one did not do what it was made for."""

import errno
import math
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.error import URLError

from services.runner.confined import STATUS_KINDS, is_no_way

TOLERATED_SHARE = 0.1
"""So much of a direction's requests may go wrong before its rate is not believed."""
NEARLY_ALL = 0.99
HANGS_S = 1.0
"""Longer the last requests of a phase do not need by themselves."""
UNREACHABLE = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTDOWN}


@dataclass(frozen=True)
class Problem:
    """Why a request did not do what it was made for."""

    kind: str
    text: str


@dataclass
class Transfer:
    """One request and what became of it; one without a problem that is not complete was cut when its time was up."""

    url: str
    expected_bytes: int = 0
    carried_bytes: int = 0
    complete: bool = False
    redirected_to: str | None = None
    problem: Problem | None = None


@dataclass
class Audit:
    """Every request since the start, the present phase's apart."""

    phase: str = "connecting"
    transfers: list[Transfer] = field(default_factory=list)
    unacknowledged_bytes: int = 0
    """Handed to the kernel in this phase, but never acknowledged by the far end when the request was given up."""
    earlier_bytes: int = 0
    length_s: float = 0
    """How long the phase is to last; 0 when nobody knows."""
    began_at: float = 0
    """On the monotonic clock."""
    completed_at: float = 0
    """When the last request of the phase was complete."""
    looks: list[tuple[float, int]] = field(default_factory=list)
    """How much the phase had carried at which moment."""

    def begin(self, phase: str, length_s: float = 0) -> None:
        """Start a phase."""
        self.earlier_bytes, self.began_at, self.length_s = self.total_bytes(), time.monotonic(), length_s
        self.phase, self.transfers, self.unacknowledged_bytes, self.completed_at = phase, [], 0, 0
        self.looks = []  # only now: who has a look at the same time adds the new phase's bytes, or to the old list

    def total_bytes(self) -> int:
        """Return the bytes of all phases, both directions together."""
        return self.earlier_bytes + sum(transfer.carried_bytes for transfer in list(self.transfers))

    def look(self) -> None:
        """Note how much the phase has carried by now."""
        looks = self.looks
        looks.append((time.monotonic(), sum(transfer.carried_bytes for transfer in list(self.transfers))))

    def counted_s(self, started_at: float, ended_at: float) -> float:
        """Return how many seconds of the phase its rate is to be worked out with: not those in which it waited for what hung.

        Of a download it is the time in which nearly all came, in proportion, where the rest took longer than its share. Of an
        upload nobody knows when what was handed over has arrived, but what is confirmed: it is the time until the last of that,
        where others had to be given up.
        """
        took_s = ended_at - started_at
        counted_s = self._confirmed_s(started_at) if self.phase == "upload" else self._nearly_all_s(started_at, ended_at)
        return counted_s if counted_s is not None and took_s - counted_s > HANGS_S else took_s

    def _nearly_all_s(self, started_at: float, ended_at: float) -> float | None:
        nearly_all = NEARLY_ALL * sum(transfer.carried_bytes for transfer in self.transfers)
        for (before_at, before), (at, carried) in pairwise([(started_at, 0), *self.looks, (ended_at, math.ceil(nearly_all))]):
            if carried >= nearly_all > before:
                return (before_at + (at - before_at) * (nearly_all - before) / (carried - before) - started_at) / NEARLY_ALL
        return None

    def _confirmed_s(self, started_at: float) -> float | None:
        given_up = any(problem.kind == "timeout" for problem in problems_of(self.transfers))
        return self.completed_at - started_at if given_up and self.completed_at else None

    def complete(self, transfer: Transfer) -> None:
        """Note that a request came to its end."""
        transfer.complete, self.completed_at = True, time.monotonic()

    def added(self, url: str, expected_bytes: int = 0) -> Transfer:
        """Note a request that is about to be made."""
        transfer = Transfer(url, expected_bytes)
        self.transfers.append(transfer)
        return transfer


def problems_of(transfers: Sequence[Transfer]) -> list[Problem]:
    """Return the problems among transfers, the most common one first."""
    counted = Counter(transfer.problem for transfer in transfers if transfer.problem)
    return [problem for problem, _ in counted.most_common()]


def is_troubled(transfers: Sequence[Transfer]) -> bool:
    """Tell whether more of the transfers went wrong than is tolerated."""
    return sum(transfer.problem is not None for transfer in transfers) > TOLERATED_SHARE * len(transfers)


def answered(status: int, location: str | None = None) -> Problem:
    """Return the problem that an HTTP status is; `location` is where the request was sent on to, if it was."""
    if location or 300 <= status < 400:
        return Problem("redirected", f"redirected to {page(location or 'nowhere')} (HTTP {status})")
    kind = STATUS_KINDS.get(status, "bad_answer")
    why = {"rate_limited": ": rate limited, too many tests from this address", "blocked": ": the server does not serve this client"}
    return Problem(kind, f"HTTP {status}{why.get(kind, '')}")


def page(url: str) -> str:
    """Return an address without the query, which differs from request to request."""
    return url.partition("?")[0][:200]


def unanswered(error: BaseException, timeout_s: float) -> Problem:
    """Return the problem that an exception below HTTP is."""
    cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, BaseException) else error
    text = str(cause) or type(cause).__name__
    if isinstance(cause, TimeoutError):
        return Problem("timeout", f"nothing came or went for {timeout_s:g} s")
    if isinstance(cause, OSError) and is_no_way(cause):
        return Problem("line_down", text)
    if isinstance(cause, socket.gaierror) or (isinstance(cause, OSError) and cause.errno in UNREACHABLE) or "Tunnel connection" in text:
        return Problem("unreachable", text)
    if isinstance(cause, ConnectionError):
        return Problem("bad_answer", f"the connection was closed without an answer ({text})")
    return Problem("bad_answer", f"the answer was not HTTP or broke off ({text})")
