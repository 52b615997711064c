"""The command run-now: ask for a run and watch it."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from services.cli import measurement, output, values
from services.cli.api import Api, connect
from services.cli.meter import meter
from services.cli.options import EngineOptions, Json
from shared.errors import RefresherError

LONGEST_S = 900
USUAL_TIMEOUT_S = 300


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run-now", rich_help_panel="Measure")(run_now)


def _timeout_s(text: str) -> int:
    seconds = values.duration_s(text)
    if not 1 <= seconds <= LONGEST_S:
        raise typer.BadParameter("it must be from 1s to 15m.")
    return seconds


def run_now(
    schedule: Annotated[str | None, typer.Argument(help="Run what this schedule says.", show_default=False)] = None,
    *,
    engine: Annotated[str | None, typer.Option(help="Without a schedule: what measures. By default speedtest.")] = None,
    site: Annotated[
        str | None, typer.Option(help="Where. By default home, or the site of the schedule; needed when it has several.")
    ] = None,
    line: Annotated[
        str | None, typer.Option(help="Without a schedule: which line of the site, where it has several; any: the one that is free first.")
    ] = None,
    option: EngineOptions = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result, or only ask for the run.")] = True,
    timeout: Annotated[
        int | None,
        typer.Option(
            parser=_timeout_s, metavar="DURATION", help="How long to wait, at most 15m; the run goes on after that. By default 5m."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run a test now, on the runner of a site, and show its result.

    The runner takes it as soon as no other test uses the line. Exits with 1 when the run failed.

    [bold]Examples[/bold]
      refresher run-now
      refresher run-now nightly --site office
      refresher run-now --engine noop --option seconds=2 --json
    """
    body = _body(schedule, engine, site, line, values.options(option or []))
    api = connect()
    if wait:
        _show(_watch(api, body, timeout or USUAL_TIMEOUT_S), json=json)
        return
    asked = api.post("/runs", body)
    if json:
        output.write_json(asked)
    else:
        output.pairs({"run": asked["run_id"], "site": asked["site"], "schedule": asked["schedule"], "engine": asked["engine"]})


def _body(schedule: str | None, engine: str | None, site: str | None, line: str | None, options: dict[str, Any]) -> dict[str, Any]:
    if schedule is None:
        return {"engine": engine or "speedtest", "site": site or "home", "line": line, "options": options}
    if engine is not None or line is not None or options:
        raise typer.BadParameter("the schedule says what runs: leave --engine, --line and --option away.", param_hint="'SCHEDULE'")
    return {"schedule": schedule, **({"site": site} if site else {})}


def _watch(api: Api, body: Mapping[str, Any], timeout_s: int) -> dict[str, Any]:
    with meter() as report, api.events("POST", "/runs", body, wait="true", timeout_s=timeout_s) as events:
        for event in events:
            if event.kind == "run":
                _warn_when_nobody_is_there(api, event.data["site"])
            elif event.kind == "progress":
                report(event.data["phase"], event.data.get("fraction"), event.data.get("rate_bps"))
            elif event.kind == "result":
                return dict(event.data)
    waited = values.duration(timeout_s)
    raise RefresherError(f"no result after {waited}: the run goes on, and `refresher results` will show it; `refresher doctor` says more.")


def _warn_when_nobody_is_there(api: Api, site: str) -> None:
    if not any(runner["site"] == site for runner in api.get("/runners")["items"]):
        output.say(f"No runner is there for site {site} yet; waiting for one (REFRESHER_SITE={site} refresher run runner).")


def _show(result: dict[str, Any], *, json: bool) -> None:
    if json:
        output.write_json(result)
    else:
        engine = f"{result['engine']} {result['engine_version'] or ''}".strip()
        output.pairs({"status": result["status"], "site": result["site"], "engine": engine, **measurement.describe(result)})
    if failure := result["failure"]:
        raise RefresherError(f"the run {result['status']}: {failure['kind']}: {failure['message']}")
