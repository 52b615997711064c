"""The settings that every service has. Each service adds its own; all are read once, from the environment."""

import ssl
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import reason

MISCONFIGURED = 78
"""The exit code of a service with a wrong setting (EX_CONFIG of sysexits.h): starting it again is no use."""


def refuse(service: str, error: ValidationError) -> NoReturn:
    """Say on stderr which variables are wrong, and why, and exit with MISCONFIGURED."""
    for complaint in complaints(error):
        sys.stderr.write(f"refresher {service}: {complaint}\n")
    sys.exit(MISCONFIGURED)


def complaints(error: ValidationError) -> list[str]:
    """Return a sentence for each wrong setting: its variable, what is wrong with it, and what it is."""
    told = []
    for each in error.errors():
        given = without_password(each["input"]) if isinstance(each["input"], str) else each["input"]
        told.append(f"REFRESHER_{str(each['loc'][0]).upper()}: {reason(each)}; it is {given!r}")
    return told


def without_password(url: str) -> str:
    """Return where a URL leads, for people: without user and password, and without a query, which may hold them too."""
    return url.rsplit("@", 1)[-1].partition("?")[0]


def _readable(path: Path) -> Path:
    """Refuse a file that cannot be read at the start, where it can still be told as a wrong setting."""
    try:
        path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file cannot be read ({error.strerror})") from None
    return path


def _authority(path: Path) -> Path:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # a file that is no certificate too
        raise ValueError(f"no certificate can be read from the file ({error.strerror or error})") from None
    return path


def _postgres(url: str) -> str:
    if (scheme := url.partition("://")[0]) not in {"postgresql", "postgres"}:
        raise ValueError(f"the URL of a PostgreSQL database begins with postgresql://, and not with {scheme[:20]}")
    return url


def _nats(urls: str) -> str:
    for url in urls.split(","):
        if "://" in url and (scheme := url.strip().partition("://")[0]) not in {"nats", "tls"}:
            raise ValueError(f"the URL of a NATS server begins with nats:// or tls://, and not with {scheme[:20]}")
    return urls


def names(value: object) -> object:
    """Read a list that is separated by commas."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


Port = Annotated[int, Field(ge=0, le=65_535)]
ReadableFile = Annotated[Path, AfterValidator(_readable)]
AuthorityFile = Annotated[Path, AfterValidator(_authority)]


class LogSettings(BaseSettings):
    """What every process has; environment variables carry the prefix `REFRESHER_`."""

    model_config = SettingsConfigDict(
        env_prefix="REFRESHER_", frozen=True, extra="ignore", env_ignore_empty=True, use_attribute_docstrings=True
    )

    log_format: Literal["auto", "json", "text"] = "auto"
    """`auto` writes text to a terminal and JSON elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """From which level on something is logged."""


class Settings(LogSettings):
    """For the services on the bus."""

    nats_url: Annotated[str, Field(repr=False), AfterValidator(_nats)] = "nats://127.0.0.1:4222"
    """The NATS server or servers, separated by commas; user and password may be part of the URL.

    `tls://` encrypts from the first byte, which the server must allow (`handshake_first`).
    """
    nats_user: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+-]+$")] | None = None
    """The user to log in as, in place of one in the URL; it receives answers under a prefix of its own (`_INBOX_<user>`)."""
    nats_password_file: ReadableFile | None = None
    """The file with the password of that user."""
    nats_ca_file: AuthorityFile | None = None
    """The certificate of the authority that the NATS server must be signed by; with it, every connection is encrypted."""


class DatabaseSettings(Settings):
    """For the services that use Postgres."""

    database_url: Annotated[str, Field(repr=False), AfterValidator(_postgres)] = "postgresql://refresher@127.0.0.1:5432/refresher"
    """The PostgreSQL database (`postgresql://user:password@host:port/name`)."""
    database_password_file: ReadableFile | None = None
    """The file with the password of the user in that URL, in place of one in the URL."""
