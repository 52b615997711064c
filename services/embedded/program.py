"""A program to run as a child process, and the files it needs to find."""

import json
import os
import secrets
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from shared.errors import ConfigurationError


@dataclass(frozen=True)
class Program:
    """What is needed to start a child process."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    """Set on top of this process's own."""
    user: str | None = None
    """The account to run as; None for this process's own."""
    log: Path | None = None
    """Where its output goes; None for this process's own."""
    stop_signal: int = 15


def free_port(wanted: int | None = None) -> int:
    """Return `wanted` if it is free on loopback, else any port that is."""
    for port in (wanted, 0) if wanted else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError("no free port on 127.0.0.1")


def wanted_port(variable: str, told: int | None = None) -> int | None:
    """Return the port that a person asked for, by a flag or the environment variable; None when any will do.

    Raises: ConfigurationError when it is no port, or taken.
    """
    value = told or os.environ.get(variable)
    if not value or value == "0":
        return None
    try:
        port = int(value)
    except ValueError:
        port = -1
    if not 0 < port < 65_536:
        raise ConfigurationError(f"{variable} is {value!r}: a port is a number from 1 to 65535")
    if free_port(port) != port:
        raise ConfigurationError(f"port {port} is taken by another program: choose another ({variable}), or none for a free one")
    return port


def remembered_port(data: Path, name: str, preferred: int | None = None) -> int:
    """Return the port that `name` had the last time, so that bookmarks and clients keep working, unless it is taken."""
    path = data / "ports.json"
    ports: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    ports[name] = free_port(ports.get(name) or preferred)
    path.write_text(json.dumps(ports))
    return ports[name]


def remembered_secret(data: Path, name: str) -> str:
    """Return the password `name`, made from 256 random bits when it is first asked for; only the owner can read the file."""
    path = data / f"{name}.secret"
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
    return path.read_text()


def beside_python(name: str) -> Path:
    """Return where the scripts of this Python environment are installed."""
    return Path(sys.executable).parent / name


def data_directory() -> Path:
    """Return where the embedded system keeps its data: `REFRESHER_DATA_DIR`, else where this account's data belongs.

    Root's is under /var/lib: PostgreSQL will not run as root, and other accounts may not enter root's home.
    """
    if told := os.environ.get("REFRESHER_DATA_DIR"):
        return Path(told).expanduser().resolve()
    if os.geteuid() == 0:
        return Path("/var/lib/refresher")
    return platformdirs.user_data_path("refresher", appauthor=False)
