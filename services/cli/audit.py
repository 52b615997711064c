"""The command audit: whether every instant that was due has exactly one row."""

from datetime import datetime
from typing import Annotated, Any

import typer

from services.cli import output, values
from services.cli.api import connect
from services.cli.options import Json
from services.cli.output import Column

COLUMNS = (Column("finding"), Column("due", 19), Column("site"), Column("schedule"), Column("trigger"), Column("run"))
KINDS = ("missing", "duplicated", "unexpected")

From = Annotated[
    datetime | None,
    typer.Option("--from", parser=values.moment, metavar="WHEN", help="Due at or after: 7d (ago), 2026-03-29. By default 1d."),
]
To = Annotated[datetime | None, typer.Option("--to", parser=values.moment, metavar="WHEN", help="Due before. By default now.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Look")(audit)


def audit(
    *,
    since: From = None,
    until: To = None,
    schedule: Annotated[str | None, typer.Option(help="Only of this schedule.")] = None,
    site: Annotated[str | None, typer.Option(help="Only of this site.")] = None,
    json: Json = False,
) -> None:
    """Check that every run that was due is in the results, once.

    What was due is worked out from the schedules as they were at the time, 31
    days at most. `missing` runs were due and have no row, `duplicated` rows
    stand beside another one of the same run, `unexpected` rows are of runs
    that nobody asked for. Exits with 1 when there is any.

    [bold]Examples[/bold]
      refresher audit
      refresher audit --from 7d --schedule hourly
    """
    period = {"from": since and since.isoformat(), "to": until and until.isoformat()}
    found = connect().get("/audit", **period, schedule=schedule, site=site)
    if json:
        output.write_json(found)
    else:
        _write(found)
    raise typer.Exit(int(any(found[kind]["count"] for kind in KINDS)))


def _write(found: dict[str, Any]) -> None:
    period = {"from": output.local_time(found["from"]), "to": output.local_time(found["to"])}
    output.pairs(
        {
            **period,
            **{name: f"{found[name]:,}" for name in ("due", "rows", "open")},
            **{kind: f"{found[kind]['count']:,}" for kind in KINDS},
        }
    )
    rows = [_row(kind, run) for kind in KINDS for run in found[kind]["items"]]
    if rows:
        output.table(COLUMNS, rows)
    if any(found[kind]["count"] > len(found[kind]["items"]) for kind in KINDS):
        output.say("These are the first of each kind: a shorter period shows the others.")


def _row(kind: str, run: dict[str, Any]) -> list[str]:
    return [kind, output.local_time(run["due_at"]), run["site"], run["schedule"] or "-", run["trigger"], run["run_id"]]
