"""The command doctor: is everything there, is it as it should be, and what to do if not."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from services.cli import output, target
from services.cli.options import Json
from shared.errors import RefresherError

if TYPE_CHECKING:
    from services.cli.checks import Finding


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Look")(doctor)


def doctor(*, json: Json = False) -> None:
    """Check every connection, stream, bucket, consumer, table, service and site, and say what to do.

    It changes nothing. Exits with 1 when anything has failed; a warning alone is no failure.

    [bold]Examples[/bold]
      refresher doctor
      refresher doctor --json | jq .ok
    """
    findings = asyncio.run(_examine(show=not json))
    is_well = not any(finding.state == "failed" for finding in findings)
    if json:
        output.write_json({"ok": is_well, "findings": [asdict(finding) for finding in findings]})
    raise typer.Exit(0 if is_well else 1)


async def _examine(*, show: bool) -> "list[Finding]":
    findings = []
    async for finding in _all():
        findings.append(finding)
        if show:
            _show(finding)
    return findings


async def _all() -> "AsyncIterator[Finding]":
    from services.cli.checks import Finding, bus, database, fleet, http, reason
    from shared.settings import without_password

    try:
        async with bus.connection() as client:
            version = client.connected_server_version
            told = f"version {version.major}.{version.minor}.{version.patch} at {without_password(target.nats_url())}"
            yield Finding("nats", "ok", told)
            for check in (bus.check, fleet.check):
                async for finding in check(client):
                    yield finding
    except RefresherError as error:
        advice = "start it (`refresher up` brings its own), or set REFRESHER_NATS_URL to where it runs, with JetStream on"
        yield Finding("nats", "failed", reason(error), advice)
    async for finding in database.check():
        yield finding
    yield await http.check()


def _show(finding: "Finding") -> None:
    if not output.is_terminal():
        output.table([], [[finding.state, finding.name, finding.message, finding.advice or ""]], header=False)
        return
    line = Text()
    line.append(f"{finding.state:<8}", style=output.STATUS_STYLES[finding.state])
    line.append(f"{output.clean(finding.name)}: ", style="bold")
    line.append(output.clean(finding.message))
    if finding.advice:
        line.append(f"\n        → {finding.advice}", style="cyan")
    Console(soft_wrap=True).print(line)
