"""The command runners: who measures where."""

import typer

from services.cli import output
from services.cli.api import connect
from services.cli.options import Json
from services.cli.output import Column

COLUMNS = (
    Column("site"),
    Column("line"),
    Column("runner"),
    Column("host"),
    Column("version"),
    Column("engines"),
    Column("labels"),
    Column("busy with"),
    Column("seen"),
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Look")(runners)


def runners(*, json: Json = False) -> None:
    """List the runners that are there: their site, engines and what they are busy with.

    A runner that says nothing for three quarters of a minute is gone from the list.
    """
    items = connect().get("/runners")["items"]
    if json:
        for each in items:
            output.write_json(each)
        return
    rows = [
        [
            *(
                each["site"],
                each.get("line") or "-",
                each["id"],
                each["host"],
                each["version"],
                ", ".join(each["engines"]),
                ", ".join(each.get("labels", [])),
            ),
            *(each.get("run_id") or "", output.local_time(each["seen_at"])),
        ]
        for each in items
    ]
    output.table(COLUMNS, rows)
    if not items:
        output.say("No runner is there: start one with `refresher run runner` (REFRESHER_SITE says where it measures).")
