"""The command probe: one test in this terminal, without any server."""

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import measurement, output, values
from services.cli.meter import meter
from services.cli.options import EngineOptions, Json

if TYPE_CHECKING:
    from shared.events import Measurement


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Measure")(probe)


def probe(
    engine: Annotated[str | None, typer.Argument(help="The engine; `--list` names those that are installed.", show_default=False)] = None,
    *,
    option: EngineOptions = None,
    json: Json = False,
    list_: Annotated[bool, typer.Option("--list", help="Name the engines that are installed, and stop.")] = False,
) -> None:
    """Measure once, here and now; nothing is stored and no server is needed.

    A test that fails says why on stderr and exits with 1. Ctrl-C stops it.

    [bold]Examples[/bold]
      refresher probe speedtest
      refresher probe noop --option seconds=2 --json
    """
    from services.runner import probes

    if list_:
        output.write("".join(f"{name}\n" for name in probes.names()))
        return
    if engine is None:
        raise typer.BadParameter(f"name one of {', '.join(probes.names())}.", param_hint="'ENGINE'")
    measured = asyncio.run(_measure(engine, values.options(option or [])))
    if json:
        output.write(measured.model_dump_json() + "\n")
    else:
        output.pairs({"engine": f"{engine} {measured.engine_version or ''}".strip(), **measurement.describe(measured.model_dump())})


async def _measure(engine: str, options: dict[str, Any]) -> "Measurement":
    from services.runner import probes

    loaded = probes.load(engine)
    with meter() as report:
        running = asyncio.ensure_future(loaded.run(options, report))
        # as Ctrl-C does: an engine that is cancelled leaves no process behind, one that is killed might
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
        try:
            return await running
        except asyncio.CancelledError:
            if (this := asyncio.current_task()) and this.cancelling():  # Ctrl-C
                raise
            raise typer.Exit(128 + signal.SIGTERM) from None
