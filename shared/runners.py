"""What a runner says of itself in the bucket of runners, every few seconds; silent ones expire."""

from uuid import UUID

from pydantic import AwareDatetime

from shared.events import Event, Name, Text


class Runner(Event):
    """A runner that is there. Its key in the bucket is `<site>.<id>`."""

    id: Text
    site: Name
    line: Name | None = None
    """The line of the site that it measures; None is the one without a name."""
    labels: tuple[Name, ...] = ()
    engines: tuple[str, ...]
    version: Text
    host: Text
    started_at: AwareDatetime
    seen_at: AwareDatetime
    run_id: UUID | None = None
    """The run it is busy with."""
    beside: tuple[UUID, ...] = ()
    """Those that it measures beside that one, since they do not use the line."""
