"""The command testserver: something to test a LAN, a VPN or the way between two sites against."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("testserver", rich_help_panel="Run the system")(serve)


def serve(
    *,
    host: Annotated[
        str | None, typer.Option(help="Where to listen: addresses or names, separated by commas.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="The TCP port; 0 takes any.", show_default="8477")] = None,
    udp_port: Annotated[int | None, typer.Option(min=0, max=65_535, help="The UDP port; 0 takes any.", show_default="8478")] = None,
    udp: Annotated[bool | None, typer.Option("--udp/--no-udp", help="Echo datagrams, to measure loss.", show_default="udp")] = None,
    token_file: Annotated[Path | None, typer.Option(help="The file with the token that clients must show.")] = None,
    cert: Annotated[Path | None, typer.Option(help="The certificate, for HTTPS.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, where it is not in the same file.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Bytes of one download or upload.", show_default="10000000000")] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0.001, help="Seconds of one download or upload.", show_default="60")] = None,
    max_transfers: Annotated[int | None, typer.Option(min=1, help="Transfers of one address at once.", show_default="64")] = None,
    max_connections: Annotated[int | None, typer.Option(min=1, help="Connections in all.", show_default="500")] = None,
    max_head_bytes: Annotated[
        int | None, typer.Option(min=256, max=262_144, help="Bytes of a request's head.", show_default="16384")
    ] = None,
    idle: Annotated[float | None, typer.Option(min=0.001, help="Seconds that a connection may stand still.", show_default="10")] = None,
) -> None:
    """Be the other end of a speed test, for a LAN, a VPN, or from site to site.

    LibreSpeed's clients and the engine http measure against it. It listens on
    this machine alone unless told otherwise; every option can also be set in
    the environment (refresher settings lists them). Ctrl-C stops it.

    [bold]Examples[/bold]
      refresher testserver --host 0.0.0.0,::
      refresher testserver --host 10.8.0.1 --token-file token --cert cert.pem
    """
    from services.testserver.__main__ import run

    given = {
        "host": host,
        "port": port,
        "udp": udp,
        "udp_port": udp_port,
        "token_file": token_file,
        "certificate_file": cert,
        "key_file": key,
        "bytes": max_bytes,
        "seconds": max_seconds,
        "transfers": max_transfers,
        "connections": max_connections,
        "head_bytes": max_head_bytes,
        "idle_s": idle,
    }
    run(**{f"testserver_{name}": value for name, value in given.items() if value is not None})
