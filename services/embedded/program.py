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
    port: int | None = None
    """Where on loopback it listens once it is up, if that is to be waited for."""


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


def wanted_port(variable: str) -> int | None:
    """Return the port that a person asked for by an environment variable; None when any will do.

    Raises: ConfigurationError when it is no port, or taken.
    """
    value = os.environ.get(variable)
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
    """Return the port that `name` had the last time, so that bookmarks and clients keep working.

    While another program has it, any free one; it is remembered all the same, and is back once it is free.
    """
    path = data / "ports.json"
    ports = _ports(path)
    port = free_port(ports.get(name) or preferred)
    if name not in ports:
        write_whole(path, json.dumps({**ports, name: port}))
    return port


def _ports(path: Path) -> dict[str, int]:
    """Return what is remembered; nothing when the file is damaged: ports can be chosen anew."""
    try:
        ports = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {name: port for name, port in ports.items() if type(port) is int and 0 < port < 65_536} if isinstance(ports, dict) else {}


def remembered_secret(data: Path, name: str, needed_by: Path | None = None) -> str:
    """Return the password `name`, made from 256 random bits when it is first asked for; only the owner can read the file.

    Raises: ConfigurationError when it is lost although `needed_by`, which was made with it, exists.
    """
    path = data / f"{name}.secret"
    if secret := known_secret(data, name):
        return secret
    if needed_by and needed_by.exists():
        raise ConfigurationError(
            f"the password in {path} is lost, and the data in {needed_by.parent} cannot be opened without it: "
            "restore the file from a backup, or move that directory away to start with an empty one"
        )
    write_whole(path, secrets.token_urlsafe(32))
    return path.read_text()


def known_secret(data: Path, name: str) -> str:
    """Return the password `name`; empty when there is none."""
    path = data / f"{name}.secret"
    return path.read_text().strip() if path.exists() else ""


def write_whole(path: Path, text: str) -> None:
    """Write a file that only the owner can read, and that is never there in part, not even after a power cut."""
    new = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


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
