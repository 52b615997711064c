"""deploy/secrets.sh: everything that the composed system needs to know, made once, from chance."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deployed import DEPLOY, make_secrets

PASSWORDS = {
    *("nats-scheduler", "nats-recorder", "nats-api", "nats-admin", "nats-runner-home", "grafana-admin"),
    *("database-postgres", "database-refresher", "database-refresher_recorder", "database-refresher_api"),
    *("database-refresher_grafana", "database-refresher_exporter"),
}


CONSUMERS = {
    "nats": {"nats-accounts.conf", "nats-server.crt", "nats-server.key"},
    "postgres": {each for each in PASSWORDS if each.startswith("database-")},
    "migrate": {"database-refresher"},
    "scheduler": {"ca.crt", "nats-scheduler"},
    "runner-home": {"ca.crt", "nats-runner"},
    "recorder": {"ca.crt", "nats-recorder", "database-refresher_recorder"},
    "api": {"ca.crt", "nats-api", "database-refresher_api"},
    "tools": {"ca.crt", "nats-admin", "database-refresher"},
    "grafana": {"grafana-admin", "database-refresher_grafana"},
    "postgres-exporter": {"database-refresher_exporter"},
    "alertmanager": set(),
}
"""What each container may see."""


def content(directory: Path) -> dict[str, bytes]:
    """Return every file at the top of a directory and what is in it."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def handed_out(directory: Path) -> dict[str, dict[str, bytes]]:
    """Return what each directory for a container holds."""
    return {path.name: content(path) for path in directory.iterdir() if path.is_dir()}


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
        assert all(path.stat().st_mode & 0o777 == 0o644 for path in directory.rglob("*") if path.is_file() and path.name != "ca.key")
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
    assert make_secrets(directory, "leaf", "attic").returncode == 0
    leaf = content(directory)
    assert set(leaf) - set(more) == {"nats-leaf-attic"}
    assert {name for name, data in more.items() if leaf[name] != data} == {"leaves", "nats-accounts.conf"}
    assert handed_out(directory)["leaf-attic"] == {"ca.crt": leaf["ca.crt"], "nats-leaf": leaf["nats-leaf-attic"]}
    assert make_secrets(directory, "forget", "attic").returncode == 0
    assert content(directory) == more
    assert make_secrets(directory, "name", "speed.example.org").returncode == 0
    named = content(directory)
    assert {name for name, data in more.items() if named[name] != data} == {"nats-server.crt", "nats-server.names", "nats-server.signed"}
    assert handed_out(directory)["nats"]["nats-server.crt"] == named["nats-server.crt"]


def test_each_container_sees_its_own_and_no_more(tmp_path: Path) -> None:
    """A directory for each, of copies; the authority's key, with which anybody could pose as the bus, is in none."""
    directory = tmp_path / "secrets"
    assert make_secrets(directory).returncode == 0
    handed, masters = handed_out(directory), content(directory)
    assert {consumer: set(files) for consumer, files in handed.items()} == CONSUMERS
    for consumer, files in handed.items():
        for name, data in files.items():
            assert data == masters["nats-runner-home" if name == "nats-runner" else name], f"{consumer}/{name}"
    bus = {files[name] for files in handed.values() for name in files if name.startswith("nats-") and "." not in name}
    assert len(bus) == 5, "each service logs in as itself"


