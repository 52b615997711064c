"""What becomes of a run that has no row: whether it is missed, and why, or when to look again. Pure decisions."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from services.recorder.open_runs import OpenRun
from shared.events import ANY, Failure

Place = tuple[str, str | None]
"""A site and a line of it."""


@dataclass(frozen=True)
class Present:
    """Who was there when a sweep began."""

    now: datetime
    runners: frozenset[Place]
    """Those lines that have a runner."""
    leaves: frozenset[str]
    """The sites with a NATS server of their own: what their schedulers and runners do there is not seen, only what comes of it."""
    busy: frozenset[UUID]
    """The runs that are being measured."""
    acknowledged: Mapping[Place, int]
    """For each line that ever had a runner: all of its ticks up to this place in the stream were taken and ended."""
    has_scheduler: bool
    """One has been there for long enough to have published what it wanted to."""


@dataclass(frozen=True)
class Later:
    """It is too early to say: look again at this time."""

    at: datetime


@dataclass(frozen=True)
class Nobodys:
    """It was not published, and nobody says that it should have been."""


def verdict(run: OpenRun, present: Present, patience: timedelta, *, may_be_published: bool) -> Failure | Later | Nobodys:
    """Decide about a run that has no row although all results that were there were recorded.

    `may_be_published` says that a scheduler that comes back may still publish it; `patience` is how long after the last moment
    at which a run could start its row may be on its way.
    """
    if run.run_id in present.busy:
        return Later(present.now + patience)
    if run.expires_at is not None and present.now < run.expires_at + patience:
        return Later(run.expires_at + patience)
    if run.expires_at is None and not run.is_certain:
        return Nobodys()
    if run.expires_at is None and may_be_published and not present.has_scheduler:
        return Later(present.now + patience)
    return _reason(run, present)


def _reason(run: OpenRun, present: Present) -> Failure:
    if run.expires_at is None and run.withdrawn:
        return _withdrawn(run, run.withdrawn)
    if run.site in present.leaves:
        return _no_word(run, present)
    return _not_run(run, run.expires_at, present) if run.expires_at is not None else _not_published(run)


def _not_run(run: OpenRun, expires_at: datetime, present: Present) -> Failure:
    if run.line == ANY:
        return _not_claimed(run, expires_at, present)
    place, where = (run.site, run.line), _where(run)
    until = f"{expires_at:%Y-%m-%d %H:%M:%S} UTC"
    if place not in present.acknowledged and place not in present.runners:
        line = f" REFRESHER_LINE={run.line}" if run.line else ""
        start = f"start one there with REFRESHER_SITE={run.site}{line}"
        return Failure(kind="no_runner", message=f"there has never been a runner of {where}: {start}, or take the site out of the schedule")
    if run.tick_sequence is not None and run.tick_sequence <= present.acknowledged.get(place, 0):
        look = "look for it among the dead letters (refresher dead list), and in the runner's log"
        return Failure(kind="lost", message=f"a runner of {where} took it, and its result did not come: {look}")
    if place not in present.runners:
        look = "start it, and see that it reaches NATS (refresher runners)"
        return Failure(kind="runner_offline", message=f"no runner of {where} was there to start it before {until}: {look}")
    look = "see what kept it busy (refresher runners), and its log"
    return Failure(kind="expired", message=f"the runner of {where} could not start it before {until}: {look}")


def _not_claimed(run: OpenRun, expires_at: datetime, present: Present) -> Failure:
    until = f"{expires_at:%Y-%m-%d %H:%M:%S} UTC"
    if not any(site == run.site for site, _ in (*present.acknowledged, *present.runners)):
        start = f"start one there with REFRESHER_SITE={run.site}"
        return Failure(
            kind="no_runner", message=f"there has never been a runner of site {run.site}: {start}, or take it out of the schedule"
        )
    if not any(site == run.site for site, _ in present.runners):
        look = "start one, and see that it reaches NATS (refresher runners)"
        return Failure(
            kind="runner_offline", message=f"no runner of any line of site {run.site} was there to start it before {until}: {look}"
        )
    look = "see what kept them busy (refresher runners), and their logs"
    return Failure(kind="expired", message=f"no line of site {run.site} took it before {until}: {look}")


def _no_word(run: OpenRun, present: Present) -> Failure:
    where, its_own = _where(run), f"site {run.site} has a NATS server of its own, and no word of this run came from it"
    if any(site == run.site and run.line in {line, ANY} for site, line in present.runners):
        look = "see the logs of the scheduler and the runner there"
        return Failure(kind="lost", message=f"{its_own}, although a runner of {where} is there: {look}")
    look = "see that the line to it is up, and a runner there (refresher runners); what it measured takes the place of this row"
    return Failure(kind="runner_offline", message=f"{its_own}; no runner of {where} is heard of: {look}")


def _where(run: OpenRun) -> str:
    which = "any line" if run.line == ANY else f"line {run.line}"
    return f"{which} of site {run.site}" if run.line else f"site {run.site}"


def _withdrawn(run: OpenRun, withdrawn: str) -> Failure:
    reason = f"{withdrawn}, before this run was to start at {run.start_at:%Y-%m-%d %H:%M:%S} UTC"
    return Failure(kind="changed", message=f"{reason}: if it is still wanted, ask for one (refresher run-now)")


def _not_published(run: OpenRun) -> Failure:
    if run.is_watched:
        return Failure(kind="scheduler_down", message="no scheduler was there to start it: see that one runs (refresher doctor)")
    reason = "nobody recorded when it was due, and no trace of it is left: see that scheduler and recorder run all the time"
    return Failure(kind="lost", message=reason)
