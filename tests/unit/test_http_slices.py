"""From byte counts to a rate, and what is made of round trips: the pure parts of the engine `http`."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner.confined import Failed
from services.runner.http_child.backends import cloudflare
from services.runner.http_child.exchange import Answer
from services.runner.http_child.framing import Chunks, Plain
from services.runner.http_child.latency import Idle, Probes, grade, on_the_way_s, trimmed
from services.runner.http_child.load import Loaded, rates_of, told_of
from services.runner.http_child.loss import Loss, pace_bps
from services.runner.http_child.slices import Growth, disagreement, fair_bps, rate_bps, spread, until_the_end
from services.runner.http_child.verdict import bound_bps, confidence, limited_by


def marks(*carried: int) -> list[tuple[float, int, float]]:
    """Return marks 50 ms apart."""
    return [(7 + number * 0.05, each, 0.0) for number, each in enumerate(carried)]


def test_a_steady_rate_is_found_whatever_its_edges_hold() -> None:
    """100 Mbit/s are 625 kB in 50 ms; a count that comes late at one end moves the rate far less than the mean of slices."""
    steady = [number * 625_000 for number in range(61)]
    assert rate_bps(marks(*steady)) == pytest.approx(100e6)
    late = [*steady[:-1], steady[-1] - 625_000]
    assert rate_bps(marks(*late)) == pytest.approx(100e6, rel=0.002)
    assert spread(marks(*steady)) == pytest.approx(0, abs=1e-9)
    assert disagreement(marks(*steady)) == pytest.approx(0, abs=1e-9)


def test_halves_that_differ_and_rates_that_vary_are_seen() -> None:
    """A rate that rises by a tenth in the middle disagrees by a tenth, and is spread by about that."""
    counts = [0]
    for number in range(60):
        counts.append(counts[-1] + (600_000 if number < 30 else 660_000))
    assert disagreement(marks(*counts)) == pytest.approx(0.1, rel=0.01)
    assert spread(marks(*counts)) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("paused", [range(24, 33), range(5), range(50, 60)])
def test_a_pause_costs_what_it_took(paused: range) -> None:
    """Wherever it was, the rate is what was carried; a late count in the same place is no pause."""
    counts, late = [0], [0]
    for number in range(60):
        counts.append(counts[-1] + (0 if number in paused else 625_000))
        late.append((number + 1) * 625_000 - (50_000 if number in paused else 0))
    assert fair_bps(marks(*counts)) == (pytest.approx(100e6 * (60 - len(paused)) / 60), True)
    assert fair_bps(marks(*late)) == (pytest.approx(100e6, rel=0.002), False)


def test_slow_start_ends_when_the_rate_no_longer_grows() -> None:
    """A window of slices has to be followed by one that is not a tenth above it; nothing carried is not an end."""
    growth = Growth(2)
    for rate in (0, 0, 0, 0, 1, 2, 4, 8, 16):
        growth.rates.append(rate)
        assert growth.plateau() is None
    for rate in (16, 16):
        growth.rates.append(rate)
    assert growth.plateau() is None
    growth.rates.append(16)
    assert growth.plateau() == 16


def test_a_round_trip_of_the_idle_line() -> None:
    """Latency is the median, jitter the mean difference of neighbours."""
    idle = Idle([0.010, 0.012, 0.011, 0.030])
    assert idle.latency_s == pytest.approx(0.0115)
    assert idle.jitter_s == pytest.approx((0.002 + 0.001 + 0.019) / 3)


def test_responsiveness_follows_the_draft() -> None:
    """The mean of 60 s over the mean of the three on fresh connections, and 60 s over HTTP on open ones; plain HTTP has no handshake."""
    kept = [(0.0, 0.1)] * 10
    assert Probes(kept, [(0.0, 0.1, 0.2, 0.3)] * 5).responsiveness_rpm() == pytest.approx((60 / 0.2 + 60 / 0.1) / 2)
    assert Probes(kept, [(0.0, 0.1, 0.0, 0.3)] * 5).responsiveness_rpm() == pytest.approx((60 / 0.2 + 60 / 0.1) / 2)
    assert Probes(kept[:4], [(0.0, 0.1, 0.2, 0.3)] * 5).responsiveness_rpm() is None
    assert trimmed([1] * 19 + [100]) == 1
    assert Probes([(1.0, 0.1), (2.0, 0.2)], []).since(1.5).latencies_s() == [0.2]


def test_what_never_came_back_counts_as_long_as_it_was_waited_for() -> None:
    """A queue of seconds is not told from the few that were quick; what had just been sent says nothing."""
    kept, fresh = [(7.0, 0.02), (7.1, 1.2), (8.0, 1.3)], [(7.0, 0.1, 0.0, 1.1)]
    assert Probes(kept, fresh, [1.5, 1.6]).latency_s() == pytest.approx(1.25)
    assert Probes(kept, fresh, [0.1, 0.2]).latency_s() == pytest.approx(1.15)
    assert Probes(kept, fresh, [2.0, 2.0]).since(7.5).latency_s() == 2.0
    assert Probes([], [], [3.0]).latency_s() == 3.0
    assert Probes([(7.0, 0.02)] * 4, [], []).latency_s() is None
    assert Probes([(7.0, 0.02)] * 5, [], []).latency_s() == 0.02


@pytest.mark.parametrize(
    ("answering_s", "least_s", "left_s"),
    [(0, 0.01, 0.03), (0.005, 0.01, 0.025), (0.025, 0.01, 0.01), (0.025, 0, 0.005), (0.03, 0.01, 0.03), (1, 0, 0.03), (0.001, 0.04, 0.03)],
)
def test_a_server_cannot_talk_a_line_away(answering_s: float, least_s: float, left_s: float) -> None:
    """What it says it took is taken off, down to the kernel's shortest round trip; more than there was is no word to go by."""
    assert on_the_way_s(0.03, answering_s, least_s) == pytest.approx(left_s)


