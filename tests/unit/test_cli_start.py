"""How the command line starts, and how it refuses what it cannot use."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.commands import REFRESHER, Refresher

HEAVY = ("pydantic", "asyncpg", "faststream", "nats", "httpx", "fastapi", "uvicorn", "prometheus_client")


def refresher(*arguments: str | bytes, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the installed command where no system is."""
    return Refresher(**environment)(*arguments, code=None)


def test_starting_imports_nothing_heavy() -> None:
    """`--help` must be there at once: what talks to servers is imported by the command that needs it."""
    code = f"import sys, services.cli.__main__; print(*[name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


TOP = ("up", "run", "migrate", "env", "settings", "probe", "run-now", "schedules", "results", "runners", "doctor", "testserver")
UNDER_SCHEDULES = ("list", "show", "add", "pause", "resume", "remove")
COMMANDS = [(), *((name,) for name in TOP), *(("schedules", name) for name in UNDER_SCHEDULES)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    """Every one explains itself, and no example is folded on 80 columns."""
    shown = refresher(*command, "--help", COLUMNS="80")
    assert shown.returncode == 0
    assert f"Usage: {' '.join(('refresher', *command))}" in shown.stdout
    _, _, after = shown.stdout.partition(" Examples ")
    examples = [line for line in after.partition("╭")[0].splitlines() if line.strip()]
    assert [line for line in examples if not line.startswith("   ")] == []


def test_the_version_is_that_of_the_package() -> None:
    """`refresher --version` is one line for bug reports."""
    assert refresher("--version").stdout == f"refresher {version('refresher')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["schedules", "add"], "Missing argument"),
        (["schedules", "add", "x"], "say one of --every 1h, --cron"),
        (["schedules", "add", "x", "--every", "1h", "--cron", "* * * * *"], "say one of --every 1h, --cron"),
        (["schedules", "add", "x", "--every", "5"], "'5' is not a duration"),
        (["schedules", "add", "x", "--every", "5m", "--zone", "UTC"], "it belongs to --cron"),
        (["schedules", "add", "x", "--cron", "* * * * *", "--phase", "1m"], "it belongs to --every"),
        (["schedules", "add", "x", "--every", "5m", "--longest", "1m"], "it belongs to --random"),
        (["schedules", "add", "x", "--manual", "--gap", "skip"], "it belongs to --cron"),
        (["schedules", "add", "x", "--manual", "--exclude", "sometimes"], "'sometimes' is no time to leave out"),
        (["schedules", "add", "x", "--at", "noon"], "'noon' is no date"),
        (["schedules", "add", "x", "--manual", "--fallback-option", "a=1"], "it belongs to --fallback"),
        (["schedules", "add", "x", "--every", "5m", "--option", "a={"], "the value of 'a' is broken JSON"),
        (["results", "--since", "tomorrowish"], "'tomorrowish' is no moment"),
        (["results", "--limit", "0"], "--limit"),
        (["results", "--csv", "--json"], "leave --json, --follow and --limit away"),
        (["results", "--csv", "--limit", "5"], "leave --json, --follow and --limit away"),
        (["results", "--follow", "--until", "1h"], "leave --until away"),
        (["run-now", "nightly", "--engine", "noop"], "leave --engine, --line and --option away"),
        (["run-now", "--timeout", "16m"], "from 1s to 15m"),
        (["run", "bogus"], "bogus"),
        (["probe"], "name one of "),
        (["probe", "noop", "--option", "seconds"], "not key=value"),
        (["up", "--port", "70000"], "--port"),
        (["testserver", "--port", "70000"], "--port"),
        (["testserver", "--max-bytes", "0"], "--max-bytes"),
        (["schedules", "show", b"\xff"], "not valid UTF-8"),
    ],
    ids=str,
)
def test_wrong_use_is_one_sentence_and_exit_code_2(arguments: list[str | bytes], message: str) -> None:
    """On stderr, no usage block, no box, no traceback; nothing on stdout that a program could take for an answer."""
    refused = refresher(*arguments)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith("refresher: ")
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["settings"], ["env"]])
def test_output_that_cannot_be_written_is_one_sentence(arguments: list[str]) -> None:
    """Whether a library finds out, or the end of the program does."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments],
            env={**os.environ, "REFRESHER_API_URL": "http://127.0.0.1:9"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "refresher: the output cannot be written: No space left on device.\n")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["results"], {}, "the API at http://127.0.0.1:9 does not answer"),
        (["schedules", "list"], {}, "start the system with `refresher up`"),
        (["results", "--follow"], {}, "does not answer"),
        (["results", "--csv"], {}, "does not answer"),
        (["run-now"], {}, "does not answer"),
        (["runners"], {"REFRESHER_API_URL": "nonsense"}, "REFRESHER_API_URL is no http or https URL: 'nonsense'"),
        (["runners"], {"REFRESHER_API_URL": "http://[::"}, "REFRESHER_API_URL is no http or https URL"),
        (["runners"], {"REFRESHER_API_URL": "ftp://127.0.0.1"}, "REFRESHER_API_URL is no http or https URL"),
        (["runners"], {"http_proxy": "http://127.0.0.1:10"}, "the API at http://127.0.0.1:9 does not answer"),
        (["env"], {"REFRESHER_API_URL": "", "REFRESHER_NATS_URL": "", "REFRESHER_DATABASE_URL": ""}, "no system is running here"),
        (
            ["migrate"],
            {"REFRESHER_DATABASE_URL": "nonsense"},
            "REFRESHER_DATABASE_URL: the URL of a PostgreSQL database begins with postgresql://",
        ),
        (["migrate"], {"REFRESHER_DATABASE_URL": "postgresql://u:secret@127.0.0.1:9/x"}, "PostgreSQL at 127.0.0.1:9/x does not answer"),
        (["probe", "bogus"], {}, "no_engine: "),
        (["probe", "noop", "-o", "seconds=x"], {}, "misconfigured: engine noop refuses its options: seconds: "),
    ],
    ids=str,
)
def test_a_failure_is_one_sentence_and_exit_code_1(arguments: list[str], environment: dict[str, str], message: str) -> None:
    """What happened, to what, and what to do; no password, no traceback."""
    failed = refresher(*arguments, **environment)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert message in failed.stderr
    assert "secret" not in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_a_service_runs_in_the_foreground() -> None:
    """`refresher run` is the service itself, its settings and its exit code included."""
    refused = refresher("run", "scheduler", REFRESHER_LOG_LEVEL="loud")
    assert refused.returncode > 0
    assert refused.stderr.startswith("refresher scheduler: REFRESHER_LOG_LEVEL: ")


def test_env_is_for_the_shell() -> None:
    """`eval "$(refresher env)"` sets what the commands and the NATS command line read, whatever characters are in it."""
    told = {"REFRESHER_API_URL": "http://a", "REFRESHER_NATS_URL": "nats://u:it's$HOME@b", "REFRESHER_DATABASE_URL": "postgresql://u:p@c/d"}
    shell = f'eval "$({REFRESHER} env)"; echo "$REFRESHER_API_URL $REFRESHER_NATS_URL $REFRESHER_DATABASE_URL $NATS_URL"'
    answer = subprocess.run(["sh", "-c", shell], env={**os.environ, **told}, capture_output=True, text=True, check=True)
    assert answer.stdout == "http://a nats://u:it's$HOME@b postgresql://u:p@c/d nats://u:it's$HOME@b\n"
    assert answer.stderr == ""
