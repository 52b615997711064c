"""The lines to measure: rates, round-trip time, loss and queue, and what a line is called."""

import re
from dataclasses import dataclass, replace

FRAME_BYTES, HEADER_BYTES = 1514, 66
"""A full Ethernet frame, and what of it is not payload: Ethernet 14, IPv4 20, TCP with timestamps 32 bytes."""
PAYLOAD_SHARE = (FRAME_BYTES - HEADER_BYTES) / FRAME_BYTES
DEEP_S = 0.5
RATES = ("5/1", "20/5", "100/20", "500/100", "1000/1000", "2500/2500")
ALL = (
    *(f"{rate},{ms}ms{loss}" for loss in ("", ",0.5%") for ms in (10, 40) for rate in RATES),
    "unshaped",
    "20/5,10ms,deep",
    "100/20,10ms,deep",
)
"""Every line that the table is made for."""
DEFAULT = (*(f"{rate},10ms" for rate in RATES), "unshaped", "100/20,40ms", "1000/1000,40ms", "100/20,10ms,0.5%", "20/5,10ms,deep")


@dataclass(frozen=True)
class Line:
    """A link, as the client sees it; a rate of None is whatever the machine can carry."""

    down_bps: float | None = None
    up_bps: float | None = None
    round_trip_s: float = 0.0
    loss: float = 0.0
    """The share of packets lost in each direction."""
    queue_s: float = 0.05
    """How long the longest queue in front of the link takes to drain; see `queue_bytes`."""

    @property
    def name(self) -> str:
        """Return what `parse` reads."""
        parts = [f"{self.down_bps / 1e6:g}/{self.up_bps / 1e6:g}" if self.down_bps and self.up_bps else "unshaped"]
        parts += [f"{self.round_trip_s * 1e3:g}ms"] if self.round_trip_s else []
        parts += [f"{self.loss * 100:g}%"] if self.loss else []
        parts += ["deep"] if self.queue_s == DEEP_S else []
        return ",".join(parts)

    def rate_bps(self, direction: str) -> float | None:
        """Return the shaped rate of `down` or `up`, Ethernet headers included."""
        return self.down_bps if direction == "down" else self.up_bps

    def goodput_bps(self, direction: str) -> float | None:
        """Return what TCP can carry on the shaped line, in full packets."""
        rate = self.rate_bps(direction)
        return rate * PAYLOAD_SHARE if rate else None

    def burst_bytes(self, direction: str) -> int:
        """Return the bucket of the shaper: 10 ms, at least two frames; with 2 ms it under-delivers by 9 to 25 % at 2.5 Gbit/s."""
        return max(int((self.rate_bps(direction) or 0) / 8 * 0.01), 2 * FRAME_BYTES)

    def queue_bytes(self, direction: str) -> int:
        """Return the room in front of the shaper: at least 20 frames, as any modem has."""
        return max(int((self.rate_bps(direction) or 0) / 8 * self.queue_s), 20 * FRAME_BYTES)


def parse(name: str) -> Line:
    """Read a line such as `100/20,10ms`, `20/5,40ms,0.5%`, `20/5,10ms,deep` (500 ms of queue) or `unshaped`.

    Raises: ValueError that says which part is not understood.
    """
    line = Line()
    for part in name.split(","):
        if rates := re.fullmatch(r"([\d.]+)/([\d.]+)", part):
            line = replace(line, down_bps=float(rates[1]) * 1e6, up_bps=float(rates[2]) * 1e6)
        elif time := re.fullmatch(r"([\d.]+)ms", part):
            line = replace(line, round_trip_s=float(time[1]) / 1e3)
        elif share := re.fullmatch(r"([\d.]+)%", part):
            line = replace(line, loss=float(share[1]) / 100)
        elif part == "deep":
            line = replace(line, queue_s=DEEP_S)
        elif part != "unshaped":
            raise ValueError(
                f"{name!r} is no line: {part!r} is neither a rate (100/20), a round trip (10ms), a loss (0.5%), deep nor unshaped"
            )
    return line
