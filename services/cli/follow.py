"""Results as they are stored, for as long as somebody looks: the API may restart meanwhile, and nothing is left out."""

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from services.cli import output
from services.cli.api import Api, Event, Problem, pages, path
from shared.errors import Unavailable

Result = dict[str, Any]

LATEST = timedelta(days=2)
"""A result is recorded at most so long after it was due: the catch-up window, and then the time to start in."""
SETTLED = timedelta(minutes=1)
"""How long a row may be in the making, its time of recording already taken, while a later one is there to see."""
PATIENCE_S = 2.0
"""How long to ask for a row whose event has come. One that comes later is found among what was missed; for some none ever comes."""


def follow(api: Api, filters: Mapping[str, object], since: datetime | None, newest_first: list[Result]) -> Iterator[Result]:
    """Yield the results at hand, oldest first, and then every one that is stored, once each, for ever.

    Raises: Unavailable when the API does not answer the first time; later it is waited for.
    """
    follower = _Follower(api, filters, since, newest_first)
    yield from reversed(newest_first)
    is_first, is_away = True, False
    while True:
        try:
            with api.events("GET", "/events", site=filters.get("site")) as events:
                for event in events:  # the first is a keep-alive: time to look for what was missed until now
                    yield from follower.react(event)
                    is_first = is_away = False
        except (Unavailable, Problem) as error:
            if is_first or (isinstance(error, Problem) and error.status != 503):
                raise
            if not is_away:
                output.say(f"{error} Waiting for it.")
            is_away = True
        time.sleep(0.5)


_BEGINNING = datetime(1971, 1, 1, tzinfo=UTC)


def _recorded_at(result: Result) -> datetime:
    return datetime.fromisoformat(result["recorded_at"])


class _Follower:
    """What has been shown, and what is known to be on its way."""

    def __init__(self, api: Api, filters: Mapping[str, object], since: datetime | None, shown: list[Result]) -> None:
        self._api, self._filters = api, filters
        self._shown = {result["run_id"] for result in shown}
        self._on_the_way: dict[str, None] = {}
        self._since = since or _BEGINNING
        self._last_recorded_at = self._floor = max(map(_recorded_at, shown), default=_BEGINNING)
        """Nothing recorded before the floor is new: it was left out of what was shown on purpose."""

    def note(self, result: Result) -> None:
        self._shown.add(result["run_id"])
        self._on_the_way.pop(result["run_id"], None)
        self._last_recorded_at = max(self._last_recorded_at, _recorded_at(result))

    def react(self, event: Event) -> Iterator[Result]:
        """Yield what is there to show after an event; a keep-alive is the time to look for rows that came late."""
        if event.kind in {"lagged", ""}:
            yield from self.missed()
        elif event.kind == "result" and self._is_wanted(event.data):
            self._on_the_way[event.data["run_id"]] = None
            yield from self._stored()

    def missed(self) -> Iterator[Result]:
        """Yield what was stored since the last one shown: by another way than the events, which may have been missed."""
        due_from = max(self._since, self._last_recorded_at - LATEST)
        recorded_from = max(self._floor, self._last_recorded_at - SETTLED)
        found = list(pages(self._api, 100_000, {**self._filters, "from": due_from.isoformat()}))
        for result in sorted(found, key=_recorded_at):
            if result["run_id"] not in self._shown and _recorded_at(result) >= recorded_from:
                self.note(result)
                yield result

    def _is_wanted(self, result: Mapping[str, Any]) -> bool:
        return result["run_id"] not in self._shown and all(
            wanted is None or result.get(name) == wanted for name, wanted in self._filters.items()
        )

    def _stored(self) -> Iterator[Result]:
        """Yield the rows on the way that have arrived: the event comes when a runner is done, the row a moment later."""
        end = time.monotonic() + PATIENCE_S
        while True:
            for run_id in list(self._on_the_way):
                try:
                    result = self._api.get(path("results", run_id))
                except Problem as error:
                    if error.status not in {404, 503}:
                        raise
                else:
                    self.note(result)
                    yield result
            if not self._on_the_way:
                return
            if time.monotonic() >= end:
                self._on_the_way.clear()
                return
            time.sleep(0.1)
