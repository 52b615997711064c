"""What the embedded system keeps in its data directory besides the data."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from services.embedded import nats, postgres
from services.embedded.program import remembered_port, remembered_secret
from shared.errors import ConfigurationError
from tests import ports


def test_a_port_that_is_taken_for_the_moment_is_not_forgotten(tmp_path: Path) -> None:
    """Bookmarks and clients work again as soon as the other program is gone."""
    port = ports.take()
    (tmp_path / "ports.json").write_text(json.dumps({"api": port}))
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        assert remembered_port(tmp_path, "api") != port
    assert remembered_port(tmp_path, "api") == port


@pytest.mark.parametrize("text", ["", '{"api": 84', "[]", '{"api": "x"}', '{"api": -1}'])
def test_damaged_ports_are_chosen_anew(tmp_path: Path, text: str) -> None:
    """A power cut amid a write may not keep the system from starting."""
    (tmp_path / "ports.json").write_text(text)
    port = remembered_port(tmp_path, "nats")
    assert remembered_port(tmp_path, "nats") == port


def test_an_empty_password_is_made_anew_only_while_nothing_needs_it(tmp_path: Path) -> None:
    """With a cluster that was made with it, a new one would only lock the data away: told what to do."""
    path, cluster = tmp_path / "postgres.secret", tmp_path / "PG_VERSION"
    path.touch()
    secret = remembered_secret(tmp_path, "postgres", cluster)
    assert len(secret) > 40
    assert path.stat().st_mode & 0o777 == 0o600
    cluster.touch()
    assert remembered_secret(tmp_path, "postgres", cluster) == secret
    path.write_text("")
    with pytest.raises(ConfigurationError, match="restore the file from a backup"):
        remembered_secret(tmp_path, "postgres", cluster)


def test_an_initdb_that_fails_leaves_no_cluster(open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a cluster would never start: what is made is made beside its place, and only a whole one put there."""
    seen: list[bool] = []
    run = subprocess.run

    def failing(command: list[object], **options: object) -> object:
        done = run([*command, "--no-sync"], **options)  # type: ignore[call-overload]
        seen.append((open_directory / "postgres").exists())
        done.returncode = 1
        return done

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(ConfigurationError, match="initdb"):
        postgres.prepare(open_directory)
    assert seen == [False]
    assert not [path for path in open_directory.iterdir() if path.name.startswith("postgres") and path.is_dir() and "ql" not in path.name]


def test_nats_takes_a_directory_with_any_letters(tmp_path: Path) -> None:
    """People's homes are not all ASCII."""
    data = tmp_path / "Daten für Jürgen"
    data.mkdir()
    server = nats.prepare(data)
    checked = subprocess.run([*server.program.command, "-t"], capture_output=True, text=True, timeout=20, check=False, env=dict(os.environ))
    assert checked.returncode == 0, checked.stderr
    assert str(data / "nats") in (data / "nats.conf").read_text(encoding="utf-8")
