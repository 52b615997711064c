"""The commands backup and restore: everything that cannot be measured again, in one file."""

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from services.cli import output, target
from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from services.cli.archive import Backup

PANEL = "Run the system"

File = Annotated[Path, typer.Argument(metavar="FILE", allow_dash=True, help="Where; `-` is the standard output or input.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel=PANEL)(backup)
    app.command(rich_help_panel=PANEL)(restore)


def backup(file: File) -> None:
    """Save all results and schedules in one file, while the system runs.

    The rows are those of one moment. REFRESHER_DATABASE_URL and
    REFRESHER_NATS_URL say where the system is; unset, it is a running
    `refresher up`.

    [bold]Examples[/bold]
      refresher backup refresher.tar.gz
      refresher backup - | ssh elsewhere 'cat > refresher.tar.gz'
    """
    holds = asyncio.run(_back_up(None if str(file) == "-" else file))
    output.say(f"Saved {_told(holds)}.")


def restore(
    file: File,
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Remove the results and schedules that are there.")] = False,
) -> None:
    """Bring back what `refresher backup` saved, on an empty system.

    The file is read to its end and checked before anything is changed. All
    rows come back, or none. The schema is made as it was when they were
    saved, and then brought up to date.

    [bold]Examples[/bold]
      refresher restore refresher.tar.gz
      refresher restore --replace refresher.tar.gz
    """
    from services.cli.archive import Backup

    with _opened(file) as opened:
        whole = Backup(opened, "the input" if str(file) == "-" else str(file))
        asyncio.run(_restore(whole, replace=replace))
    output.say(f"Restored {_told(whole.holds)}.")


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    if str(file) == "-":
        with tempfile.TemporaryFile() as kept:  # it is read twice: the first time to check it
            shutil.copyfileobj(sys.stdin.buffer, kept)
            yield kept
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    with opened:
        yield opened


def _told(holds: dict[str, Any]) -> str:
    return f"{holds['tables']['results']['rows']:,} results and {holds['schedules']:,} schedules"


async def _back_up(path: Path | None) -> dict[str, Any]:
    from services.cli import postgres, saved_rows, saved_schedules
    from services.cli.archive import writing
    from services.cli.checks import bus

    told = {"made_by": version("refresher"), "made_at": datetime.now(UTC).isoformat(timespec="seconds")}
    async with bus.connection() as client, postgres.connection() as connection:
        with writing(path, told) as writer:
            with bus.reached(target.nats_url()):
                schedules = await saved_schedules.save(client.jetstream(timeout=5), writer)
            holds = {"schedules": schedules, **await saved_rows.save(connection, writer)}
            writer.finish(holds)
    return holds


async def _restore(whole: "Backup", *, replace: bool) -> None:
    from services.cli import postgres, saved_rows, saved_schedules
    from services.cli.checks import bus

    async with bus.connection() as client, postgres.connection() as connection:
        js = client.jetstream(timeout=5)
        with bus.reached(target.nats_url()):
            await saved_schedules.prepare(js, replace=replace)
        async with saved_rows.loaded(connection, whole, replace=replace):
            # before the commit: without the bus there are neither rows nor schedules
            with bus.reached(target.nats_url()):
                await saved_schedules.load(js, whole)
