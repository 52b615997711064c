"""Two NATS servers of which one is a leaf of the other, and a line between them that a test may cut."""

import asyncio
import contextlib
import re
from pathlib import Path

from services.embedded.nats import binary
from services.embedded.program import Program
from tests import ports
from tests.servers import start, stop, wait_for_port

SHIPPED = Path(__file__).parents[1] / "deploy" / "nats" / "leaf.conf"


class Line:
    """A TCP line from a port of its own to another one; while it is cut, nothing passes and nobody is told."""

    def __init__(self, target: int) -> None:
        self.port = ports.take()
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Line":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def cut(self) -> None:
        """Let nothing pass, as on a line that is dead: no end of a connection, no refusal."""
        self._open.clear()

    def mend(self) -> None:
        """Let everything pass again."""
        self._open.set()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await self._open.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(back)
            ways = {asyncio.create_task(self._pipe(reader, back)), asyncio.create_task(self._pipe(there, writer))}
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            return  # nobody listens there now
        finally:
            for each in writers:
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            await self._open.wait()
            sink.write(data)
            await sink.drain()


class Server:
    """A nats-server in a directory of its own."""

    def __init__(self, directory: Path, configuration: str, port: int, **environment: str) -> None:
        directory.mkdir()
        (directory / "nats.conf").write_text(configuration)
        command = (binary(), "--config", str(directory / "nats.conf"))
        self._program = Program("nats", command, environment=environment, log=directory / "nats.log")
        self.url = f"nats://127.0.0.1:{port}"
        self._port = port
        self.start()

    def start(self) -> None:
        """Start it (again)."""
        self.process = start(self._program)
        wait_for_port(self._port)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop it."""
        stop(self.process)


def hub(directory: Path) -> tuple[Server, int]:
    """Start a hub without users, and return it and its port for leaves."""
    port, leaves = ports.take(), ports.take()
    configuration = f"""
    server_name: hub
    listen: "127.0.0.1:{port}"
    jetstream {{ store_dir: "{directory}/data", sync_interval: always, domain: hub }}
    leafnodes {{ listen: "127.0.0.1:{leaves}", no_advertise: true }}  # else a leaf goes around the line that it is given
    """
    return Server(directory, configuration, port), leaves


def leaf(directory: Path, site: str, line: Line, credential: Path | None = None) -> Server:
    """Start the server of a site as it is shipped, with its line to the hub: only paths and ports are others.

    `credential` is the directory that deploy/secrets.sh made for it; without one nobody logs in, and nothing is encrypted.
    """
    port = ports.take()
    text = configuration(directory, port, credential)
    url = f"nats-leaf://127.0.0.1:{line.port}"
    if credential:
        url = f"tls://leaf-{site}:{(credential / 'nats-leaf').read_text()}@127.0.0.1:{line.port}"
    return Server(directory, text, port, REFRESHER_SITE=f'"{site}"', REFRESHER_HUB_URL=url)


def configuration(directory: Path, port: int, credential: Path | None) -> str:
    """Return the configuration that is shipped for the server of a site, for a directory and a port of a test's own."""
    text = SHIPPED.read_text()
    for shipped, here in {
        '"0.0.0.0:4222"': f'"127.0.0.1:{port}"',
        '"0.0.0.0:8222"': f'"127.0.0.1:{ports.take()}"',
        '"/data"': f'"{directory}/data"',
        '"/run/secrets/ca.crt"': f'"{credential}/ca.crt"',
    }.items():
        assert shipped in text, shipped
        text = text.replace(shipped, here)
    return text if credential else re.sub(r"\n *tls \{[^}]*\}", "", text)
