"""The command outages: when a line did not reach the internet."""

from datetime import datetime, timedelta
from typing import Annotated

import typer

from services.cli import output, values
from services.cli.api import connect
from services.cli.options import Json
from services.cli.output import Column

COLUMNS = (
    *(Column("started", 19), Column("ended", 19), Column("duration"), Column("site"), Column("line"), Column("schedule")),
    *(Column("checks", right=True), Column("kind"), Column("reason", last=True)),
)

From = Annotated[
    datetime | None,
    typer.Option("--from", parser=values.moment, metavar="WHEN", help="Due at or after: 7d (ago), 2026-03-29. By default 7d."),
]
To = Annotated[datetime | None, typer.Option("--to", parser=values.moment, metavar="WHEN", help="Due before. By default now.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Look")(outages)


def outages(
    *,
    site: Annotated[str | None, typer.Option(help="Only of this site.")] = None,
    line: Annotated[str | None, typer.Option(help="Only of this line.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Only what this schedule found.")] = None,
    since: From = None,
    until: To = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many, the newest.")] = 100,
    json: Json = False,
) -> None:
    """List when a line did not reach the internet, newest first.

    They come from a schedule with the engine connectivity, and are as exact
    as its checks are far apart. One that is open has no end yet.

    [bold]Examples[/bold]
      refresher schedules add reach --every 30s --engine connectivity
      refresher outages --from 30d
    """
    period = {"from": since and since.isoformat(), "to": until and until.isoformat()}
    items = connect().get("/outages", **period, site=site, line=line, schedule=schedule, limit=limit)["items"]
    if json:
        for each in items:
            output.write_json(each)
        return
    rows = [
        [
            *(output.local_time(each["started_at"]), "open" if each["open"] else output.local_time(each["ended_at"])),
            *(
                str(timedelta(seconds=round(each["duration_s"]))),
                each["site"],
                each["line"] or "-",
                each["schedule"] or "-",
                each["checks"],
            ),
            *(each["failure"]["kind"], each["failure"]["message"]),
        ]
        for each in items
    ]
    output.table(COLUMNS, rows)
    if not items:
        output.say("No outage was found; what looks for them is a schedule with --engine connectivity.")
