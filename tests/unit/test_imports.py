"""What a process imports stays in its memory for as long as it runs, which is months."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("services.scheduler.app", {"asyncpg"}),
        ("services.runner.app", {"asyncpg"}),
        ("services.embedded.__main__", {"typer", "rich", "pydantic", "asyncpg", "faststream"}),
    ],
)
def test_a_process_is_spared_what_it_does_not_use(module: str, without: set[str]) -> None:
    """The scheduler and the runner know no database; the supervisor is no command line."""
    code = f"import sys, {module}; print(*sorted({without} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
