"""The commands that run the system: up, run, migrate, env."""

import asyncio
import os
import shlex
import sys
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from services.cli import output, target
from shared.errors import ConfigurationError

PANEL = "Run the system"


class ServiceName(StrEnum):
    """The services that run on their own."""

    SCHEDULER = "scheduler"
    RUNNER = "runner"
    RECORDER = "recorder"
    API = "api"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel=PANEL)(up)
    app.command(rich_help_panel=PANEL)(run)
    app.command(rich_help_panel=PANEL)(migrate)
    app.command(rich_help_panel=PANEL)(env)


def up(
    *,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="REFRESHER_DATA_DIR",
            help="Where the data is kept; made if it is not there. By default where this account's data belongs.",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="The port of the API; by default the one of last time, at first 8470.")
    ] = None,
) -> None:
    """Start everything on this machine: NATS, PostgreSQL and the four services.

    What dies is started again; Ctrl-C stops all of it in order. The first
    start schedules a speed test every hour, and runs one at once. With
    REFRESHER_NATS_URL or REFRESHER_DATABASE_URL set, it uses those servers
    instead of its own.

    [bold]Examples[/bold]
      refresher up
      refresher up --data-dir ~/speed --port 8080
    """
    if data_dir:
        os.environ["REFRESHER_DATA_DIR"] = str(data_dir)
    if port:
        os.environ["REFRESHER_API_PORT"] = str(port)
    # another program instead of this one: it stays for months, and what a command line imports is 10 MB
    os.execv(sys.executable, (sys.executable, "-m", "services.embedded"))  # noqa: S606 - there is no shell to be had


def run(service: Annotated[ServiceName, typer.Argument(help="Which one.")]) -> None:
    """Run one service in the foreground, as a supervisor or a container does.

    It reads REFRESHER_NATS_URL, REFRESHER_DATABASE_URL and its own settings
    from the environment and logs to stderr.

    [bold]Examples[/bold]
      REFRESHER_SITE=office refresher run runner
      eval "$(refresher env)"; refresher run recorder
    """
    import_module(f"services.{service}.__main__").main()


def migrate(*, check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 if any is pending.")] = False) -> None:
    """Bring the database's schema up to date.

    It applies the pending migrations, each in its own transaction, and names
    them; several at once do no harm. REFRESHER_DATABASE_URL says where the
    database is; unset, it is the one of a running `refresher up`.

    [bold]Examples[/bold]
      refresher migrate
      refresher migrate --check
    """
    names = asyncio.run(_migrate(check=check))
    for name in names:
        output.write(f"{'pending' if check else 'applied'}\t{name}\n")
    if not names:
        output.say("The schema is up to date.")
    raise typer.Exit(1 if check and names else 0)


async def _migrate(*, check: bool) -> list[str]:
    from services.cli import postgres
    from shared import migrate as migrations

    async with postgres.connection() as connection:
        return await (migrations.pending(connection) if check else migrations.migrate(connection))


def env() -> None:
    """Print where the running system is, for the shell and for the NATS command line.

    The URLs hold the passwords. NATS_URL is what the `nats` command reads.

    [bold]Examples[/bold]
      eval "$(refresher env)"
      nats stream ls
    """
    if not target.is_known():
        raise ConfigurationError("no system is running here: start one with `refresher up`, or set REFRESHER_API_URL and its like.")
    urls = {"REFRESHER_NATS_URL": target.nats_url(), "REFRESHER_DATABASE_URL": target.database_url(), "REFRESHER_API_URL": target.api_url()}
    for name, url in {**urls, "NATS_URL": urls["REFRESHER_NATS_URL"]}.items():
        output.write(f"export {name}={shlex.quote(url)}\n")
    if sys.stdout.isatty():
        output.say('These lines hold passwords. Use them with: eval "$(refresher env)"')
