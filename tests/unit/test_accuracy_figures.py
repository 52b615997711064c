"""From what is counted on a line to a figure in the table of docs/accuracy.md."""

import itertools
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.accuracy import picture, runs, table
from bench.accuracy.lines import ALL, DEFAULT, FRAME_BYTES, HEADER_BYTES, Line, parse
from bench.accuracy.outcome import Figures, Outcome
from bench.accuracy.runs import Run, Runs
from bench.accuracy.testbed import Count
from bench.accuracy.watch import Watched


def outcome(measured: float | None, counted: float | None, **rest: object) -> Outcome:
    """Return a run with the same figures in both directions, in Mbit/s."""
    figures = {way: Figures(measured and measured * 1e6, counted and counted * 1e6, streams=4, cpu_share=0.05) for way in ("down", "up")}
    return Outcome(figures=figures, cpu_s=1, wall_s=10, wire_bytes=5_000_000, **rest)  # type: ignore[arg-type]


def recorded(*measured: tuple[str, str, Outcome]) -> Runs:
    """Return runs of (line, engine, outcome)."""
    return Runs([Run(line, engine, "a machine", each) for line, engine, each in measured])


def test_a_line_is_called_what_it_is_read_from() -> None:
    """Every line that is measured has one name."""
    for name in (*ALL, *DEFAULT):
        assert parse(name).name == name
    assert parse("100/20,40ms,0.5%") == Line(100e6, 20e6, 0.04, 0.005)
    assert parse("5/1,deep").queue_s == 0.5


@pytest.mark.parametrize("name", ["fast", "100", "100/20,10", "100/20,deeper", ""])
def test_what_is_no_line_is_refused_by_its_name(name: str) -> None:
    """The message has the part that is not understood."""
    with pytest.raises(ValueError, match="is neither a rate"):
        parse(name)


def test_the_shaper_has_room_for_a_frame_on_the_slowest_line() -> None:
    """Ten milliseconds of 1 Mbit/s are less than a frame, which would never pass."""
    assert parse("5/1").burst_bytes("up") >= FRAME_BYTES
    assert parse("5/1").queue_bytes("up") == 20 * FRAME_BYTES
    assert parse("1000/1000").queue_bytes("up") == 6_250_000
    assert parse("2500/2500").burst_bytes("down") == 3_125_000


def watched(*steps: tuple[float, int]) -> Watched:
    """Return what was seen where so many full packets had arrived at each moment."""
    counts = [Count(at, packets * FRAME_BYTES, packets) for at, packets in steps]
    return Watched(counts={"down": counts, "up": counts})


def test_goodput_is_counted_without_headers_and_between_two_looks() -> None:
    """1,000 full frames a second from 0 to 2 s, then nothing: also where a window begins between two looks."""
    seen = watched((0, 0), (1, 1000), (2, 2000), (3, 2000))
    full = 1000 * (FRAME_BYTES - HEADER_BYTES) * 8
    assert seen.goodput_bps("down", 0, 2) == full
    assert seen.goodput_bps("down", 0.25, 1.75) == pytest.approx(full)
    assert seen.goodput_bps("up", 1, 3) == full / 2
    assert seen.wire_bytes == 2 * 2000 * FRAME_BYTES


def test_the_last_seconds_end_with_the_traffic() -> None:
    """A few packets afterwards (a connection's end) are not taken for traffic."""
    looks = [(number / 20, min(number, 100) * 50 + number // 100) for number in range(161)]
    began, ended = watched(*looks).last_seconds("down", 2)
    assert ended == pytest.approx(4.9, abs=0.06)
    assert ended - began == 2
    assert watched(*looks).goodput_bps("down", began, ended) == pytest.approx(1000 * (FRAME_BYTES - HEADER_BYTES) * 8)


def test_an_engine_that_tells_no_window_is_held_against_the_reference() -> None:
    """Its own window first, then what the reference filled the line with, then the shaper; with loss neither says anything."""
    line = parse("100/20,10ms")
    alone = recorded((line.name, "speedtest", outcome(90, None)))
    both = recorded(
        (line.name, "iperf3", outcome(96, 95)), (line.name, "speedtest", outcome(90, None)), (line.name, "http", outcome(80, 80))
    )
    assert both.errors(line, "speedtest", "down") == [90 / 95 - 1]
    assert both.errors(line, "http", "down") == [0]
    assert alone.errors(line, "speedtest", "down") == [pytest.approx(90 / (100 * 1448 / 1514) - 1)]
    lossy = parse("100/20,10ms,1%")
    slowed = recorded((lossy.name, "iperf3", outcome(70, 70)), (lossy.name, "speedtest", outcome(90, None)))
    assert slowed.errors(lossy, "speedtest", "down") == []


def test_runs_are_kept_until_the_same_is_measured_again(tmp_path: Path) -> None:
    """What is written is what is read; a second measurement replaces the first of its line and engine, and nothing else."""
    file = tmp_path / "runs.json"
    assert runs.read(file).every == []
    first = recorded(("5/1", "http", outcome(5, 5)), ("5/1", "iperf3", outcome(5, 5)), ("20/5", "http", outcome(None, None, failure="no")))
    runs.write(file, first)
    assert runs.read(file) == first
    first.replace(recorded(("5/1", "http", outcome(4, 5)), ("5/1", "http", outcome(4, 5))))
    assert [(run.line, run.engine) for run in first.every] == [("5/1", "iperf3"), ("20/5", "http"), ("5/1", "http"), ("5/1", "http")]


def test_the_table_says_medians_and_what_failed(tmp_path: Path) -> None:
    """A failed run is told and not counted; what is not known is a dash; the rest of the page stays."""
    name = "20/5,10ms"
    measured = [(name, "http", outcome(each, 19.12, limit="line", latency_s=0.0103)) for each in (19.12, 18.93, 19.31)]
    broken = [(name, "http", Outcome(failure="Traceback\nit | broke"))] * 4
    everything = recorded(*measured, *broken, (name, "speedtest", outcome(None, None)))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write(page, everything)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    (http,) = [line for line in text.splitlines() if "`http`" in line]
    cells = [cell.strip() for cell in http.strip("|").split("|")]
    assert cells[:4] == ["20/5, 10ms", "`http`", "7", "19.1 / 19.1"]
    assert cells[5] == "**0.0 %** (−1.0 % to +1.0 %)"
    assert cells[7:12] == ["1.0", "20.92 / 20.92", "5", "10", "10.3"]
    assert cells[14] == "4 failed: it / broke; streams 4 / 4; limited by line"
    assert len(table.HEADINGS) == len(cells)
    (speedtest,) = [line for line in text.splitlines() if "`speedtest`" in line]
    assert " – | – " in speedtest


def test_the_picture_has_a_point_for_every_rate_that_was_measured() -> None:
    """Two panels, each with what the engine was off at two rates; it is well-formed."""
    drawn = picture.draw(recorded(("20/5,10ms", "http", outcome(19.2, 19.12)), ("100/20,10ms", "http", outcome(95, 95.6))))
    circles = [each for each in ET.fromstring(drawn).iter() if each.tag.endswith("circle")]
    assert len(circles) == 2 * 2 + 1
    heights = {round(float(each.get("cy", "0"))) for each in itertools.islice(circles, 2)}
    assert len(heights) == 2
