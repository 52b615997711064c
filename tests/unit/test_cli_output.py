"""What the commands write."""

import io
from contextlib import redirect_stdout

import pytest

from services.cli import measurement, output
from services.cli.output import Column


class Terminal(io.StringIO):
    """A stdout that a person looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Give a terminal of 60 columns, to redirect stdout to."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


@pytest.mark.parametrize(
    ("rate_bps", "shown"),
    [(None, ""), (941_200_000, "941.2"), (2_500_000_000, "2,500.0"), (9_420_000, "9.42"), (12_345, "0.0123"), (10_000_000, "10.0")],
)
def test_rates_are_in_megabits(rate_bps: float | None, shown: str) -> None:
    """A slow line keeps its digits; nothing measured is nothing shown, never 0."""
    assert output.megabits(rate_bps) == shown


def test_times_are_in_milliseconds() -> None:
    """To a tenth; nothing measured is nothing shown."""
    assert [output.milliseconds(time_s) for time_s in (None, 0.01234, 1.5)] == ["", "12.3", "1,500.0"]


def test_a_pipe_gets_tabs_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    """No colour, no box, no cut: one line a row, one tab between cells, whatever the cells hold."""
    output.table([Column("a"), Column("b", width=30)], [["x\ty", "failed"], ["\x1b[31mred\n", None], ["w" * 300, 5]])
    assert capsys.readouterr().out == f"a\tb\nx y\tfailed\n [31mred \t\n{'w' * 300}\t5\n"


def test_a_terminal_gets_colour_and_no_control_characters(terminal: Terminal) -> None:
    """The word of a status is coloured; what a far server calls itself cannot move the cursor or pass for markup."""
    with redirect_stdout(terminal):
        output.table([Column("status"), Column("server", last=True)], [["failed", "\x1b]0;title\x07[red]me[/red]"]])
    shown = terminal.getvalue()
    assert "\x1b[31mfailed" in shown
    assert "[red]me[/red]" in shown
    assert "\x1b]0;" not in shown
    assert "\x07" not in shown


@pytest.mark.parametrize("width", ["60", "20"])
def test_only_the_last_column_is_cut_short(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    """A long reason costs no other column its place, however narrow the terminal."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", width)
    with redirect_stdout(terminal):
        output.table([Column("site", 8), Column("status", 9), Column("reason", last=True)], [["home", "failed", "because " * 20]])
    line = terminal.getvalue().splitlines()[1]
    assert line.startswith("home      failed     because")
    assert line.rstrip().endswith("…")
    assert len(line) == max(int(width), 21 + 40)


def test_rows_written_one_by_one_stay_in_line(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--follow` writes a table of one row at a time: the widths hold it together."""
    monkeypatch.setenv("NO_COLOR", "1")
    columns = [Column("site", 8), Column("rate", 6, right=True)]
    with redirect_stdout(terminal):
        output.table(columns, [])
        output.table(columns, [["home", "9.1"]], header=False)
        output.table(columns, [["a-site", "941.2"]], header=False)
    lines = [line.rstrip() for line in terminal.getvalue().splitlines() if line.strip()]
    assert [len(line) for line in lines[1:]] == [16, 16]
    assert lines[1].startswith("home")


def test_pairs_leave_out_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that was not measured has a line."""
    output.pairs({"download": "5 Mbit/s", "upload": "", "jitter": None, "revision": 0})
    assert capsys.readouterr().out == "download\t5 Mbit/s\nrevision\t0\n"


def test_a_measurement_in_words() -> None:
    """Rates, volumes, times, loss and both ends, each with its unit; a loss of nothing is worth saying."""
    described = measurement.describe(
        {
            "download_bps": 94_100_000.0,
            "download_bytes": 118_200_000,
            "upload_bps": 9_000_000.0,
            "upload_bytes": None,
            "latency_s": 0.0123,
            "jitter_s": None,
            "packet_loss": 0.0,
            "download_latency_s": 0.05,
            "responsiveness_rpm": 1_100.4,
            "bufferbloat_grade": "B",
            "limited_by": "line",
            "server": {"sponsor": "Example", "name": "Berlin", "country_code": "DE", "distance_m": 12_345.0},
            "client": None,
        }
    )
    assert described == {
        "download": "94.1 Mbit/s (118.2 MB)",
        "upload": "9 Mbit/s",
        "latency": "12.3 ms",
        "jitter": "",
        "packet loss": "0.0%",
        "under load": "download 50.0 ms, 1,100 round trips a minute, grade B",
        "limited by": "line",
        "confidence": "",
        "server": "Example, Berlin, DE, 12 km away",
        "client": "",
    }


def test_a_server_known_by_its_host_alone() -> None:
    """Engines that know no sponsor still say where they measured to; nothing known is nothing shown."""
    assert measurement.server({"host": "test.example", "distance_m": None}) == "test.example"
    assert measurement.server(None) == measurement.server({}) == ""
