"""Tokens for the UDP echo: who holds one may have so many datagrams echoed, for so long, to the address that asked for it."""

import secrets
from collections import deque
from dataclasses import dataclass

TOKEN_BYTES = 16
SECONDS = 30
DATAGRAMS = 5_000
PER_ADDRESS = 8
AT_ONCE = 4_096
"""So many tokens live at once: what strangers can make this server remember is bounded."""


@dataclass
class _Holder:
    address: str
    until: float
    left: int = DATAGRAMS


class Tokens:
    """The living tokens. Times are seconds of one clock that never goes back."""

    def __init__(self) -> None:
        self._holders: dict[bytes, _Holder] = {}
        self._of: dict[str, deque[bytes]] = {}

    def issue(self, address: str, now: float) -> bytes | None:
        """Return a new token of an address, in place of its oldest where it has PER_ADDRESS; None when too many live."""
        self._forget(now)
        own = self._of.setdefault(address, deque())
        if len(own) >= PER_ADDRESS:
            del self._holders[own.popleft()]
        if len(self._holders) >= AT_ONCE:
            if not own:
                del self._of[address]
            return None
        token = secrets.token_bytes(TOKEN_BYTES)
        self._holders[token] = _Holder(address, now + SECONDS)
        own.append(token)
        return token

    def spend(self, token: bytes, address: str, now: float) -> str:
        """Take one datagram from a token and return `echoed`; else why not: `unknown`, `expired`, `spent`."""
        holder = self._holders.get(token)
        if holder is None or holder.address != address:
            return "unknown"
        if now > holder.until:
            return "expired"
        if holder.left <= 0:
            return "spent"
        holder.left -= 1
        return "echoed"

    def _forget(self, now: float) -> None:
        """Drop what has expired; all live equally long, so the oldest come first."""
        while self._holders:
            token, holder = next(iter(self._holders.items()))
            if now <= holder.until:
                return
            del self._holders[token]
            own = self._of[holder.address]
            own.popleft()
            if not own:
                del self._of[holder.address]