@pytest.mark.parametrize(
    ("added_s", "letter"), [(-0.001, "A+"), (0.0049, "A+"), (0.005, "A"), (0.03, "B"), (0.06, "C"), (0.2, "D"), (0.4, "F"), (9, "F")]
)
def test_the_grade_is_a_letter_for_what_load_adds(added_s: float, letter: str) -> None:
    """Each letter begins where the one before ends."""
    assert grade(added_s) == letter


def loaded(**values: float | str | bool) -> Loaded:
    """Return a load of a warm and steady line."""
    return Loaded(**{"rate_bps": 95e6, "streams": 4, "stopped_by": "sure", **values})  # type: ignore[arg-type]


def test_what_held_a_rate_back_is_named() -> None:
    """Processor or windows: the host. Streams that still brought more, or loss under which TCP cannot do better: loss. Else the line."""
    assert limited_by(loaded(), None, 0.01) == "line"
    assert limited_by(loaded(), Loss(4_000, 2), 0.04) == "line"
    assert limited_by(loaded(), Loss(4_000, 20), 0.04) == "loss"
    assert limited_by(loaded(rate_bps=5e6), Loss(4_000, 20), 0.01) == "line"
    assert limited_by(loaded(rising=True), None, 0.01) == "loss"
    assert limited_by(loaded(cpu_share=0.95, rising=True), None, 0.01) == "host"
    assert limited_by(loaded(stalled_share=0.6), None, 0.01) == "host"
    assert bound_bps(4, Loss(4_000, 20), 0.04) == pytest.approx(4 * 1_448 * 8 / 0.04 * math.sqrt(300))


def test_how_far_a_rate_is_to_be_believed() -> None:
    """What the line did not limit is less than it carries; halves that differ, few bytes or a count of bytes handed over are no proof."""
    assert confidence(loaded(), "line", acknowledged=True) == "reliable"
    assert confidence(loaded(), "line", acknowledged=False) == "indicative"
    assert confidence(loaded(disagreement=0.05), "line", acknowledged=True) == "indicative"
    assert confidence(loaded(spread=0.4), "line", acknowledged=True) == "indicative"
    assert confidence(loaded(paused=True), "line", acknowledged=True) == "indicative"
    assert confidence(loaded(stopped_by="bytes"), "line", acknowledged=True) == "indicative"
    assert confidence(loaded(), "loss", acknowledged=True) == "underestimates"


