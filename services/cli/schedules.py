"""The commands under `refresher schedules`."""

from typing import Annotated, Any

import typer

from services.cli import output, values
from services.cli.api import Api, connect, path
from services.cli.options import EngineOptions, Json
from services.cli.output import Column

app = typer.Typer(no_args_is_help=True, help="See and change what is measured when.")

Name = Annotated[str, typer.Argument(help="The name of the schedule.")]
COLUMNS = (Column("name"), Column("when"), Column("sites"), Column("engine"), Column("state"), Column("next due", last=True))


@app.command("list")
def list_(*, json: Json = False) -> None:
    """List every schedule and when it is due next.

    A value in the bucket that is no schedule is named on stderr.
    """
    answer = connect().get("/schedules")
    if json:
        for each in answer["items"]:
            output.write_json(each)
    else:
        output.table(COLUMNS, [_row(each) for each in answer["items"]])
    if not answer["items"]:
        output.say("There is no schedule yet: refresher schedules add hourly --every 1h")
    for each in answer["invalid"]:
        output.say(f"{output.clean(each['name'])} is no schedule and is ignored: {output.clean(each['reason'])}")


@app.command()
def show(name: Name, *, json: Json = False) -> None:
    """Show everything about one schedule."""
    schedule = connect().get(path("schedules", name))
    if json:
        output.write_json(schedule)
        return
    options = " ".join(f"{key}={value}" for key, value in schedule["options"].items())
    columns = ("name", "when", "sites", "engine", "state", "next due")
    output.pairs(
        {
            **dict(zip(columns, _row(schedule), strict=True)),
            "options": options,
            "start within": values.duration(schedule["start_within_s"]),
            "active since": output.local_time(schedule["active_since"]),
            "revision": schedule["revision"],
        }
    )


@app.command()
def add(
    name: Name,
    *,
    every: Annotated[
        int | None, typer.Option(parser=values.duration_s, metavar="DURATION", help="Measure every so often: 15m, 1h, 1d.")
    ] = None,
    phase: Annotated[
        int | None,
        typer.Option(
            parser=values.duration_s,
            metavar="DURATION",
            help="With --every: how long after the full period (counted from 1970, UTC). By default spread, so that not all test at once.",
        ),
    ] = None,
    cron: Annotated[str | None, typer.Option(metavar="'M H D M W'", help="Measure when these five fields say so.")] = None,
    zone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="With --cron: the time zone, such as Europe/Berlin. By default UTC.")
    ] = None,
    engine: Annotated[str, typer.Option(help="What measures.")] = "speedtest",
    site: Annotated[list[str] | None, typer.Option(help="Where; several times for several sites. By default home.")] = None,
    option: EngineOptions = None,
    paused: Annotated[bool, typer.Option("--paused", help="Add it, but do not start it yet.")] = False,
    start_within: Annotated[
        int | None,
        typer.Option(
            parser=values.duration_s, metavar="DURATION", help="A test that cannot start so soon is recorded as missed. By default 1h."
        ),
    ] = None,
) -> None:
    """Add a schedule; it applies within a second.

    It measures at an interval (--every) or as the clock of a zone says (--cron).

    [bold]Examples[/bold]
      refresher schedules add hourly --every 1h
      refresher schedules add nightly --cron "0 3 * * *" --zone Europe/Berlin
      refresher schedules add both --every 15m --site home --site office
      refresher schedules add alive --engine noop --every 30s --option seconds=1
    """
    spec = {
        "name": name,
        "timing": _timing(every, phase, cron, zone),
        "engine": engine,
        "sites": site,
        "enabled": not paused,
        "options": values.options(option or []),
        "start_within_s": start_within,
    }
    _say("Added", connect().post("/schedules", {key: value for key, value in spec.items() if value is not None}))


@app.command()
def pause(name: Name) -> None:
    """Stop measuring until it is resumed; what would have been due meanwhile is not caught up."""
    _say("Paused", connect().post(path("schedules", name, "pause")))


@app.command()
def resume(name: Name) -> None:
    """Measure again, from now on."""
    _say("Resumed", connect().post(path("schedules", name, "resume")))


@app.command()
def remove(name: Name) -> None:
    """Remove a schedule; its results stay."""
    api: Api = connect()
    api.delete(path("schedules", name))
    output.say(f"Removed {name}.")


def _timing(every: int | None, phase: int | None, cron: str | None, zone: str | None) -> dict[str, Any]:
    if (every is None) == (cron is None):
        raise typer.BadParameter("say either --every 1h or --cron '0 3 * * *'.", param_hint="'--every' / '--cron'")
    if every is None:
        if phase is not None:
            raise typer.BadParameter("it belongs to --every; the fields of --cron say when.", param_hint="'--phase'")
        return {"kind": "cron", "expression": cron, **({"zone": zone} if zone else {})}
    if zone is not None:
        raise typer.BadParameter("it belongs to --cron; --every counts elapsed time.", param_hint="'--zone'")
    return {"kind": "interval", "every_s": every, **({} if phase is None else {"phase_s": phase})}


def _when(timing: dict[str, Any]) -> str:
    if timing["kind"] == "cron":
        return f"{timing['expression']} ({timing['zone']})"
    phase = "" if timing.get("phase_s") is None else f", {values.duration(timing['phase_s'])} after the full period"
    return f"every {values.duration(timing['every_s'])}{phase}"


def _row(schedule: dict[str, Any]) -> list[str]:
    state = "active" if schedule["enabled"] else "paused"
    sites = ", ".join(schedule["sites"])
    due = output.local_time(schedule["next_due_at"])
    return [schedule["name"], _when(schedule["timing"]), sites, schedule["engine"], state, due]


def _say(what: str, schedule: dict[str, Any]) -> None:
    due = f"next due {schedule['next_due_at']}" if schedule["next_due_at"] else "not due while it is paused"
    output.say(f"{what} {schedule['name']}: {_when(schedule['timing'])}, {due}.")
