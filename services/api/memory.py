"""Answers that are kept for as long as nothing is committed: whoever asks for the same meanwhile costs Postgres one look."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable

from services.api.conditional import Marked, marked
from services.api.database import Database

LARGEST = 16_000_000
"""So many bytes of answers are kept at most."""
ASKED = 1_000
"""So many questions are known again."""

# What this server would show to a statement: it is another as soon as any transaction that changed something has ended.
_SHOWN = "SELECT pg_postmaster_start_time(), pg_current_snapshot()::text"


class Memory:
    """The answers of one moment of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shown: object = None
        self._answers: dict[Hashable, asyncio.Task[Marked]] = {}
        self._size = 0
        self._asked: set[Hashable] = set()
        self._looking: asyncio.Task[object] | None = None
        self._next_look: asyncio.Task[object] | None = None

    async def answer(self, question: Hashable, make: Callable[[], Awaitable[bytes]]) -> Marked:
        """Return the answer to a question, which `make` reads from the database and nothing else.

        The first time it is only made, for most questions are never asked again. From then on it is read once for all who ask:
        it is asked each time what is shown now, before anything is read. An answer is kept under what was shown before it was
        read, and given again only while that is still shown: then nothing ended in between, so it was read from the same.
        Raises: Unavailable, and what `make` raises.
        """
        if question not in self._asked:
            if len(self._asked) == ASKED:
                self._asked.clear()
            self._asked.add(question)
            try:
                return marked(await make())
            except Exception:
                self._asked.discard(question)  # what is refused is refused again before anything is looked at
                raise
        shown = await self._look()
        if shown != self._shown:
            self._shown = shown
            self._forget()
        if (making := self._answers.get(question)) is None:
            making = self._answers[question] = asyncio.create_task(self._make(question, make))
        return await asyncio.shield(making)  # others may wait for it when whoever asked first has gone

    async def _make(self, question: Hashable, make: Callable[[], Awaitable[bytes]]) -> Marked:
        answers, size = self._answers, 0
        try:
            made = marked(await make())
            size = len(made.body)
        finally:
            if not 0 < size <= LARGEST:
                answers.pop(question, None)
            elif answers is self._answers:
                self._size += size
                if self._size > LARGEST:
                    self._forget()
        return made

    def _forget(self) -> None:
        self._answers, self._size = {}, 0

    async def _look(self) -> object:
        """Return what is shown at a moment after this was called. All who come during one look share the next."""
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._look_after(self._looking))
        return await asyncio.shield(self._next_look)

    async def _look_after(self, before: "asyncio.Task[object] | None") -> object:
        if before and not before.done():
            await asyncio.wait({before})
        self._looking, self._next_look = self._next_look, None  # who comes from here on may have come too late for it
        return await self._database.row(_SHOWN)
