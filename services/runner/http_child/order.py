"""What is to be measured and how; the options of the engines say what each means."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """The way to a server."""

    ip_version: int | None
    source_address: str | None
    interface: str | None
    ca_file: str | None
    timeout_s: float


@dataclass(frozen=True)
class Order(Way):
    """The parent's order, as its options are."""

    backend: str
    server: str | None
    server_list: str | None
    token: str | None
    max_bytes: int
    light: bool
    streams: int
    download: bool
    upload: bool
    loss: bool
