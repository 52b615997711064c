"""What is sent in a download: random bytes, made once."""

import mmap
import os
import secrets
import sys

MIB = 1_048_576
BLOCK_BYTES = 8 * MIB
"""Longer than what compressing lines look back (zstd's default: 2 MiB), so that a repetition is not found."""
PIECE_BYTES = 262_144
"""What is handed to the transport at once: measured on loopback, 64 KiB reached two thirds of it, 1 MiB three quarters."""
DEFAULT_MIB = 4
MOST_MIB = 1_024


def _file() -> int | None:
    """Return a file in memory that the kernel can send from without a copy, None where there is no such thing."""
    if sys.platform != "linux":
        return None
    number = os.memfd_create("garbage")
    os.truncate(number, BLOCK_BYTES)
    return number


FILE = _file()
"""The block as a file."""
_MAPPED = mmap.mmap(-1 if FILE is None else FILE, BLOCK_BYTES)
_MAPPED[:] = os.urandom(BLOCK_BYTES)
_BLOCK = memoryview(_MAPPED)


class Garbage:
    """An endless row of random bytes that begins somewhere else each time."""

    def __init__(self) -> None:
        self._at = secrets.randbelow(BLOCK_BYTES // PIECE_BYTES) * PIECE_BYTES

    def piece(self, most: int) -> memoryview:
        """Return the next bytes, `most` or PIECE_BYTES of them."""
        piece = _BLOCK[self._at : self._at + min(most, PIECE_BYTES)]
        self._at = (self._at + PIECE_BYTES) % BLOCK_BYTES
        return piece

    def send(self, descriptor: int, file: int, most: int) -> int:
        """Send the next bytes, at most so many, from FILE, and return how many the socket took.

        Raises: BlockingIOError when it takes none now; OSError when it never will.
        """
        sent = os.sendfile(descriptor, file, self._at, min(most, BLOCK_BYTES - self._at))
        self._at = (self._at + sent) % BLOCK_BYTES
        return sent


def length(chunks: str | None) -> int:
    """Return how many bytes `ckSize` asks for: it counts MiB, at most 1,024, and is 4 where it says nothing (LibreSpeed's rule)."""
    if chunks is None or not (chunks.isascii() and chunks.isdecimal()):
        return DEFAULT_MIB * MIB
    wanted = MOST_MIB if len(chunks.lstrip("0")) > len(str(MOST_MIB)) else min(int(chunks), MOST_MIB)
    return (wanted or DEFAULT_MIB) * MIB
