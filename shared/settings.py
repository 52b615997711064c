"""The settings that every service has. Each service adds its own; all are read once, from the environment."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=0, le=65_535)]


class Settings(BaseSettings):
    """Common to all services; environment variables carry the prefix `REFRESHER_`."""

    model_config = SettingsConfigDict(
        env_prefix="REFRESHER_", frozen=True, extra="ignore", env_ignore_empty=True, use_attribute_docstrings=True
    )

    nats_url: Annotated[str, Field(repr=False)] = "nats://127.0.0.1:4222"
    """The NATS server or servers, separated by commas; user and password may be part of the URL."""
    nats_replicas: Annotated[int, Field(ge=1, le=5)] = 1
    """On how many servers of a NATS cluster each stream is kept: 3 survives the loss of one. Raised where it is less, never lowered."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """`auto` writes text to a terminal and JSON elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """From which level on something is logged."""


class DatabaseSettings(Settings):
    """For the services that use Postgres."""

    database_url: Annotated[str, Field(repr=False)] = "postgresql://refresher@127.0.0.1:5432/refresher"
    """The PostgreSQL database (`postgresql://user:password@host:port/name`)."""
