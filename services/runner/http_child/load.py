"""A load in one direction: streams are added while they bring more, then its rate is measured until it is sure."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from services.runner.confined import Channel, Failed
from services.runner.http_child.processor import wanted_s
from services.runner.http_child.slices import AGREE, GROWING, STILL_RISING, Growth, Mark, disagreement, fair_bps, spread, until_the_end
from services.runner.http_child.streams import LEAST_BODY_BYTES, Stream
from services.runner.http_child.tasks import Loop, Task
from services.runner.http_child.tcp_info import TcpInfo

REPORT_EVERY_S = 0.25
SHORT_SLICE_S = 0.01
SLICE_SHARE = 0.01
LEAST_SLICES = 8
STEADY_WITHIN = 0.1
WINDOW_BITS = 64 * 1_448 * 8
NO_QUEUE_S = 0.005
LOOK_BACK_S = 1.0
WARM_UP_SHARE = 0.6
"""Of the time and of the bytes, where more streams go on bringing more: the warm-up may not use up what is to be measured with."""
SLOW_BPS = 3e6
"""A queue in front of a line so slow is filled by the first streams, whatever it loses; what more bring cannot be told from chance."""
LEAST_BYTES = 16_384
"""What carries less in a whole phase is slower than any line: a server that drips."""
ALIVE_SHARE = 0.75
"""So many of the streams must last."""
UNANSWERED = {"timeout", "unconfirmed"}


@dataclass(frozen=True)
class Limits:
    """How long and how much."""

    longest_s: float
    shortest_s: float
    """How long the rate is measured at least, once the line is warm."""
    max_bytes: int
    slice_s: float
    first_streams: int
    most_streams: int
    silence_s: float
    """Nothing may arrive for so long."""
    round_trip_s: float
    added_s: Callable[[float], float | None]
    """Returns by how much latency since a moment lies above that of the idle line, None when too little is known."""
    carried: Callable[[], int]
    """Counts the bytes of the load that have got to the other side of the line."""
    beside: Callable[[], int] = int
    """Counts those of the probes beside it, which share the line, and go on where the load stands still."""


@dataclass
class Loaded:
    """What a load came to. `began` and `ended` bound what was measured, on the monotonic clock."""

    rate_bps: float = 0
    paused: bool = False
    """Whether the line stood still in between, so long that it is a question of what the rate is."""
    spread: float = 0
    disagreement: float = 0
    carried_bytes: int = 0
    streams: int = 0
    warm_up_s: float = 0
    began: float = 0
    ended: float = 0
    slices: int = 0
    stopped_by: str = "time"
    """`sure`, `time`, `bytes`, or `end` where the far end ended it."""
    left_waiting: int = 0
    """Streams that the server never answered; they are not among `streams`. What more would bring could not be tried."""
    rising: bool = False
    """More streams still brought more: loss, or a limit per connection, held each of them back."""
    cpu_share: float = 0
    """How much of the time this process used a processor, or waited for one (Linux)."""
    stalled_share: float | None = None
    """How much of the time the streams were held back by the windows of the hosts (TCP_INFO)."""
    retransmitted_share: float | None = None


class Load:
    """One direction under load."""

    def __init__(self, loop: Loop, phase: str, make: Callable[[], Stream], limits: Limits, channel: Channel) -> None:
        self._loop, self._phase, self._make, self._limits, self._channel = loop, phase, make, limits, channel
        self._streams: list[tuple[Stream, Task]] = []
        self._marks: list[Mark] = []
        self._loaded = Loaded()
        self._infos: list[TcpInfo | None] = []
        self._moved_at = self._reported_at = 0.0
        self._carried = 0
        """What the load alone had carried at the last mark."""
        self._slice_s = limits.slice_s
        self._fewer_bps = 0.0
        """What fewer streams reached, where the warm-up ended without a word on the last ones; else 0."""

    def run(self, enough: Callable[[float], bool]) -> Loaded:
        """Load the line and measure; `enough` says of the moment since which it is measured whether the rest knows enough too.

        Raises: Failed.
        """
        self._moved_at = self._began = time.monotonic()
        self._before = self._limits.carried() + self._limits.beside()
        self._add(self._limits.first_streams)
        try:
            self._mark()
            self._warm_up()
            while not self._measure(enough):
                self._warm_up()
            return self._result()
        finally:
            for _, task in self._streams:
                self._loop.stop(task)

    def _add(self, count: int) -> None:
        for _ in range(count):
            stream = self._make()
            self._streams.append((stream, self._loop.start(stream.steps)))

    def _warm_up(self) -> None:
        """Wait for the end of slow start, and add streams for as long as they bring more."""
        limits, reached = self._limits, 0.0
        growth, lost = Growth(self._window(0)), 0
        while self._may_warm_up():
            growth.rates.append(self._slice())
            growth.window = self._window(fmean(growth.rates[-growth.window :]))
            now_reached = growth.plateau()
            if now_reached is None or not all(stream.warm or task.problem for stream, task in self._streams):
                continue
            count = len(self._streams)
            more_wanted = now_reached > reached * GROWING or self._is_held_back(self._marks[-growth.window][0], lost)
            is_filled = now_reached < SLOW_BPS and self._may_be_full()
            self._loaded.rising = more_wanted and reached > 0 and not is_filled
            if not more_wanted or is_filled or count >= limits.most_streams:
                break
            self._add(min(count, limits.most_streams - count))
            growth, reached, lost = Growth(growth.window), now_reached, self._holes()
        else:  # over before the last streams have shown what they bring: what is measured with them will
            self._loaded.rising, self._fewer_bps = False, reached
        self._start_measuring(len(self._marks) - 1)

    def _is_held_back(self, since: float, lost: int) -> bool:
        """Tell whether packets are lost though no queue stands in front of the line: loss keeps these streams from filling it."""
        added_s = self._limits.added_s(since)
        return added_s is not None and added_s < NO_QUEUE_S and self._holes() > lost

    def _may_be_full(self) -> bool:
        """Tell whether a queue stands in front of the line, or too little is known of it."""
        added_s = self._limits.added_s(self._marks[-1][0] - LOOK_BACK_S)
        return added_s is None or added_s >= NO_QUEUE_S

    def _holes(self) -> int:
        infos = [stream.connection.info() for stream, _ in self._streams]
        return sum(info.rcv_ooopack if self._phase == "download" else info.total_retrans for info in infos if info)

    def _start_measuring(self, first: int) -> None:
        self._first = first
        self._infos = [stream.connection.info() for stream, _ in self._streams]
        self._lost = self._holes()

    def _measure(self, enough: Callable[[float], bool]) -> bool:
        """Measure until it is sure, or time or bytes are used up; return False where more streams were needed after all."""
        while not self._over(self._limits.longest_s):
            self._slice()
            marks = self._marks[self._first :]
            measured_s, count = marks[-1][0] - marks[0][0], len(self._streams)
            if (
                measured_s >= LOOK_BACK_S
                and count < self._limits.most_streams
                and self._is_held_back(marks[-1][0] - LOOK_BACK_S, self._lost)
            ):
                if self._may_warm_up():
                    self._add(min(count, self._limits.most_streams - count))
                    return False
                self._loaded.rising = True  # too late to find out, so it does not pass for what the line can
            if len(marks) <= 2 * LEAST_SLICES or measured_s < self._limits.shortest_s:
                continue
            rise = disagreement(marks)
            if abs(rise) < AGREE and enough(marks[0][0]):
                self._loaded.stopped_by = "sure"
                return True
            if 1 + rise > STILL_RISING:  # it was not warm yet
                self._start_measuring(self._first + len(marks) // 2)
        return True

    def _may_warm_up(self) -> bool:
        """Tell whether time and bytes are left to find out what more streams bring; the rest is for measuring."""
        at, carried, _ = self._marks[-1]
        is_used_up = carried >= WARM_UP_SHARE * self._limits.max_bytes and at - self._began >= LOOK_BACK_S
        return not (is_used_up or self._over(WARM_UP_SHARE * self._limits.longest_s))

    def _over(self, longest_s: float) -> bool:
        if self._marks[-1][1] >= self._limits.max_bytes:
            self._loaded.stopped_by = "bytes"
            return True
        if self._has_ended():
            self._loaded.stopped_by = "end"
            return True
        return time.monotonic() - self._began >= longest_s

    def _has_ended(self) -> bool:
        return all(task.done and not task.problem for _, task in self._streams)

    def _slice(self) -> float:
        """Let a slice of time pass and return its rate in bit/s.

        Raises: Failed when the streams have failed, or nothing has moved for too long.
        """
        before_at, before, _ = self._marks[-1]
        load_before = self._carried
        self._loop.run(before_at + self._slice_s)
        if self._has_ended():
            self._marks = until_the_end(self._marks)
            return 0.0
        now, carried, _ = self._mark()
        if carried - before > SLICE_SHARE * self._limits.max_bytes:  # a line so fast that there would be few of them
            self._slice_s = min(self._slice_s, SHORT_SLICE_S)
        self._look_after(now, moved=self._carried > load_before)
        rate_bps = (carried - before) * 8 / (now - before_at)
        if now - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = now
            fraction = min(1.0, (now - self._began) / self._limits.longest_s)
            self._channel.send("progress", phase=self._phase, fraction=fraction, rate_bps=rate_bps)
        return rate_bps

    def _mark(self) -> Mark:
        now, self._carried = time.monotonic(), self._limits.carried()
        mark = (now, self._carried + self._limits.beside() - self._before, wanted_s())
        self._marks.append(mark)
        return mark

    def _look_after(self, now: float, *, moved: bool) -> None:
        count = len(self._streams) - self._left_waiting()
        failed = [task.problem for stream, task in self._streams if task.problem and not self._is_left_waiting(stream, task)]
        if len(failed) > (1 - ALIVE_SHARE) * count:
            raise failed[0]
        if moved:
            self._moved_at = now
        elif now - self._moved_at > self._limits.silence_s:
            raise self._stood_still(self._limits.silence_s)

    def _stood_still(self, for_s: float) -> Failed:
        kind = "timeout" if self._phase == "download" else "unconfirmed"
        return Failed(kind, f"the {self._phase} stood still: not one byte arrived for {for_s:g} s")

    def _is_left_waiting(self, stream: Stream, task: Task) -> bool:
        """Tell whether the server serves others and never this one: it has a worker for so many and no more."""
        if stream.warm or not any(each.warm for each, _ in self._streams):
            return False
        return task.problem is None or task.problem.kind in UNANSWERED

    def _left_waiting(self) -> int:
        return sum(self._is_left_waiting(*each) for each in self._streams)

    def _window(self, rate_bps: float) -> int:
        """Return how many slices make two round trips, and carry enough packets that a tenth of them is no chance."""
        seconds = max(2 * self._limits.round_trip_s, WINDOW_BITS / rate_bps if rate_bps else 0)
        return max(4, math.ceil(seconds / self._slice_s))

    def _result(self) -> Loaded:
        loaded, marks = self._loaded, self._marks[self._first :]
        carried = self._marks[-1][1]
        if len(marks) <= LEAST_SLICES and loaded.stopped_by == "end":
            raise Failed(
                "truncated", f"the far end ended the {self._phase} after {self._marks[-1][0] - self._began:.1f} s, too soon to measure it"
            )
        if len(marks) <= LEAST_SLICES and loaded.stopped_by == "time":
            raise Failed("timeout", f"the {self._phase} had not got up to speed within {self._limits.longest_s:g} s")
        if len(marks) <= LEAST_SLICES:
            reason = f"the {self._phase} had not got up to speed when its share of max_bytes, {self._limits.max_bytes} bytes, was used up"
            raise Failed("byte_limit", f"{reason}: allow more")
        measured_s = marks[-1][0] - marks[0][0]
        if self._loaded.stopped_by == "bytes" and measured_s < LOOK_BACK_S and abs(disagreement(marks)) > STEADY_WITHIN:
            reason = f"the {self._phase} had not become steady when its share of max_bytes, {self._limits.max_bytes} bytes, was used up"
            raise Failed("byte_limit", f"{reason}: allow more")
        if self._moved_at <= marks[0][0]:  # what was measured are the probes
            raise self._stood_still(round(measured_s, 1))
        if (moved := self._moved()) < LEAST_BYTES:
            raise Failed("bad_answer", f"the {self._phase} came to {moved} bytes in {self._limits.longest_s:g} s: that is no measurement")
        first, last = marks[0], marks[-1]
        loaded.rate_bps, loaded.paused = fair_bps(marks)
        loaded.spread, loaded.disagreement = spread(marks), disagreement(marks)
        loaded.left_waiting = self._left_waiting()
        loaded.carried_bytes, loaded.streams, loaded.slices = carried, len(self._streams) - loaded.left_waiting, len(marks) - 1
        loaded.began, loaded.ended, loaded.warm_up_s = first[0], last[0], first[0] - self._began
        loaded.cpu_share = (last[2] - first[2]) / (last[0] - first[0])
        # behind a queue the line is full, and it was the fewer streams that had not got up to speed
        is_full = (self._limits.added_s(loaded.began) or 0) >= NO_QUEUE_S
        loaded.rising |= self._fewer_bps > SLOW_BPS and loaded.rate_bps > self._fewer_bps * GROWING and not is_full
        self._tell_of_tcp()
        return loaded

    def _moved(self) -> int:
        """Return how many bytes the streams have moved, at the least: next to a server that drips, probes would be the most of it."""
        carried = self._marks[-1][1]
        if self._phase == "upload" or carried >= LEAST_BODY_BYTES:
            return carried
        return sum(stream.connection.received_bytes for stream, _ in self._streams)

    def _tell_of_tcp(self) -> None:
        """Work out what held the streams back, from the kernel's counters at both ends of what was measured."""
        pairs = [(before, stream.connection.info()) for before, (stream, _) in zip(self._infos, self._streams, strict=False)]
        known = [(before, after) for before, after in pairs if before and after and after.bytes_acked >= before.bytes_acked]
        busy = sum(after.busy_time - before.busy_time for before, after in known)
        sent = sum(after.data_segs_out - before.data_segs_out for before, after in known)
        if self._phase == "download" or not busy or not sent:
            return
        stalled = sum(after.rwnd_limited + after.sndbuf_limited - before.rwnd_limited - before.sndbuf_limited for before, after in known)
        self._loaded.stalled_share = stalled / busy
        again = sum(after.total_retrans - after.dsack_dups - before.total_retrans + before.dsack_dups for before, after in known)
        self._loaded.retransmitted_share = max(0, again) / sent


