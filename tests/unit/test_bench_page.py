"""How a benchmark's figures come onto their page, and how they are held against their bars."""

from pathlib import Path

import pytest

from bench import footprint
from bench.page import table, write
from bench.pipeline.__main__ import Measured
from bench.pipeline.report import ALWAYS, LATE, LOGGED, OURS, TUNED, rows, verdicts
from bench.recorder import report as recorder
from bench.scheduler import fires, ours
from bench.scheduler import report as of_scheduler


def _measured(*rates: float, cpu_s: float = 1.0, latencies_ms: tuple[float, ...] = (1.0,)) -> Measured:
    used = {"publisher": 0.0, "workers": cpu_s, "broker": 0.0, "PostgreSQL": 0.0}
    return Measured(list(rates), [used] * len(rates), [2**20] * len(rates), list(latencies_ms))


def test_a_benchmark_writes_its_own_section_alone(tmp_path: Path) -> None:
    """What is before, after and in other sections stays; a second run replaces the first."""
    page = tmp_path / "page.md"
    one, other = ("<!-- {0}: written by make bench-{0} -->\n{1}<!-- end of {0} -->\n".format(name, "") for name in ("one", "other"))
    page.write_text(f"before\n{one}between\n{other}after\n")
    write(page, "one", ["first"])
    write(page, "one", table(("a", "b"), [("1", r"\2")]))
    begin, end = one.splitlines()
    assert page.read_text() == f"before\n{begin}\n\n| a | b |\n| --- | --- |\n| 1 | \\2 |\n\n{end}\nbetween\n{other}after\n"


def test_a_page_without_the_markers_is_refused(tmp_path: Path) -> None:
    """Figures that would be lost are an error that names what is missing."""
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="written by make bench-one"):
        write(page, "one", ["figures"])


def test_a_bar_is_held_against_ratios_of_the_same_round() -> None:
    """A machine that is slow for a round slows both sides: rounds are compared, then the median taken; what is missed is called so."""
    measured = {
        OURS: _measured(2_000, 300, 5_000, cpu_s=0.1, latencies_ms=(2.0, 10.0)),
        TUNED: _measured(100, 10, 200, cpu_s=2.0, latencies_ms=(3.0, 11.0)),
        LATE: _measured(100, 10, 200),
        ALWAYS: _measured(600, 60, 600),
        LOGGED: _measured(100, 10, 100),
    }
    told = verdicts(measured)
    assert [line.split(" ×")[0] for line in told] == ["- 25.0", "- 25.0", "- 20.0", "- 6.0", "- 1.1", "- 1.1"]
    assert ["missed" in line for line in told] == [False, True, False, False, True, False]
    assert rows(measured)[0][1] == "2,000 (300 to 5,000)"


def _scheduled(side: str, rate: int, late_ms: float, *, missing: int = 0, loaded_s: float | None = None) -> fires.Measured:
    burst = fires.Burst(2 * rate, 2.0)
    late = [fires.Fire(f"s{number}", 100.0, 100.0 + (late_ms if number < 2 else 1.0) / 1e3) for number in range(100)]
    return fires.Measured(side, 1.5, burst, fires.Minute(100 + missing, late, 0.1, 2**20), loaded_s)


def test_a_scheduler_is_held_to_its_bars() -> None:
    """Lateness, burst and reading each against the bar of that many schedules; an instant without a tick is told, and so is a miss."""
    peer = _scheduled("celery beat", 10, 5_000.0, missing=40)
    good = of_scheduler.verdicts(10_000, [_scheduled("Refresher", 5_000, 9.9, loaded_s=2.0), peer])
    assert good == [
        "- p99 9.9 ms late (bar 10 ms)",
        "- a burst 500 × as fast as celery beat's (bar 500 ×)",
        "- read, checked and planned in 2.00 s",
    ]
    bad = of_scheduler.verdicts(100_000, [_scheduled("Refresher", 4_000, 250.1, missing=3, loaded_s=1.01), peer])
    assert bad[0] == "- p99 250.1 ms late (bar 250 ms: **missed**)"
    assert bad[1] == "- **3 instants have no tick**"
    assert bad[-1] == "- read, checked and planned in 1.01 s (bar 1 s: **missed**)"
    assert of_scheduler.rows([peer])[0][1] == "100 of 140"


def test_of_a_schedule_that_fires_twice_the_first_counts() -> None:
    """What beat fires a minute later is not due in the minute that is watched, and what is due outside of it neither."""
    found = [fires.Fire("a", 1.0, 2.0), fires.Fire("a", 1.0, 62.0), fires.Fire("b", 60.0, 60.0), fires.Fire("a", 0.9, 1.0)]
    assert fires.within(found, 1.0, 60.0) == found[:1]


def test_many_schedules_are_a_mixture_that_runs_as_often() -> None:
    """Half of 100,000 are crons in every zone; the others run so often that there is one run a minute each on average."""
    made = list(ours.schedules(ours.MIXED_FROM))
    crons = [each.timing for each in made if each.timing.kind == "cron"]
    assert len(crons) == len(made) / 2
    assert {timing.zone for timing in crons} == set(ours.ZONES)
    assert len({(timing.expression, timing.zone) for timing in crons}) > 1_000
    assert {each.timing.phase_s for each in made if each.timing.kind == "interval"} == set(range(30))


def test_the_footprint_is_that_of_all_parts() -> None:
    """Sums of parts, medians of starts, each against its bar."""
    part = footprint.Part(150 * 2**20, 0.009, 10.0)
    told = footprint.report({"api": part, "NATS": part}, footprint.Starts(9.0, [2.0, 5.0, 2.5], [0.2, 0.31, 0.4]))
    assert "| **the whole** | **300** | **1.80%** | **20** |" in told
    assert told[-4:] == [
        "- idle: 300 MB (bar 250: **missed**), 1.80 % of one core (bar 2)",
        "- first start, with an empty directory: 9.0 s",
        "- warm start: 2.50 s (bar 3), 2.00 to 5.00 in 3",
        "- `refresher --help`: 0.31 s (bar 0.3: **missed**), 0.20 to 0.40 in 3",
    ]


def test_the_recorder_is_held_against_copy_round_by_round() -> None:
    """A round in which the machine was slow says as much as any other; a bar that was missed is said to be."""
    drained = recorder.Drained(1_000.0, {"recorder": 0.02}, [2**20] * 10, wal_bytes=900, disk_bytes=600)
    rates = {recorder.RECORDER: [50.0, 500.0, 600.0], recorder.COPY: [100.0, 1_000.0, 1_000.0]}
    lines = recorder.report(rates, [drained] * 3, 10, drained, 100)
    assert "- 50% of what COPY stores (bar 75%: **missed**)" in lines
    rates[recorder.COPY] = rates[recorder.RECORDER]
    assert "- 100% of what COPY stores (bar 75%)" in recorder.report(rates, [drained] * 3, 10, drained, 100)
