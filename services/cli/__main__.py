"""The console script `refresher`: its commands, and how every error reaches the person."""

import errno
import os
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from services.cli import (
    audit,
    backup,
    dead,
    doctor,
    outages,
    output,
    probe,
    replay,
    results,
    run_now,
    runners,
    schedules,
    settings,
    system,
    testserver,
)
from shared.errors import ProbeError, RefresherError

EPILOG = """
[bold]First steps[/bold]
  refresher up                               start everything on this machine
  refresher run-now                          measure now and show the result
  refresher schedules add hourly --every 1h  measure every hour
  refresher results --since 7d               what was measured this week

[bold]Where the system is[/bold]
  REFRESHER_API_URL, REFRESHER_NATS_URL, REFRESHER_DATABASE_URL; where unset,
  what a running `refresher up` started; else http://127.0.0.1:8470.
  REFRESHER_DATA_DIR is where `refresher up` keeps its data.

Exit codes: 0 done, 1 failed, 2 wrong use of the command, 130 interrupted.
"""

app = typer.Typer(
    name="refresher",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


def _version(wanted: bool) -> None:
    if wanted:
        output.write(f"refresher {version('refresher')}\n")
        raise typer.Exit


@app.callback()
def refresher(
    *, _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False
) -> None:
    """Watch internet connections: scheduled speed tests over NATS JetStream, recorded in PostgreSQL."""


for module in (system, settings, probe, run_now, results, outages, runners, audit, doctor, backup, replay, testserver):
    module.register(app)
app.add_typer(schedules.app, name="schedules", rich_help_panel="Measure")
app.add_typer(dead.app, name="dead", rich_help_panel="Look")


def main() -> NoReturn:
    """Run one command and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted.

    Whatever a person can cause ends as one sentence on stderr; a traceback is a bug of ours.
    """
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        # what is left of the output would be tried once more at the end, and fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1 if error.errno == errno.EPIPE else _fail(f"the output cannot be written: {error.strerror}.")
    sys.exit(code)


_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE}


def _run(arguments: list[str]) -> int:
    try:
        "".join(arguments).encode()
        return int(app(arguments, standalone_mode=False) or 0)
    except UnicodeEncodeError:
        return _fail("an argument is not valid UTF-8 text.", 2)
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f" See: {context.command_path} --help" if context else ""
        return _fail(f"{error.format_message()}{hint}", error.exit_code) if error.format_message() else error.exit_code
    except ProbeError as error:
        return _fail(f"{error.kind}: {error.message}")
    except RefresherError as error:
        return _fail(str(error))


def _fail(message: str, code: int = 1) -> int:
    first, *details = message.splitlines() or [""]
    output.say("\n".join([f"refresher: {output.clean(first)}", *(f"  {output.clean(line)}" for line in details)]))
    return code


if __name__ == "__main__":
    main()