def told_of(loaded: Loaded) -> dict[str, Any]:
    """Return what a result's details say of a load."""
    since_epoch = time.time() - time.monotonic()
    told = {
        "began_at": loaded.began + since_epoch,
        "ended_at": loaded.ended + since_epoch,
        "streams": loaded.streams,
        "streams_left_waiting": loaded.left_waiting or None,
        "slices": loaded.slices,
        "warm_up_s": loaded.warm_up_s,
        "measured_s": loaded.ended - loaded.began,
        "halves_differ": loaded.disagreement,
        "paused": loaded.paused or None,
        "cpu_share": loaded.cpu_share,
        "host_limited_share": loaded.stalled_share,
        "retransmitted_share": loaded.retransmitted_share,
    }
    known = {name: round(value, 6) if isinstance(value, float) else value for name, value in told.items() if value is not None}
    return {name: value for name, value in known.items() if math.isfinite(value)} | {"ended_by": loaded.stopped_by}


def rates_of(phase: str, loaded: Loaded) -> dict[str, float]:
    """Return the rate of a direction and its spread; a line that stood still for half of the time has no spread that is a number."""
    spread_of = {f"{phase}_spread": loaded.spread} if math.isfinite(loaded.spread) else {}
    return {f"{phase}_bps": loaded.rate_bps, **spread_of}
