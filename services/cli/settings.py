"""The command settings: every environment variable, generated from the services' own settings."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import output
from services.cli.output import Column

if TYPE_CHECKING:
    from shared.settings import LogSettings

COLUMNS = (Column("variable"), Column("default"), Column("used by"), Column("here"), Column("what it is", last=True))
OF_THE_COMMAND_LINE = (
    ("REFRESHER_DATA_DIR", "by account", "command line", "Where `refresher up` keeps its data."),
    ("REFRESHER_API_URL", "the one on this machine", "command line", "The API that the command line talks to."),
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("settings", rich_help_panel="Run the system")(settings)


def settings(
    *, markdown: Annotated[bool, typer.Option("--markdown", help="Write the table of the README, without this machine's values.")] = False
) -> None:
    """Show every setting: its environment variable, default, and what is set here.

    Values that may hold a password are not shown.
    """
    if markdown:
        output.write(f"{as_markdown()}\n")
        return
    rows = [(name, default, users, _here(name), told) for name, default, users, told in table()]
    output.table(COLUMNS, rows)


def table() -> list[tuple[str, str, str, str]]:
    """Return variable, default, users and meaning of every setting."""
    from services.api.settings import ApiSettings
    from services.recorder.settings import RecorderSettings
    from services.runner.settings import RunnerSettings
    from services.scheduler.settings import SchedulerSettings
    from services.testserver.settings import TestserverSettings

    kinds: dict[str, type[LogSettings]] = {
        "scheduler": SchedulerSettings,
        "runner": RunnerSettings,
        "recorder": RecorderSettings,
        "api": ApiSettings,
        "testserver": TestserverSettings,
    }
    users: dict[str, list[str]] = {}
    fields: dict[str, Any] = {}
    for service, kind in kinds.items():
        for name, field in kind.model_fields.items():
            users.setdefault(name, []).append(service)
            fields[name] = field
    rows = [
        (
            f"REFRESHER_{name.upper()}",
            "" if field.default in (None, ()) else str(field.default),
            "all" if len(users[name]) == len(kinds) else ", ".join(users[name]),
            _told(field),
        )
        for name, field in fields.items()
    ]
    return [*rows, *OF_THE_COMMAND_LINE]


def as_markdown() -> str:
    """Return the table as Markdown."""
    lines = ["| variable | default | used by | what it is |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {f'`{default}`' if default else ''} | {users} | {told} |" for name, default, users, told in table()]
    return "\n".join(lines)


def _told(field: Any) -> str:
    return " ".join((field.description or "").split())


def _here(name: str) -> str:
    value = os.environ.get(name, "")
    return "set" if value and name.endswith(("_NATS_URL", "_DATABASE_URL")) else value
