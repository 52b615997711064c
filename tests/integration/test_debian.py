"""Debian's programs, as the tests get them."""

import subprocess

import pytest

from tests.debian import program


def test_a_program_is_there_and_runs() -> None:
    """It is found a second time without a download, and works from where it is unpacked."""
    promtool = program("prometheus", "usr/bin/promtool")
    assert program("prometheus", "usr/bin/promtool") == promtool
    assert "promtool" in subprocess.run([promtool, "--version"], capture_output=True, text=True, check=True).stdout


def test_what_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that the package does not have, and a machine without apt: the message names the package and what to do."""
    with pytest.raises(RuntimeError, match="package prometheus has no usr/bin/nothing"):
        program("prometheus", "usr/bin/nothing")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"install it yourself \(Debian's package is prometheus\)"):
        program("prometheus", "usr/bin/promtool")
