"""Which programs make up a whole system, and where they are to be found once they run."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from services.embedded import nats, postgres
from services.embedded.program import Program, known_secret, remembered_port, wanted_port

API_PORT = 8470
NATS_VARIABLE, DATABASE_VARIABLE = "REFRESHER_NATS_URL", "REFRESHER_DATABASE_URL"


@dataclass(frozen=True)
class System:
    """The servers and services of one data directory, in the order in which they start."""

    servers: tuple[Program, ...]
    services: tuple[Program, ...]
    nats_url: str
    database_url: str
    ports: dict[str, int]
    foreign: tuple[str, ...]
    """The servers of others that are used, for messages: the variable that names each and its address, without password."""

    @property
    def api_url(self) -> str:
        """Where the API is."""
        return self.url("api")

    def url(self, service: str) -> str:
        """Return where a service answers: loopback, unless its setting names one address to listen at."""
        host = os.environ.get(f"REFRESHER_{service.upper()}_HOST") or "127.0.0.1"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - every address: loopback is one of them
        return f"http://{f'[{host}]' if ':' in host else host}:{self.ports[service]}"

    def write(self, path: Path) -> None:
        """Write down where everything is, for the command line; passwords are in it, so only the owner can read it."""
        path.unlink(missing_ok=True)
        where = {"pid": os.getpid(), "nats_url": self.nats_url, "database_url": self.database_url, "api_url": self.api_url}
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(where, file)


def assemble(data: Path) -> System:
    """Prepare the embedded servers (those that the environment does not name) and the four services.

    Raises: ConfigurationError when a server cannot run here.
    """
    nats_url, database_url = _foreign(data, "nats", NATS_VARIABLE), _foreign(data, "postgres", DATABASE_VARIABLE)
    named = ((NATS_VARIABLE, nats_url), (DATABASE_VARIABLE, database_url))
    foreign = tuple(f"{variable} ({_address(url)})" for variable, url in named if url)
    servers: list[Program] = []
    if not database_url:
        database = postgres.prepare(data)
        servers.append(database.program)
        database_url = database.url
    if not nats_url:
        bus = nats.prepare(data)
        servers.append(bus.program)
        nats_url = bus.url
    ports = {"api": wanted_port("REFRESHER_API_PORT") or remembered_port(data, "api", API_PORT)}
    for offset, name in enumerate(("scheduler", "runner", "recorder"), 1):
        ports[name] = wanted_port(f"REFRESHER_{name.upper()}_PORT") or remembered_port(data, name, API_PORT + offset)
    common = {NATS_VARIABLE: nats_url, DATABASE_VARIABLE: database_url}
    services = tuple(
        Program(name, (sys.executable, "-m", f"services.{name}"), {**common, f"REFRESHER_{name.upper()}_PORT": str(ports[name])})
        for name in ("recorder", "runner", "api", "scheduler")
    )
    return System(tuple(servers), services, nats_url, database_url, ports, foreign)


def _foreign(data: Path, name: str, variable: str) -> str | None:
    """Return the server that the environment names, unless it is our own: `refresher env` put that there, and it may be stale."""
    url, secret = os.environ.get(variable), known_secret(data, name)
    return None if url and secret and f":{secret}@" in url else url


def _address(url: str) -> str:
    """Return the host in a URL of whatever form; nothing else of it can be told, since a password may be anywhere."""
    try:
        return (urlsplit(url).hostname or "").partition(",")[0] or "no host named"
    except ValueError:
        return "no URL"
