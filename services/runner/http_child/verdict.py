"""What held a rate back, and how far it is to be believed."""

import math

from services.runner.http_child.load import Loaded
from services.runner.http_child.loss import Loss

BUSY_SHARE = 0.8
STALLED_SHARE = 0.5
LEAST_LOST = 3
LEAST_LOSS = 0.0005
SEGMENT_BYTES = 1_448
WITHIN = 0.5
SURE_WITHIN = 0.03
SURE_SPREAD = 0.3


def limited_by(loaded: Loaded, loss: Loss | None, round_trip_s: float) -> str:
    """Return what held a load back: `line`, `host` (this machine, or the server's receive windows) or `loss`.

    It was the host when this process used or waited for a processor for next to all of the time, or windows and buffers held the
    streams back for half of it; loss when more streams still brought more, or when so many streams cannot be expected to carry
    twice as much with the loss that was found.
    """
    if loaded.cpu_share > BUSY_SHARE or (loaded.stalled_share or 0) > STALLED_SHARE:
        return "host"
    return "loss" if loaded.rising or loaded.rate_bps > WITHIN * bound_bps(loaded.streams, loss, round_trip_s) else "line"


def bound_bps(streams: int, loss: Loss | None, round_trip_s: float) -> float:
    """Return what streams of TCP carry at a loss: MSS / RTT * sqrt(3 / 2p) each (Mathis and others, 1997); infinity without loss."""
    if loss is None or loss.lost < LEAST_LOST or loss.share < LEAST_LOSS:
        return math.inf
    return streams * SEGMENT_BYTES * 8 / round_trip_s * math.sqrt(1.5 / loss.share)


def confidence(loaded: Loaded, limit: str, *, acknowledged: bool) -> str:
    """Return `reliable`, `indicative` or `underestimates`.

    Indicative: few slices, or they do not agree, or the line paused, or bytes were counted as handed over, or the server left
    streams waiting.
    """
    if limit != "line":
        return "underestimates"
    sure = abs(loaded.disagreement) < SURE_WITHIN and loaded.spread < SURE_SPREAD and acknowledged
    return "reliable" if sure and loaded.stopped_by != "bytes" and not (loaded.paused or loaded.left_waiting) else "indicative"


def worst(words: list[str], order: tuple[str, ...]) -> str | None:
    """Return the first of the order that is among the words; None when there are none."""
    return next((word for word in order if word in words), None)
