"""The commands under `refresher schedules`."""

from typing import Annotated, Any

import typer

from services.cli import output, timing, values
from services.cli.api import Api, connect, path
from services.cli.options import EngineOptions, Json
from services.cli.output import Column

app = typer.Typer(no_args_is_help=True, help="See and change what is measured when.")

WHEN = "When"

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
            **_rest(schedule),
            "active since": output.local_time(schedule["active_since"]),
            "revision": schedule["revision"],
        }
    )


@app.command()
def add(
    name: Name,
    *,
    every: Annotated[
        int | None,
        typer.Option(parser=values.duration_s, metavar="DURATION", help="Measure every so often: 15m, 1h, 1d.", rich_help_panel=WHEN),
    ] = None,
    phase: Annotated[
        int | None,
        typer.Option(
            parser=values.duration_s,
            metavar="DURATION",
            help="With --every: how long after the full period (counted from 1970, UTC). By default spread, so that not all test at once.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="'M H D M W'", help="Measure when these five fields say so.", rich_help_panel=WHEN)
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option(
            metavar="ZONE", help="For --cron and --exclude: the time zone, such as Europe/Berlin. By default UTC.", rich_help_panel=WHEN
        ),
    ] = None,
    gap: Annotated[
        str | None,
        typer.Option(
            metavar="skip|next",
            help="With --cron: a time that the clock leaps over is left out, or runs right after. By default next.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(
            metavar="first|both",
            help="With --cron: a time that the clock shows twice runs once, or twice. By default first.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(
            parser=values.duration_s, metavar="DURATION", help="Measure at random, on average every so often.", rich_help_panel=WHEN
        ),
    ] = None,
    shortest: Annotated[
        int | None,
        typer.Option(
            parser=values.duration_s, metavar="DURATION", help="With --random: the shortest gap. By default a tenth.", rich_help_panel=WHEN
        ),
    ] = None,
    longest: Annotated[
        int | None,
        typer.Option(
            parser=values.duration_s,
            metavar="DURATION",
            help="With --random: the longest gap. By default two and a half times.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    at: Annotated[
        str | None, typer.Option(parser=values.exact_moment, metavar="TIME", help="Measure once, at this time.", rich_help_panel=WHEN)
    ] = None,
    manual: Annotated[bool, typer.Option("--manual", help="Measure only when asked to.", rich_help_panel=WHEN)] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TIMES",
            help="Never then: 'mon-fri 09:00-17:00', '22:00-06:00', 2026-12-24/2026-12-27. Several times for several.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    valid_from: Annotated[
        str | None, typer.Option("--from", parser=values.exact_moment, metavar="TIME", help="Not before.", rich_help_panel=WHEN)
    ] = None,
    valid_until: Annotated[
        str | None, typer.Option("--until", parser=values.exact_moment, metavar="TIME", help="Not from then on.", rich_help_panel=WHEN)
    ] = None,
    max_runs: Annotated[int | None, typer.Option(metavar="N", help="At each site only so many times.", rich_help_panel=WHEN)] = None,
    spread: Annotated[
        int | None,
        typer.Option(
            parser=values.duration_s,
            metavar="DURATION",
            help="Each site starts up to so much later, always the same.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    jitter: Annotated[
        int | None,
        typer.Option(
            parser=values.duration_s,
            metavar="DURATION",
            help="Each run starts up to so much later still, at random.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="What measures.")] = "speedtest",
    option: EngineOptions = None,
    fallback: Annotated[str | None, typer.Option(metavar="ENGINE", help="What measures when that failed.")] = None,
    fallback_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the fallback; several times for several.")
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="Where; several times for several sites. By default home.")] = None,
    line: Annotated[
        str | None, typer.Option(help="Which line of the sites, where they have several; any: the one that is free first.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="What the runner must have among its labels.")] = None,
    overlap: Annotated[
        str | None,
        typer.Option(
            metavar="queue_all|queue_one|skip|cancel_other",
            help="When the line is busy: wait; wait unless another one does; skip; or cut the other short.",
        ),
    ] = None,
    priority: Annotated[int | None, typer.Option(metavar="0-9", help="Of those that wait, the highest goes first. By default 5.")] = None,
    catch_up: Annotated[
        str | None, typer.Option(metavar="none|latest|all", help="What to run after the scheduler was away. By default latest.")
    ] = None,
    catch_up_within: Annotated[
        int | None, typer.Option(parser=values.duration_s, metavar="DURATION", help="How far back to catch up. By default 1d.")
    ] = None,
    start_within: Annotated[
        int | None,
        typer.Option(
            parser=values.duration_s, metavar="DURATION", help="A test that cannot start so soon is recorded as missed. By default 1h."
        ),
    ] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Add it, but do not start it yet.")] = False,
) -> None:
    """Add a schedule; it applies within a second.

    It measures at an interval (--every), as the clock of a zone says (--cron), at random (--random), once (--at), or when asked
    to (--manual).

    [bold]Examples[/bold]
      refresher schedules add hourly --every 1h
      refresher schedules add nightly --cron "0 3 * * *" --zone Europe/Berlin
      refresher schedules add both --every 15m --site home --site office
      refresher schedules add quiet --random 2h --exclude "mon-fri 09:00-17:00"
      refresher schedules add alive --engine noop --every 30s --option seconds=1
    """
    if zone and not (cron or exclude):
        raise typer.BadParameter("it belongs to --cron and --exclude; everything else counts elapsed time.", param_hint="'--zone'")
    spec = {
        "name": name,
        "timing": timing.of(
            interval={"every_s": every, "phase_s": phase},
            cron={"expression": cron, "gap": gap, "fold": fold},
            random={"mean_s": random, "min_s": shortest, "max_s": longest},
            once={"at": at},
            manual=manual,
            zone=zone,
        ),
        "exclusions": [values.exclusion(each, zone) for each in exclude or []] or None,
        "valid_from": valid_from,
        "valid_until": valid_until,
        "max_runs": max_runs,
        "spread_s": spread,
        "jitter_s": jitter,
        "engine": engine,
        "options": values.options(option or []),
        "fallback": _fallback(fallback, fallback_option),
        "sites": site,
        "line": line,
        "labels": label,
        "overlap": overlap,
        "priority": priority,
        "catch_up": catch_up,
        "catch_up_within_s": catch_up_within,
        "start_within_s": start_within,
        "enabled": not paused,
    }
    _say("Added", connect().post("/schedules", {key: value for key, value in spec.items() if value is not None}))


@app.command("next")
def next_(
    name: Name,
    *,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100, help="How many.")] = 10,
    site: Annotated[str | None, typer.Option(help="Only this one of its sites.")] = None,
    json: Json = False,
) -> None:
    """Show when a schedule is due next, and when each test starts."""
    answer = connect().get(path("schedules", name, "instants"), limit=count, **({"site": site} if site else {}))
    if json:
        for each in answer["items"]:
            output.write_json(each)
        return
    columns = (Column("due"), Column("start"), Column("site", last=True))
    rows = [[output.local_time(each["due_at"]), output.local_time(each["start_at"]), each["site"]] for each in answer["items"]]
    output.table(columns, rows)
    if len(rows) < count:
        output.say("It is not due again." if not rows else "After that it is not due again.")


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


def _fallback(engine: str | None, option: list[str] | None) -> dict[str, Any] | None:
    if engine is None:
        if option:
            raise typer.BadParameter("it belongs to --fallback.", param_hint="'--fallback-option'")
        return None
    return {"engine": engine, "options": values.options(option or [])}


def _rest(schedule: dict[str, Any]) -> dict[str, Any]:
    """Return what is not in the list, where it says something."""
    spread, jitter, fallback = schedule["spread_s"], schedule["jitter_s"], schedule["fallback"]
    told = {
        "fallback": fallback and " ".join([fallback["engine"], *(f"{key}={value}" for key, value in fallback["options"].items())]),
        "line": schedule["line"],
        "labels": ", ".join(schedule["labels"]),
        "valid from": schedule["valid_from"] and output.local_time(schedule["valid_from"]),
        "valid until": schedule["valid_until"] and output.local_time(schedule["valid_until"]),
        "at most": schedule["max_runs"] and f"{schedule['max_runs']} runs",
        "not": "; ".join(timing.exclusion(each) for each in schedule["exclusions"]),
        "spread": spread and values.duration(spread),
        "jitter": jitter and values.duration(jitter),
        "overlap": schedule["overlap"],
        "priority": schedule["priority"],
        "catch-up": f"{schedule['catch_up']} within {values.duration(schedule['catch_up_within_s'])}",
        "start within": values.duration(schedule["start_within_s"]),
    }
    return {key: value for key, value in told.items() if value or value == schedule["priority"]}


def _row(schedule: dict[str, Any]) -> list[str]:
    state = "active" if schedule["enabled"] else "paused"
    sites = ", ".join(schedule["sites"])
    due = output.local_time(schedule["next_due_at"])
    return [schedule["name"], timing.describe(schedule["timing"]), sites, schedule["engine"], state, due]


def _say(what: str, schedule: dict[str, Any]) -> None:
    due = f"next due {schedule['next_due_at']}" if schedule["next_due_at"] else "not due by itself" if schedule["enabled"] else "paused"
    output.say(f"{what} {schedule['name']}: {timing.describe(schedule['timing'])}, {due}.")
