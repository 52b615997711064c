"""The account of the library's requests: what counts as a problem, and of what kind."""

import errno
import gzip
import socket
from http.client import BadStatusLine, IncompleteRead
from io import BytesIO
from typing import Any
from urllib.error import URLError

import pytest

from services.runner.speedtest_child.audit import Audit, Problem, Transfer, answered, is_troubled, problems_of, unanswered
from services.runner.speedtest_child.document import MAX_BYTES, Document, Unusable

BAD = Problem("bad_answer", "HTTP 500")
LATE = Problem("timeout", "late")


def transfers(good: int, *bad: Problem) -> list[Transfer]:
    """Return transfers of which so many went well."""
    return [Transfer("u")] * good + [Transfer("u", problem=problem) for problem in bad]


@pytest.mark.parametrize(
    ("made", "troubled"),
    [
        (transfers(0), False),
        (transfers(9, BAD), False),
        (transfers(8, BAD), True),
        (transfers(0, BAD), True),
        (transfers(18, BAD, LATE), False),
    ],
)
def test_a_tenth_is_tolerated(made: list[Transfer], *, troubled: bool) -> None:
    """One request in ten may go wrong, not more."""
    assert is_troubled(made) is troubled


def test_the_most_common_problem_comes_first() -> None:
    """The message names what happened most often."""
    assert problems_of(transfers(3, LATE, BAD, BAD)) == [BAD, LATE]


def look(audit: Audit, *carried: int) -> None:
    """Let a second pass before each count of what the phase has carried; it began at 100."""
    audit.looks = [(101.0 + number, each) for number, each in enumerate(carried)]
    audit.transfers = [Transfer("u", carried_bytes=carried[-1])]


@pytest.mark.parametrize(
    ("carried", "ended_at", "counted_s"),
    [
        ((10, 20, 30, 40), 104, 4),
        ((10, 20, 30, 40, 40, 40, 40), 107, 4),
        ((1_000, 2_000, 3_000, 4_000, 4_001, 4_002), 106, 4),
        ((10, 20, 30, 39, 40), 104.9, 4.9),
        ((), 104, 4),
    ],
)
def test_waiting_for_a_download_that_hangs_does_not_count(carried: tuple[int, ...], ended_at: float, counted_s: float) -> None:
    """Be it silent to the end or dripping: the time until nearly all had come is the time of the rate. A second is no hanging."""
    audit = Audit("download")
    if carried:
        look(audit, *carried)
    assert audit.counted_s(100, ended_at) == pytest.approx(counted_s, rel=0.02)


def test_waiting_for_uploads_that_are_never_confirmed_does_not_count() -> None:
    """Only where some had to be given up: else the last bytes were on their way."""
    audit = Audit("upload", completed_at=104)
    look(audit, 10, 20, 30, 40)
    assert audit.counted_s(100, 114) == 14
    audit.transfers.append(Transfer("u", problem=LATE))
    assert audit.counted_s(100, 114) == 4
    audit.completed_at = 0
    assert audit.counted_s(100, 114) == 14


@pytest.mark.parametrize(
    ("status", "location", "kind", "text"),
    [
        (429, None, "rate_limited", "HTTP 429: rate limited"),
        (503, None, "bad_answer", "HTTP 503"),
        (401, None, "blocked", "HTTP 401"),
        (403, None, "blocked", "HTTP 403"),
        (407, None, "blocked", "HTTP 407"),
        (404, None, "bad_answer", "HTTP 404"),
        (500, None, "bad_answer", "HTTP 500"),
        (307, "http://portal/login?session=1", "redirected", "http://portal/login "),
        (302, None, "redirected", "nowhere"),
        (404, "http://portal/gone", "redirected", "HTTP 404"),
    ],
)
def test_a_status_has_a_kind(status: int, location: str | None, kind: str, text: str) -> None:
    """Refusals, redirects and errors are told apart."""
    problem = answered(status, location)
    assert problem.kind == kind
    assert text in problem.text
    assert "session" not in problem.text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (URLError(TimeoutError("timed out")), "timeout"),
        (TimeoutError(), "timeout"),
        (ConnectionRefusedError(111, "Connection refused"), "unreachable"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "unreachable"),
        (URLError(OSError(errno.EHOSTUNREACH, "No route to host")), "unreachable"),
        (URLError(OSError(errno.ENETUNREACH, "Network is unreachable")), "line_down"),
        (OSError(errno.ENETDOWN, "Network is down"), "line_down"),
        (URLError(socket.gaierror(socket.EAI_NONAME, "Name or service not known")), "unreachable"),
        (OSError("Tunnel connection failed: 502 Bad Gateway"), "unreachable"),
        (ConnectionResetError(104, "reset"), "bad_answer"),
        (BrokenPipeError(32, "Broken pipe"), "bad_answer"),
        (BadStatusLine("220 mail"), "bad_answer"),
        (IncompleteRead(b""), "bad_answer"),
        (URLError("strange"), "bad_answer"),
    ],
)
def test_an_exception_has_a_kind(error: Exception, kind: str) -> None:
    """A server that is not there, one that is silent and one that talks nonsense are told apart, each with words."""
    problem = unanswered(error, 10)
    assert problem.kind == kind
    assert problem.text


def test_bytes_are_counted_over_all_phases() -> None:
    """The limit is for the whole run; requests and what was lost belong to a phase."""
    audit = Audit()
    audit.added("a").carried_bytes = 3
    audit.begin("download", 10)
    audit.added("b").carried_bytes = 4
    audit.unacknowledged_bytes = 2
    assert audit.total_bytes() == 7
    audit.begin("upload")
    assert (audit.phase, audit.total_bytes(), audit.transfers, audit.unacknowledged_bytes) == ("upload", 7, [], 0)


class Response(BytesIO):
    """A response that is already here."""

    status = 200

    def __init__(self, body: bytes, encoding: str | None = None, missing: int = 0) -> None:
        super().__init__(body)
        self.headers: dict[str, Any] = {"Content-Encoding": encoding} if encoding else {}
        self.length = missing

    def geturl(self) -> str:
        """Return an address."""
        return "http://here/"


def test_a_document_is_unpacked_for_the_library() -> None:
    """The library gets plain text, and is not told that it ever was packed."""
    document = Document(Response(gzip.compress(b"<client/>"), "GZIP"), 1)
    assert (document.read(100), document.getheader("content-encoding"), document.geturl()) == (b"<client/>", None, "http://here/")


@pytest.mark.parametrize(
    ("response", "kind", "text"),
    [
        (Response(b" " * (MAX_BYTES + 1)), "bad_answer", "longer than"),
        (Response(gzip.compress(bytes(MAX_BYTES + 1)), "gzip"), "bad_answer", "unpacks to more"),
        (Response(b"no gzip", "gzip"), "bad_answer", "but is not"),
        (Response(gzip.compress(b"x" * 1000)[:-9], "gzip"), "bad_answer", "but is not"),
        (Response(b"<client", missing=9), "truncated", "9 bytes early"),
    ],
)
def test_a_document_has_limits(response: Response, kind: str, text: str) -> None:
    """What is too long, packed or not, cut short or not what it says is not given to the library."""
    with pytest.raises(Unusable, match=text) as caught:
        Document(response, 1)
    assert caught.value.kind == kind
