"""What servers say: of a test, in the texts of NDT7 (v0.11), and of whom they serve, by HTTP's status."""

from dataclasses import dataclass
from typing import Any

from services.runner.confined import Failed
from services.runner.http_child.backends import parsed

_KINDS = {429: "rate_limited", 503: "rate_limited", 401: "blocked", 403: "blocked"}


@dataclass(frozen=True)
class Told:
    """A server's last word: `AppInfo` is what its program counted, `TCPInfo` what its kernel did; times in microseconds."""

    app: dict[str, int]
    tcp: dict[str, int]

    def __init__(self, app: dict[str, int] | None = None, tcp: dict[str, int] | None = None) -> None:
        object.__setattr__(self, "app", app or {})
        object.__setattr__(self, "tcp", tcp or {})

    def updated(self, text: bytes) -> "Told":
        """Return what is known after another text; one that is no measurement tells nothing."""
        told = parsed(text)
        if not isinstance(told, dict):
            return self
        return Told(_numbers(told.get("AppInfo")) or self.app, _numbers(told.get("TCPInfo")) or self.tcp)

    @property
    def min_rtt_s(self) -> float | None:
        """The smallest round trip that the server's TCP saw."""
        return self.tcp["MinRTT"] / 1e6 if self.tcp.get("MinRTT") else None

    @property
    def retransmission(self) -> float | None:
        """The share of its bytes that the server sent again."""
        return self.tcp["BytesRetrans"] / self.tcp["BytesSent"] if self.tcp.get("BytesSent") and "BytesRetrans" in self.tcp else None

    @property
    def received_bps(self) -> float | None:
        """The mean rate of an upload, as M-Lab has it: as the server's TCP counts, or else its program."""
        for counts, name in ((self.tcp, "BytesReceived"), (self.app, "NumBytes")):
            if counts.get(name) and counts.get("ElapsedTime"):
                return counts[name] * 8e6 / counts["ElapsedTime"]
        return None


def _numbers(told: object) -> dict[str, int]:
    """Return the counts that make sense."""
    known: dict[Any, Any] = told if isinstance(told, dict) else {}
    return {name: count for name, count in known.items() if type(count) is int and 0 <= count < 2**63}


def failed_status(status: int, location: str | None, who: str) -> Failed:
    """Return the failure that an answer means which neither serves nor opens a websocket."""
    if 300 <= status < 400:
        return Failed("redirected", f"{who} sends elsewhere (HTTP {status}, to {(location or 'nowhere').partition('?')[0][:200]})")
    kind = _KINDS.get(status, "bad_answer")
    return Failed(kind, f"{who} answers HTTP {status}{': run it less often' if kind == 'rate_limited' else ''}")
