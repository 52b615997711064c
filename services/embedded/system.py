"""Which programs make up a whole system, and where they are to be found once they run."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from services.embedded import nats, postgres
from services.embedded.program import Program, remembered_port, wanted_port

API_PORT = 8470


@dataclass(frozen=True)
class System:
    """The servers and services of one data directory, in the order in which they start."""

    servers: tuple[Program, ...]
    services: tuple[Program, ...]
    nats_url: str
    database_url: str
    ports: dict[str, int]

    @property
    def api_url(self) -> str:
        """Where the API is."""
        return self.url("api")

    def url(self, service: str) -> str:
        """Return where a service answers."""
        return f"http://127.0.0.1:{self.ports[service]}"

    def write(self, path: Path) -> None:
        """Write down where everything is, for the command line; passwords are in it, so only the owner can read it."""
        path.unlink(missing_ok=True)
        where = {"pid": os.getpid(), "nats_url": self.nats_url, "database_url": self.database_url, "api_url": self.api_url}
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(where, file)


def assemble(data: Path, api_port: int | None) -> System:
    """Prepare the embedded servers (those that the environment does not name) and the four services.

    Raises: ConfigurationError when a server cannot run here.
    """
    nats_url, database_url = os.environ.get("REFRESHER_NATS_URL"), os.environ.get("REFRESHER_DATABASE_URL")
    servers: list[Program] = []
    if not database_url:
        database = postgres.prepare(data)
        servers.append(database.program)
        database_url = database.url
    if not nats_url:
        bus = nats.prepare(data)
        servers.append(bus.program)
        nats_url = bus.url
    ports = {"api": wanted_port("REFRESHER_API_PORT", api_port) or remembered_port(data, "api", API_PORT)}
    for offset, name in enumerate(("scheduler", "runner", "recorder"), 1):
        ports[name] = wanted_port(f"REFRESHER_{name.upper()}_PORT") or remembered_port(data, name, API_PORT + offset)
    common = {"REFRESHER_NATS_URL": nats_url, "REFRESHER_DATABASE_URL": database_url}
    services = tuple(
        Program(name, (sys.executable, "-m", f"services.{name}"), {**common, f"REFRESHER_{name.upper()}_PORT": str(ports[name])})
        for name in ("recorder", "runner", "api", "scheduler")
    )
    return System(tuple(servers), services, nats_url, database_url, ports)
