"""The bus and the database as deploy/ sets them up: the shipped configuration, secrets and roles, on ports of a test's own."""

import asyncio
import os
import re
import shutil
import signal
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import asyncpg
import nats
import yaml
from nats.aio.client import Client

from services.embedded.nats import binary
from services.embedded.program import Program
from tests import debian, ports
from tests.servers import Postgres, port_of, start, stop, wait_for_port

DEPLOY = Path(__file__).parents[1] / "deploy"


def make_secrets(directory: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run deploy/secrets.sh with these words, for a directory."""
    path = os.environ["PATH"]
    if not shutil.which("openssl"):
        path = f"{debian.program('openssl', 'usr/bin/openssl').parent}:{path}"
    return subprocess.run(
        ["sh", DEPLOY / "secrets.sh", *words],
        env={**os.environ, "PATH": path, "REFRESHER_SECRETS_DIR": str(directory), "REFRESHER_SITE": "home"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Bus:
    """A nats-server with the shipped nats.conf: only its paths and ports are others. Its sites are home and office, with a line lte."""

    def __init__(self, root: Path) -> None:
        # as in the container: /etc/nats/nats.conf, /run/secrets, /data
        self.secrets = root / "run" / "secrets"
        for words in ((), ("runner", "office"), ("runner", "office+lte")):
            made = make_secrets(self.secrets, *words)
            assert made.returncode == 0, made.stderr
        port, self.leaves, self.monitor = ports.take(), ports.take(), ports.take()
        self.configuration = root / "etc" / "nats" / "nats.conf"
        self.configuration.parent.mkdir(parents=True)
        text = (DEPLOY / "nats" / "nats.conf").read_text()
        for shipped, here in {
            '"0.0.0.0:4222"': f'"127.0.0.1:{port}"',
            '"0.0.0.0:8222"': f'"127.0.0.1:{self.monitor}"',
            '"0.0.0.0:7422"': f'"127.0.0.1:{self.leaves}"',
            '"/run/secrets/': f'"{self.secrets}/',
            '"/data"': f'"{root}/data"',
        }.items():
            assert shipped in text
            text = text.replace(shipped, here)
        self.configuration.write_text(text)
        self.url = f"nats://127.0.0.1:{port}"
        self.log = root / "logs" / "nats.log"
        self.process = start(Program("nats", (binary(), "--config", str(self.configuration)), log=self.log))
        wait_for_port(port)

    def reload(self) -> None:
        """Let the server take up a change of users or certificate, and wait until it has: meanwhile it ends connections.

        Twice, as docs/sites.md says: an account that is new has no imports before its second time.
        """
        for _ in range(2):
            before = self._reloads()
            self.process.send_signal(signal.SIGHUP)
            end = time.monotonic() + 20
            while self._reloads() == before:
                assert time.monotonic() < end, "the server has not read its configuration again"
                time.sleep(0.02)

    def _reloads(self) -> int:
        return self.log.read_bytes().count(b"Reloaded server configuration")

    def stop(self) -> None:
        """Stop it."""
        stop(self.process)

    def password(self, user: str) -> str:
        """Return the password of a user."""
        return (self.secrets / f"nats-{user}").read_text()

    def login(self, user: str) -> dict[str, str]:
        """Return the settings with which a service logs in."""
        return {
            "REFRESHER_NATS_USER": user,
            "REFRESHER_NATS_PASSWORD_FILE": str(self.secrets / f"nats-{user}"),
            "REFRESHER_NATS_CA_FILE": str(self.secrets / "ca.crt"),
        }

    def remote(self, site: str) -> dict[str, str]:
        """Return the settings that deploy/compose.runner.yml gives to the runner of another site, with its own credential."""
        service = yaml.safe_load((DEPLOY / "compose.runner.yml").read_text())["services"]["runner"]
        (mount,) = service["volumes"]
        assert mount["target"] == "/run/secrets"
        given = {"REFRESHER_SITE": site, "REFRESHER_NATS_URL": self.url.replace("nats://", "tls://")}
        settings = {
            name: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: given.get(found[1], ""), value)
            for name, value in service["environment"].items()
        }
        return {name: value.replace("/run/secrets", str(self.secrets / f"runner-{site}")) for name, value in settings.items()}

    async def connect(self, user: str, **options: Any) -> Client:
        """Connect as a user; the options go before those that this user should have."""
        return await nats.connect(
            **{
                "servers": self.url,
                "user": user,
                "password": self.password(user),
                "inbox_prefix": f"_INBOX_{user}",
                "tls": ssl.create_default_context(cafile=self.secrets / "ca.crt"),
                "tls_handshake_first": True,
                "allow_reconnect": False,
                **options,
            }
        )


class Database:
    """A PostgreSQL server with the roles of deploy/postgres; nothing is migrated yet."""

    def __init__(self, root: Path, secrets: Path) -> None:
        self._server = Postgres(root)
        self._secrets = secrets

    async def make_roles(self) -> None:
        """Do what the official image does with a new database: a superuser `postgres`, a database, and the script."""
        await self._as_in_the_image()
        done = await asyncio.to_thread(self.run_script)
        assert done.returncode == 0, done.stderr

    async def _as_in_the_image(self) -> None:
        first = await asyncpg.connect(self._server.url)
        await first.execute("CREATE ROLE postgres SUPERUSER LOGIN PASSWORD 'first'")
        await first.execute("CREATE DATABASE refresher")
        await first.close()
        port = port_of(self._server.url)
        superuser = await asyncpg.connect(f"postgresql://postgres:first@127.0.0.1:{port}/postgres")
        await superuser.execute("ALTER ROLE refresher RENAME TO first_superuser")  # the image has none of that name
        await superuser.close()

    def run_script(self, secrets: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """Run the script that makes the roles."""
        environment = {
            "PATH": f"{self._server.binaries}:{os.environ['PATH']}",
            "REFRESHER_SECRETS_DIR": str(secrets or self._secrets),
            "POSTGRES_USER": "postgres",
            "POSTGRES_DB": "refresher",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(port_of(self._server.url)),
            "PGPASSWORD": "first",
        }
        return subprocess.run(["bash", DEPLOY / "postgres" / "10-roles.sh"], env=environment, capture_output=True, text=True, check=False)

    def settings(self, role: str) -> dict[str, str]:
        """Return the settings with which a service connects."""
        return {
            "REFRESHER_DATABASE_URL": f"postgresql://{role}@127.0.0.1:{port_of(self._server.url)}/refresher",
            "REFRESHER_DATABASE_PASSWORD_FILE": str(self._secrets / f"database-{role}"),
        }

    async def connect(self, role: str) -> "asyncpg.Connection[asyncpg.Record]":
        """Connect as a role, or as the superuser `postgres`."""
        password = "first" if role == "postgres" else (self._secrets / f"database-{role}").read_text()
        return await asyncpg.connect(self.settings(role)["REFRESHER_DATABASE_URL"], password=password)

    def stop(self) -> None:
        """Stop the server."""
        self._server.stop()
