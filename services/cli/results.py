"""The command results: what was measured."""

import sys
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from services.cli import api, measurement, output, values
from services.cli.follow import follow
from services.cli.options import Json
from services.cli.output import Column

COLUMNS = (
    *(Column("due", 19), Column("site", 8), Column("schedule", 10), Column("engine", 9), Column("status", 9)),
    *(Column("down Mbit/s", 11, right=True), Column("up Mbit/s", 9, right=True), Column("latency ms", 10, right=True)),
    Column("server or reason", last=True),
)
USUAL_LIMIT = 20


class Status(StrEnum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    MISSED = "missed"


Moment = Annotated[datetime | None, typer.Option(parser=values.moment, metavar="WHEN", help="Due at or after: 7d (ago), 2026-03-29.")]
End = Annotated[datetime | None, typer.Option(parser=values.moment, metavar="WHEN", help="Due before.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Look")(results)


def results(
    *,
    site: Annotated[str | None, typer.Option(help="Only of this site.")] = None,
    line: Annotated[str | None, typer.Option(help="Only of this line.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Only of this schedule.")] = None,
    engine: Annotated[str | None, typer.Option(help="Only of this engine.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only those that ended so.")] = None,
    since: Moment = None,
    until: End = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"At most so many. By default {USUAL_LIMIT}; --csv always writes all.", show_default=False)
    ] = None,
    follow_: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is measured from now on, until Ctrl-C.")] = False,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV with every column, oldest first.")] = False,
) -> None:
    """Show what was measured, newest first; with --follow the newest is last.

    Rates are in Mbit/s and times in ms; JSON and CSV have bit/s and seconds.
    A time without a zone is local.

    [bold]Examples[/bold]
      refresher results --since 7d --status failed
      refresher results --follow
      refresher results --since 30d --csv > month.csv
      refresher results --limit 500 --json | jq .download_bps
    """
    _refuse_contradictions(limit, until, following=follow_, json=json, csv=csv)
    client = api.connect()
    filters: dict[str, object] = {"site": site, "line": line, "schedule": schedule, "engine": engine, "status": status}
    period: dict[str, object] = {"from": since and since.isoformat(), "to": until and until.isoformat()}
    if csv:
        with client.export(format="csv", **filters, **period) as chunks:
            for chunk in chunks:
                sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    found = api.pages(client, limit or USUAL_LIMIT, {**filters, **period})
    if follow_:
        recent = list(found)
        _write([], json=json, header=True)
        for result in follow(client, filters, since, recent):
            _write([result], json=json, header=False)
    else:
        _write(found, json=json, header=True)


def _refuse_contradictions(limit: int | None, until: datetime | None, *, following: bool, json: bool, csv: bool) -> None:
    if csv and (json or following or limit):
        raise typer.BadParameter("it writes everything in the period, once: leave --json, --follow and --limit away.", param_hint="'--csv'")
    if following and until:
        raise typer.BadParameter("it does not end: leave --until away.", param_hint="'--follow'")


def _write(found: Iterable[dict[str, Any]], *, json: bool, header: bool) -> None:
    if json:
        for result in found:
            output.write_json(result)
    else:
        output.table(COLUMNS, [_row(result) for result in found], header=header)


def _row(result: dict[str, Any]) -> list[str]:
    failure = result["failure"]
    return [
        output.local_time(result["due_at"]),
        result["site"],
        result["schedule"] or "-",
        result["engine"],
        result["status"],
        output.megabits(result["download_bps"]),
        output.megabits(result["upload_bps"]),
        output.milliseconds(result["latency_s"]),
        f"{failure['kind']}: {failure['message']}" if failure else measurement.server(result["server"]),
    ]
