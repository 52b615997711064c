"""What is to be measured and how; the options of the engine `http` say what each means."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Order:
    """The parent's order, as its options are."""

    backend: str
    server: str | None
    server_list: str | None
    token: str | None
    ip_version: int | None
    source_address: str | None
    interface: str | None
    ca_file: str | None
    timeout_s: float
    max_bytes: int
    light: bool
    streams: int
    download: bool
    upload: bool
    loss: bool
