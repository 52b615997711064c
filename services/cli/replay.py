"""The command replay: the rows once more, from the stream of results."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import output, target, values
from services.cli.meter import meter
from services.cli.options import Json
from services.cli.output import Column

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from services.recorder.batch import Refused, Stored
    from shared.events import Result

COLUMNS = (Column("times", right=True), Column("first at", right=True), Column("reason", last=True))
REASONS_SHOWN = 10
TOLD_EVERY = 10_000

From = Annotated[
    datetime | None, typer.Option("--from", parser=values.moment, metavar="WHEN", help="Published at or after: 7d (ago), 2026-03-29.")
]
To = Annotated[datetime | None, typer.Option("--to", parser=values.moment, metavar="WHEN", help="Published before.")]


@dataclass
class Reason:
    """Why messages were refused, how many, and where in the stream the first of them is."""

    reason: str
    first_sequence: int
    count: int = 0


@dataclass
class Summary:
    """What became of the messages that were read."""

    read: int = 0
    new: int = 0
    already_there: int = 0
    refused: int = 0
    reasons: dict[str, Reason] = field(default_factory=dict)

    def add(self, outcome: "Stored[Msg] | Refused[Msg]") -> None:
        """Count what became of one or more messages."""
        from services.recorder.batch import Stored

        if isinstance(outcome, Stored):
            self.read += len(outcome.messages)
            self.new += outcome.new
            self.already_there += len(outcome.messages) - outcome.new
            return
        self.read += 1
        self.refused += 1
        text = outcome.reason.partition("\n")[0][:300]  # Postgres adds the row on further lines
        self.reasons.setdefault(text, Reason(text, outcome.message.metadata.sequence.stream)).count += 1

    def most_frequent(self) -> list[Reason]:
        """Return the reasons, the most frequent first."""
        return sorted(self.reasons.values(), key=lambda each: -each.count)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Run the system")(replay)


def replay(*, since: From = None, until: To = None, json: Json = False) -> None:
    """Rebuild the database from the results that are still on the bus.

    It stores what the recorder would store, in the database that
    REFRESHER_DATABASE_URL names, and brings its schema up to date first. What
    is there already stays as it is, so it can be run again, and while the
    system runs. It ends with the last result that was there when it began.

    The bus keeps results for 30 days: older ones come back from a backup
    alone. So do rows that were restored or inserted otherwise. When a row was
    recorded is the time of the replay.

    [bold]Examples[/bold]
      refresher replay
      refresher replay --from 2026-03-29T14:00Z --to 2026-03-29T16:00Z
    """
    if since and until and since >= until:
        raise typer.BadParameter("it is not before --to.", param_hint="'--from'")
    summary = asyncio.run(_replay(since, until))
    reasons = summary.most_frequent()
    if json:
        output.write_json({**asdict(summary), "reasons": [asdict(each) for each in reasons]})
        return
    counts = {"read": summary.read, "new": summary.new, "already there": summary.already_there, "refused": summary.refused}
    output.pairs({name: f"{count:,}" for name, count in counts.items()})
    if reasons:
        output.table(COLUMNS, [(f"{each.count:,}", each.first_sequence, each.reason) for each in reasons[:REASONS_SHOWN]])
    if len(reasons) > REASONS_SHOWN:
        output.say(f"There are {len(reasons) - REASONS_SHOWN:,} other reasons: --json has them all.")


async def _replay(since: datetime | None, until: datetime | None) -> Summary:
    from services.cli import postgres
    from services.cli.checks import bus
    from services.cli.stream import reading
    from services.recorder import store
    from services.recorder.batch import store_each
    from shared.connect import unreachable
    from shared.database import POSTGRES_AWAY
    from shared.migrate import migrate_if_allowed

    summary, passed = Summary(), 0
    async with bus.connection() as client, postgres.connection() as connection:
        await migrate_if_allowed(connection)

        async def insert(results: "Sequence[Result]") -> int:
            try:
                return await store.insert(connection, results)
            except store.REFUSED:
                raise
            except POSTGRES_AWAY as error:
                raise unreachable("PostgreSQL", target.database_url(), error) from None

        async with reading(client, since) as stream:
            output.say(f"Reading {stream.messages:,} messages.")
            with meter() as report:
                async for messages in stream.batches():
                    wanted = [message for message in messages if _is_before(message, until)]
                    async for outcome in store_each(wanted, insert):
                        summary.add(outcome)
                    passed += len(messages)
                    report("reading", passed / max(stream.messages, passed))
                    if passed % TOLD_EVERY < len(messages) and not sys.stderr.isatty():
                        output.say(f"Read {passed:,} of {stream.messages:,}.")
    return summary


def _is_before(message: "Msg", until: datetime | None) -> bool:
    return until is None or message.metadata.timestamp < until
