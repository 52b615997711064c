"""How the command line finds the system."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli import target

URLS = {"api_url": "http://127.0.0.1:1/", "nats_url": "nats://u:p@127.0.0.1:2", "database_url": "postgresql://u:p@127.0.0.1:3/x"}


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give the place of the state file, with nothing in the environment."""
    for name in URLS:
        monkeypatch.delenv(f"REFRESHER_{name.upper()}", raising=False)
    monkeypatch.setenv("REFRESHER_DATA_DIR", str(tmp_path))
    return tmp_path / "run.json"


def test_a_running_system_is_found_by_its_file(state: Path) -> None:
    """`refresher up` in one terminal is enough for the commands in another."""
    state.write_text(json.dumps({"pid": os.getpid(), **URLS}))
    assert target.is_known()
    assert target.api_url() == "http://127.0.0.1:1"
    assert target.nats_url() == URLS["nats_url"]
    assert target.database_url() == URLS["database_url"]


def test_the_environment_comes_first(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable for itself."""
    state.write_text(json.dumps({"pid": os.getpid(), **URLS}))
    monkeypatch.setenv("REFRESHER_API_URL", "https://speed.example")
    assert target.api_url() == "https://speed.example"
    assert target.nats_url() == URLS["nats_url"]


def test_a_dead_system_is_not_found(state: Path) -> None:
    """One that was killed leaves its file behind."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    state.write_text(json.dumps({"pid": ended.pid, **URLS}))
    assert not target.is_known()
    assert target.api_url() == target.DEFAULT_API_URL


@pytest.mark.parametrize(
    "text",
    [None, "", "[]", "3", "{}", '{"pid": "x"}', '{"pid": 0, "nats_url": "x"}', '{"pid": -1, "nats_url": "x"}', '{"pid": 1e400}', "\x00"],
)
def test_without_a_usable_file_the_defaults_hold(state: Path, text: str | None) -> None:
    """No file, or nonsense in it, is no trouble."""
    if text is not None:
        state.write_text(text)
    assert not target.is_known()
    assert target.nats_url() == "nats://127.0.0.1:4222"
    assert target.database_url() == "postgresql://refresher@127.0.0.1:5432/refresher"
