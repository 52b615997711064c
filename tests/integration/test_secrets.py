"""deploy/secrets.sh: everything that the composed system needs to know, made once, from chance."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deployed import DEPLOY, make_secrets

PASSWORDS = {
    *("nats-scheduler", "nats-recorder", "nats-api", "nats-admin", "nats-runner-home", "grafana-admin"),
    *("database-postgres", "database-refresher", "database-refresher_recorder", "database-refresher_api"),
    *("database-refresher_grafana", "database-refresher_exporter"),
}


def content(directory: Path) -> dict[str, bytes]:
    """Return every file of a directory and what is in it."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_password_is_random_and_kept_from_others(tmp_path: Path) -> None:
    """Each has 256 bits and differs, also between two systems; nobody but the owner enters the directory or reads the authority's key."""
    seen: set[str] = set()
    for name in ("one", "two"):
        directory = tmp_path / name
        assert make_secrets(directory).returncode == 0
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / "ca.key").stat().st_mode & 0o777 == 0o600
        found = {each: (directory / each).read_text() for each in PASSWORDS}
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", password) for password in found.values())
        seen |= set(found.values())
        # what containers mount is readable to whichever account they run as
        assert all(path.stat().st_mode & 0o777 == 0o644 for path in directory.iterdir() if path.name != "ca.key")
    assert len(seen) == 2 * len(PASSWORDS)


def test_what_is_there_is_never_changed(tmp_path: Path) -> None:
    """A second run changes nothing; one for another site or name adds that, and no more."""
    directory = tmp_path / "secrets"
    assert make_secrets(directory).returncode == 0
    first = content(directory)
    assert make_secrets(directory).returncode == 0
    assert content(directory) == first
    assert make_secrets(directory, "runner", "office").returncode == 0
    more = content(directory)
    assert set(more) - set(first) == {"nats-runner-office"}
    assert {name for name, data in first.items() if more[name] != data} == {"sites", "nats-accounts.conf"}
    assert more["nats-runner-office"] in more["nats-accounts.conf"]
    mounted = (directory / "nats-server.crt").stat().st_ino, (directory / "nats-accounts.conf").stat().st_ino
    assert make_secrets(directory, "name", "speed.example.org").returncode == 0
    named = content(directory)
    assert {name for name, data in more.items() if named[name] != data} == {"nats-server.crt", "nats-server.names", "nats-server.signed"}
    # a container goes on with the file that it has mounted: a new one in its place would not be seen
    assert mounted == ((directory / "nats-server.crt").stat().st_ino, (directory / "nats-accounts.conf").stat().st_ino)


@pytest.mark.parametrize(
    "words",
    [
        ("runner",),
        ("runner", "My Site"),
        ("runner", "a/b"),
        ("runner", "a", "b"),
        ("name", "a b"),
        ("name", "a,b"),
        ("runner", "home\nevil"),
        ("all",),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    """In a sentence, and before anything is made."""
    done = make_secrets(tmp_path / "secrets", *words)
    assert done.returncode == 1
    assert done.stderr.startswith("secrets.sh: ")
    assert not (tmp_path / "secrets").exists()


def test_without_openssl_and_docker_it_says_what_to_install(tmp_path: Path) -> None:
    """And the next run, with one of them, completes what this one began."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "head", "base64", "tr", "wc", "mv", "grep", "touch", "rm", "awk", "chmod", "mkdir", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or name)
    environment = {**os.environ, "PATH": str(tools), "REFRESHER_SECRETS_DIR": str(tmp_path / "secrets")}
    done = subprocess.run(["sh", DEPLOY / "secrets.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "secrets.sh: neither openssl nor docker is here: install one of them\n"
    before = (tmp_path / "secrets" / "nats-api").read_text()
    assert make_secrets(tmp_path / "secrets").returncode == 0
    assert (tmp_path / "secrets" / "nats-api").read_text() == before


def test_no_secret_can_be_committed() -> None:
    """Git ignores the directory where they are made."""
    if shutil.which("git") is None or not (DEPLOY.parent / ".git").exists():
        pytest.skip("no checkout")
    ignored = subprocess.run(["git", "check-ignore", "--quiet", "deploy/secrets/nats-api"], cwd=DEPLOY.parent, check=False)
    assert ignored.returncode == 0
