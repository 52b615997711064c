"""How the body of an answer ends: by its length, by chunks, or with the connection."""

from collections.abc import Callable

from services.runner.confined import Failed

Keep = Callable[[memoryview], None]
"""Takes a piece of a body that is looked at."""
LONGEST_LINE = 256
LONGEST_TRAILER = 16 * 1024


class Plain:
    """A body of known length, or until the connection ends."""

    def __init__(self, buffer: bytearray, length: int | None, keep: Keep | None) -> None:
        self._view, self._left, self._keep = memoryview(buffer), length, keep

    def most(self) -> int:
        """Return how much may be received at once."""
        return len(self._view) if self._left is None else min(len(self._view), self._left)

    def take(self, size: int) -> bool:
        """Take what lies in the buffer, and tell whether the body is complete.

        Raises: Failed when there is more than was said.
        """
        if self._keep:
            self._keep(self._view[:size])
        if self._left is None:
            return False
        self._left -= size
        if self._left < 0:
            raise Failed("bad_answer", "the server sent more than the Content-Length that it had announced")
        return self._left == 0

    def ends(self) -> bool:
        """Tell whether the connection may end here."""
        return self._left is None


class Chunks:
    """A body in chunks (RFC 9112, 7.1)."""

    def __init__(self, buffer: bytearray, keep: Keep | None) -> None:
        self._buffer, self._view, self._keep = buffer, memoryview(buffer), keep
        self._data = self._mark = 0
        """What is left of the present chunk, and of the line end after it."""
        self._line = b""
        self._last = False
        self._trailer = 0

    def most(self) -> int:
        """Return how much may be received at once."""
        return len(self._view)

    def take(self, size: int) -> bool:
        """Take what lies in the buffer, and tell whether the body is complete.

        Raises: Failed when it is not what chunks look like.
        """
        at = 0
        while at < size:
            if self._data:
                step = min(self._data, size - at)
                if self._keep:
                    self._keep(self._view[at : at + step])
                self._data -= step
                at += step
            elif self._mark:
                step = min(self._mark, size - at)
                self._mark -= step
                at += step
            else:
                at = self._read_line(at, size)
                if self._last and self._line == b"\r\n":
                    return True
                if self._line.endswith(b"\n"):
                    self._size()
        return False

    def ends(self) -> bool:
        """Tell whether the connection may end here."""
        return False

    def _read_line(self, at: int, size: int) -> int:
        end = self._buffer.find(b"\n", at, size) + 1 or size
        self._line += self._view[at:end]
        if len(self._line) > LONGEST_LINE:
            raise Failed("bad_answer", "the body's chunks have no sizes that can be read")
        return end

    def _size(self) -> None:
        line, self._line = self._line, b""
        if self._last:
            self._trailer += len(line)
            if self._trailer > LONGEST_TRAILER:
                raise Failed("bad_answer", "the body's trailer does not end")
            return
        digits = line.split(b";")[0].strip()
        if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
            raise Failed("bad_answer", f"the body's chunks have no sizes that can be read: {line[:20]!r}")
        self._data = int(digits, 16)
        self._last = self._data == 0
        self._mark = 0 if self._last else 2
