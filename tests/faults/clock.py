"""A clock of their own for services, which a test may set: libfaketime, from Debian, between them and the system's."""

from pathlib import Path

from tests import debian


class Clock:
    """The wall clock of every process that is started with its environment; their monotonic clock goes on as ever."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self.set(0)

    def set(self, ahead_s: int) -> None:
        """Let it be so many seconds ahead of the system's, or behind."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_s:+d}\n")
        new.rename(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that goes by this clock."""
        (library,) = (
            debian.program("libfaketime", "usr/share/doc/libfaketime/copyright").parents[4].glob("usr/lib/*/faketime/libfaketime.so.1")
        )
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
