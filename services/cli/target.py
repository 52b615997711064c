"""Where the system is that the commands talk to: the environment first, then what runs on this machine, then the defaults."""

import json
import os
from typing import TYPE_CHECKING

from services.embedded.program import data_directory
from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from shared.settings import DatabaseSettings

DEFAULT_API_URL = "http://127.0.0.1:8470"


def api_url() -> str:
    """Return the URL of the API, without a slash at its end."""
    return (_found("api_url") or DEFAULT_API_URL).rstrip("/")


def nats_url() -> str:
    """Return the URL of the NATS server, password included."""
    from shared.settings import Settings

    return _found("nats_url") or str(Settings.model_fields["nats_url"].default)


def database_url() -> str:
    """Return the URL of the database, password included."""
    from shared.settings import DatabaseSettings

    return _found("database_url") or str(DatabaseSettings.model_fields["database_url"].default)


def settings() -> "DatabaseSettings":
    """Return what the environment says about the servers, users and files with passwords included.

    Raises: ConfigurationError when one of these settings is wrong.
    """
    from pydantic import ValidationError

    from shared.settings import DatabaseSettings, complaints

    try:
        return DatabaseSettings(nats_url=nats_url(), database_url=database_url())
    except ValidationError as error:
        raise ConfigurationError(complaints(error)[0]) from None


def is_known() -> bool:
    """Return whether anything but the defaults says where the system is."""
    return any(_found(name) for name in ("api_url", "nats_url", "database_url"))


def running() -> dict[str, str]:
    """Return what a running `refresher up` says of itself (`nats_url`, `database_url`, `api_url`); empty when none runs."""
    try:
        state = json.loads((data_directory() / "run.json").read_text())
        return {name: str(value) for name, value in state.items()} if _is_alive(int(state["pid"])) else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):  # no file, or none of ours
        return {}


def _is_alive(pid: int) -> bool:
    """Return whether there is such a process: a system that was killed leaves its file behind."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return pid > 0


def _found(name: str) -> str | None:
    return os.environ.get(f"REFRESHER_{name.upper()}") or running().get(name)