def test_compose_mounts_what_is_made() -> None:
    """Each service of the compose files mounts the directory that is made for it, whole, and none but its own."""
    services = {
        **yaml.safe_load((DEPLOY / "compose.yml").read_text())["services"],
        "remote": yaml.safe_load((DEPLOY / "compose.runner.yml").read_text())["services"]["runner"],
    }
    text = "REFRESHER_CREDENTIAL:-./secrets/runner-${REFRESHER_SITE}${REFRESHER_LINE:++}${REFRESHER_LINE:-}"
    assert services.pop("remote")["volumes"][0]["source"] == f"${{{text}}}"
    assert "./secrets:/deploy/secrets" in services.pop("prepare")["volumes"]
    mounted = {name: [volume for volume in service.get("volumes", ()) if "secrets" in volume] for name, service in services.items()}
    runner = mounted.pop("runner")
    assert runner == ["./secrets/runner-${REFRESHER_SITE:-home}:/run/secrets:ro"]
    assert {name: volumes for name, volumes in mounted.items() if volumes} == {
        name: [f"./secrets/{name}:/run/secrets:ro"] for name in CONSUMERS if name != "runner-home"
    }
    needed = {name: set(re.findall(r"/run/secrets/([^\s'\"]+)", str(service))) for name, service in services.items()}
    for name, files in needed.items():
        assert files <= CONSUMERS.get("runner-home" if name == "runner" else name, set()), name


@pytest.mark.parametrize("line", ["office", "office+fibre"])
def test_a_site_comes_and_goes(line: str, tmp_path: Path) -> None:
    """Its user and directory are made, and taken away with `forget`; the site of this machine cannot be."""
    directory = tmp_path / "secrets"
    assert make_secrets(directory, "runner", line).returncode == 0
    password = content(directory)[f"nats-runner-{line}"]
    assert password in content(directory)["nats-accounts.conf"]
    assert handed_out(directory)[f"runner-{line}"] == {"ca.crt": content(directory)["ca.crt"], "nats-runner": password}
    assert make_secrets(directory, "forget", line).returncode == 0
    assert set(handed_out(directory)) == set(CONSUMERS)
    assert password not in b"".join(content(directory).values())
    assert handed_out(directory)["nats"]["nats-accounts.conf"] == content(directory)["nats-accounts.conf"]
    for site, reason in (("office", "there is no site office"), ("home", "home is the site of this machine")):
        refused = make_secrets(directory, "forget", site)
        assert refused.returncode == 1
        assert reason in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("runner",),
        ("runner", "My Site"),
        ("runner", "office+"),
        ("runner", "+fibre"),
        ("leaf", "office+fibre"),
        ("leaf", "hub"),
        ("runner", "office+fibre+lte"),
        ("runner", "office+any"),
        ("runner", "a/b"),
        ("runner", "a", "b"),
        ("name", "a b"),
        ("name", "a,b"),
        ("runner", "home\nevil"),
        ("forget",),
        ("forget", "home"),
        ("all",),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    """In a sentence, and before anything is made."""
    done = make_secrets(tmp_path / "secrets", *words)
    assert done.returncode == 1
    assert done.stderr.startswith("secrets.sh: ")
    assert not (tmp_path / "secrets").exists()


def test_without_openssl_it_says_what_to_do(tmp_path: Path) -> None:
    """And the next run, with it, completes what this one began."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "head", "base64", "tr", "wc", "mv", "grep", "touch", "rm", "awk", "chmod", "mkdir", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or name)
    environment = {**os.environ, "PATH": str(tools), "REFRESHER_SECRETS_DIR": str(tmp_path / "secrets")}
    done = subprocess.run(["sh", DEPLOY / "secrets.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "secrets.sh: openssl is not here: install it, or run it by docker compose -f deploy/compose.yml run --rm prepare\n"
    )
    before = (tmp_path / "secrets" / "nats-api").read_text()
    assert make_secrets(tmp_path / "secrets").returncode == 0
    assert (tmp_path / "secrets" / "nats-api").read_text() == before


def test_no_secret_can_be_committed() -> None:
    """Git ignores the directory where they are made."""
    if shutil.which("git") is None or not (DEPLOY.parent / ".git").exists():
        pytest.skip("no checkout")
    ignored = subprocess.run(["git", "check-ignore", "--quiet", "deploy/secrets/nats-api"], cwd=DEPLOY.parent, check=False)
    assert ignored.returncode == 0
