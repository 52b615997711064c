"""The file of a backup: a compressed tar archive of pieces, with what they are and their checksums at its end.

    backup.json        format, version, who made it and when: the first thing a reader sees
    schedules/000001   every revision of every schedule, a JSON object a line, the oldest first
    results/000001     the rows as PostgreSQL's COPY writes them
    ...                both cut into pieces of a few MiB, with no regard to lines
    manifest.json      the SHA-256 of each piece, and what the pieces hold

The manifest is the last, so that everything is written as it comes: neither side ever holds more than one piece.
"""

import gzip
import json
import os
import tarfile
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from shared.errors import ConfigurationError

FORMAT = "refresher-backup"
VERSION = 1
PIECE = 4 * 2**20

_HEAD, _MANIFEST = "backup.json", "manifest.json"
_BROKEN = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


class Writer:
    """Writes the pieces of a backup, one after the other."""

    def __init__(self, archive: tarfile.TarFile, told: dict[str, Any]) -> None:
        self._archive = archive
        self._sums: dict[str, str] = {}
        self._add(_HEAD, json.dumps({"format": FORMAT, "version": VERSION, **told}).encode())

    def add(self, name: str, data: bytes) -> None:
        """Write one piece."""
        self._sums[name] = sha256(data).hexdigest()
        self._add(name, data)

    def finish(self, holds: dict[str, Any]) -> None:
        """Write the manifest: without it the file is no backup."""
        self._add(_MANIFEST, json.dumps({**holds, "pieces": self._sums}).encode())

    def _add(self, name: str, data: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(data), 0o600
        self._archive.addfile(entry, BytesIO(data))


class Pieces:
    """Collects what comes in small parts and writes it as numbered pieces of a few MiB."""

    def __init__(self, writer: Writer, name: str) -> None:
        self._writer, self._name = writer, name
        self._number = 0
        self._collected = bytearray()

    async def take(self, data: bytes) -> None:
        """Take the next part."""
        self._collected += data
        if len(self._collected) >= PIECE:
            self.flush()

    def flush(self) -> None:
        """Write what is left."""
        if self._collected:
            self._number += 1
            self._writer.add(f"{self._name}/{self._number:06}", bytes(self._collected))
            self._collected.clear()


@contextmanager
def writing(path: Path | None, told: dict[str, Any]) -> Iterator[Writer]:
    """Write a backup to a path, or to standard output; a file of that name is there when it is whole, and not before.

    It holds addresses of lines and people's servers: only its owner can read it.
    Raises: ConfigurationError when there is a file of that name already, or it cannot be written.
    """
    if path is None:
        with os.fdopen(os.dup(1), "wb") as file, _packed(file, told) as writer:
            yield writer
        return
    if path.exists():
        raise ConfigurationError(f"{path} is there already, and a backup is never overwritten: choose another name.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with _packed(file, told) as writer:
                yield writer
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _packed(file: IO[bytes], told: dict[str, Any]) -> Iterator[Writer]:
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
        yield Writer(archive, told)


class Backup:
    """A backup that was read once from its beginning to its end, and is whole."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        """Check every byte of a file.

        Raises: ConfigurationError that says what is wrong: no backup, of a newer version, cut short, damaged.
        """
        self._file, self._name = file, name
        self.head: dict[str, Any] = {}
        self.holds: dict[str, Any] = {}
        sums: dict[str, str] = {}
        for piece, data in self._pieces():
            if not self.head:
                self._begin(piece, data)
            elif piece == _MANIFEST:
                self.holds = self._json(data)
            else:
                sums[piece] = sha256(data).hexdigest()
        if sums != self.holds.get("pieces"):
            raise ConfigurationError(f"{name} is damaged: its checksums do not agree with what is in it.")

    async def stream(self, name: str) -> AsyncIterator[bytes]:
        """Yield the pieces of a table, in order."""
        for piece, data in self._pieces():
            if piece.startswith(f"{name}/"):
                yield data

    def _begin(self, piece: str, data: bytes) -> None:
        self.head = self._json(data) if piece == _HEAD else {}
        made_in = self.head.get("version")
        if self.head.get("format") != FORMAT or not isinstance(made_in, int):
            raise ConfigurationError(f"{self._name} is no backup of Refresher.")
        if made_in > VERSION:
            raise ConfigurationError(f"{self._name} was made by a newer version ({self.head.get('made_by')}): restore it with that one.")

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(data))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{self._name} is damaged: {error}") from None

    def _pieces(self) -> Iterator[tuple[str, bytes]]:
        self._file.seek(0)
        try:
            with gzip.GzipFile(fileobj=self._file, mode="rb") as packed:
                with tarfile.open(fileobj=packed, mode="r|") as archive:
                    for entry in archive:
                        content = archive.extractfile(entry)
                        yield entry.name, content.read() if content else b""
                while packed.read(PIECE):  # to the very end, where the archive's own checksum is
                    pass
        except _BROKEN as error:
            if self.head or isinstance(error, EOFError):
                raise ConfigurationError(f"{self._name} is cut short or damaged: {error}") from None
            raise ConfigurationError(f"{self._name} is no backup of Refresher, or damaged: {error}") from None
