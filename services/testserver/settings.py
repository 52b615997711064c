"""The test server's settings."""

from typing import Annotated

from pydantic import Field

from shared.settings import LogSettings, Port, ReadableFile


class TestserverSettings(LogSettings):
    """Read from the environment; each name carries the prefix `REFRESHER_`."""

    __test__ = False  # its name looks like one of pytest's classes

    testserver_host: str = "127.0.0.1"
    """Where the test server listens: addresses or names, separated by commas; `0.0.0.0,::` is everywhere, with both
    kinds of address."""
    testserver_port: Port = 8477
    """The port for that; 0 takes any free one."""
    testserver_udp: bool = True
    """Whether datagrams are echoed to those who hold a token."""
    testserver_udp_port: Port = 8478
    """The UDP port for that; 0 takes any free one."""
    testserver_token_file: ReadableFile | None = None
    """The file with the token that every client must show; without it, everybody who reaches the server may use it."""
    testserver_certificate_file: ReadableFile | None = None
    """The certificate, with what it was signed by, for HTTPS; without it the server speaks HTTP."""
    testserver_key_file: ReadableFile | None = None
    """The key of that certificate, where it is not in the same file."""
    testserver_bytes: Annotated[int, Field(ge=1)] = 10_000_000_000
    """How many bytes a transfer, one download or upload, may have."""
    testserver_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60
    """How long a transfer may take, in seconds."""
    testserver_transfers: Annotated[int, Field(ge=1)] = 64
    """How many transfers one address (IPv6: one /64) may have at once; a test makes 3 to 16."""
    testserver_connections: Annotated[int, Field(ge=1)] = 500
    """How many connections may be open at once."""
    testserver_head_bytes: Annotated[int, Field(ge=256, le=262_144)] = 16_384
    """How long the head of a request may be."""
    testserver_idle_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10
    """How long a request's head may take, and how long a connection may stand still, in seconds."""