def test_a_paced_flow_leaves_room() -> None:
    """A quarter of the line, at most 25 Mbit/s; 5 Mbit/s where the line is not known."""
    assert (pace_bps(20e6), pace_bps(1e9), pace_bps(None)) == (5e6, 25e6, 5e6)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.lists(st.integers(1, 40), min_size=1))
def test_chunks_are_read_however_they_are_cut(sizes: list[int], cuts: list[int]) -> None:
    """The data of all chunks comes out, and the end is found exactly where it is."""
    body = b"".join(b"%x;name=value\r\n%s\r\n" % (size, bytes([65 + size % 26]) * size) for size in sizes) + b"0\r\nX-Trailer: 1\r\n\r\n"
    kept, at, turn = bytearray(), 0, 0
    buffer = bytearray(64)
    chunks = Chunks(buffer, kept.extend)
    while True:
        piece = body[at : at + cuts[turn % len(cuts)]]
        buffer[: len(piece)] = piece
        at, turn = at + len(piece), turn + 1
        if chunks.take(len(piece)):
            break
        assert at < len(body)
    assert at == len(body)
    assert kept == b"".join(bytes([65 + size % 26]) * size for size in sizes)


@pytest.mark.parametrize("body", [b"x\r\n", b"\r\n", b"-1\r\n", b"fffffffffffffffff\r\n", b"1" * 300, b"0\r\n" + b"a: b\r\n" * 5_000])
def test_what_is_no_chunk_is_refused(body: bytes) -> None:
    """Sizes that are none, lines and trailers without end."""
    buffer = bytearray(body)
    with pytest.raises(Failed):
        Chunks(buffer, None).take(len(body))


def test_a_body_ends_by_its_length_or_with_the_connection() -> None:
    """With a length it is complete when that has come; without, never, but the connection may end."""
    plain = Plain(bytearray(8), 10, None)
    assert plain.most() == 8
    assert not plain.take(8)
    assert (plain.most(), plain.ends()) == (2, False)
    assert plain.take(2)
    with pytest.raises(Failed, match="more than the Content-Length"):
        plain.take(1)
    endless = Plain(bytearray(8), None, None)
    assert not endless.take(8)
    assert endless.ends()


def test_cloudflare_says_how_long_it_took() -> None:
    """Its own time is no part of the line's latency; nonsense and what is missing count as nothing, a hundred seconds as one."""
    for said, seconds in {"cfRequestDuration;dur=12.5": 0.0125, "x, cfRequestDuration;dur=9": 0.009, "dur=9": 0, "": 0}.items():
        assert cloudflare.answering_s(Answer(200, {"server-timing": said}, b"", 0, True)) == pytest.approx(seconds)
    assert cloudflare.answering_s(Answer(200, {"server-timing": "cfRequestDuration;dur=9999"}, b"", 0, True)) == 1


def test_what_is_no_number_is_not_told() -> None:
    """A line that stood still for half of the time has a rate and no spread: infinity is not JSON."""
    loaded = Loaded(rate_bps=8e6, spread=math.inf, disagreement=math.inf, stopped_by="end")
    assert rates_of("upload", loaded) == {"upload_bps": 8e6}
    assert "halves_differ" not in told_of(loaded)
    assert told_of(loaded)["ended_by"] == "end"
    assert rates_of("upload", Loaded(rate_bps=8e6, spread=0.5)) == {"upload_bps": 8e6, "upload_spread": 0.5}


def test_the_end_of_a_load_is_no_slice_of_it() -> None:
    """The last slice with a byte is cut short, and what comes after it is silence; the first mark stays."""
    assert until_the_end(marks(0, 10, 20, 24, 24, 24)) == marks(0, 10, 20)
    assert until_the_end(marks(0, 0, 0)) == marks(0)
    assert until_the_end(marks(0)) == marks(0)
