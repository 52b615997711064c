"""Answers that are kept for as long as nothing is committed: whoever asks for the same meanwhile costs Postgres one look."""

from collections.abc import Awaitable, Callable, Hashable

from services.api.database import Database

LARGEST = 16_000_000
"""So many bytes of answers are kept at most."""

# What this server would show to a statement: it is another as soon as any transaction that changed something has ended.
_SHOWN = "SELECT pg_postmaster_start_time(), pg_current_snapshot()::text"


class Memory:
    """The answers of one moment of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shown: object = None
        self._answers: dict[Hashable, bytes] = {}
        self._size = 0

    async def answer(self, question: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the answer to a question, which `make` reads from the database and nothing else.

        It is asked each time what is shown now, before anything is read. An answer is kept under what was shown before it was
        read, and given again only while that is still shown: then nothing ended in between, so it was read from the same.
        Raises: Unavailable, and what `make` raises.
        """
        shown = await self._database.row(_SHOWN)
        if shown != self._shown:
            self._shown = shown
            self._forget()
        if (kept := self._answers.get(question)) is not None:
            return kept
        made = await make()
        if shown == self._shown and question not in self._answers and len(made) <= LARGEST:
            if self._size + len(made) > LARGEST:
                self._forget()
            self._answers[question] = made
            self._size += len(made)
        return made

    def _forget(self) -> None:
        self._answers.clear()
        self._size = 0
