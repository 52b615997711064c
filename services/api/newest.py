"""The newest results of every line: read at each scrape, and kept until the next."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

import asyncpg

from services.api.database import Database
from services.api.queries import NEWEST

Place = tuple[str, str | None, str]
"""Site, line and engine; None is the line without a name."""

RUNS = 10
AT_FIRST, EACH_TIME = 1_000, 20
"""So many runs of a site and engine are read, of all its lines together."""
REMEMBERED = timedelta(days=31)


class NewestRuns:
    """The newest ten runs of each site, line and engine that succeeded or failed, the newest first.

    An index finds those of a site and engine at once, but not those of each line: one that is measured once a day is soon lost
    among the runs of another that is measured every minute. So what was seen stays, for a month.
    """

    def __init__(self) -> None:
        self._runs: dict[Place, list[asyncpg.Record]] = {}

    async def read(self, database: Database) -> Mapping[Place, Sequence[asyncpg.Record]]:
        """Read what is new.

        Raises: Unavailable.
        """
        rows = await database.rows(NEWEST, EACH_TIME if self._runs else AT_FIRST)
        found: dict[Place, dict[object, asyncpg.Record]] = {}
        for row in rows:
            found.setdefault((row["site"], row["line"], row["engine"]), {})[row["run_id"]] = row
        for place, runs in found.items():
            known = {run["run_id"]: run for run in self._runs.get(place, ())}
            self._runs[place] = sorted((known | runs).values(), key=lambda run: (run["due_at"], run["run_id"]), reverse=True)[:RUNS]
        last = max((row["due_at"] for row in rows), default=None)
        self._runs = {
            place: runs for place, runs in self._runs.items() if place in found or (last and last - runs[0]["due_at"] < REMEMBERED)
        }
        return self._runs
