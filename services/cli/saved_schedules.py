"""The schedules in a backup: every revision that the bucket remembers, of which the last of each is restored.

Earlier revisions are there to be read. They are not played back: a scheduler that is running would take each of them
for a change and run it.
"""

import json
from typing import Any

from nats.js import JetStreamContext
from nats.js.errors import BucketNotFoundError, NotFoundError

from services.cli.archive import Backup, Pieces, Writer
from shared import subjects
from shared.buckets import entries
from shared.errors import ConfigurationError
from shared.provision import provision

NAME = "schedules"
_STREAM = f"KV_{subjects.SCHEDULES}"
_PREFIX = f"$KV.{subjects.SCHEDULES}."


async def save(js: JetStreamContext, writer: Writer) -> int:
    """Write every revision, one JSON object a line, the oldest first; return how many schedules there are.

    Raises: ConfigurationError when there is no bucket.
    """
    try:
        last = (await js.stream_info(_STREAM)).state.last_seq
    except NotFoundError:
        raise ConfigurationError("this NATS server has no schedules: does REFRESHER_NATS_URL name the right one?") from None
    pieces = Pieces(writer, NAME)
    current: set[str] = set()
    sequence = 1
    while sequence <= last:
        try:
            message = await js.get_msg(_STREAM, sequence, f"{_PREFIX}>", next=True)
        except NotFoundError:
            break
        sequence = (message.seq or sequence) + 1
        name = str(message.subject).removeprefix(_PREFIX)
        is_there = "KV-Operation" not in (message.headers or {}) and "Nats-Marker-Reason" not in (message.headers or {})
        (current.add if is_there else current.discard)(name)
        await pieces.take(_line(name, message.time, message.data or b"" if is_there else None))
    pieces.flush()
    return len(current)


def _line(name: str, at: Any, value: bytes | None) -> bytes:
    # anybody may have written anything: what is not UTF-8 comes back as it was, too
    text = None if value is None else value.decode(errors="surrogateescape")
    return json.dumps({"schedule": name, "at": at.isoformat(), "value": text}).encode() + b"\n"


async def prepare(js: JetStreamContext, *, replace: bool) -> None:
    """Make the bucket where there is none.

    Raises: ConfigurationError when there are schedules, unless they are to be replaced.
    """
    try:
        present = await entries(js, subjects.SCHEDULES)
    except BucketNotFoundError:
        return await provision(js)
    if present and not replace:
        raise ConfigurationError("there are schedules already: with --replace they are removed first.")
    return None


async def load(js: JetStreamContext, backup: Backup) -> None:
    """Make the bucket hold the schedules of the backup, byte for byte, and no other; what is the same is not touched."""
    wanted: dict[str, bytes] = {}
    rest = b""
    async for piece in backup.stream(NAME):
        *lines, rest = (rest + piece).split(b"\n")
        for revision in map(json.loads, lines):
            wanted.pop(revision["schedule"], None)
            if revision["value"] is not None:
                wanted[revision["schedule"]] = revision["value"].encode(errors="surrogateescape")
    present = {entry.key: entry.value for entry in await entries(js, subjects.SCHEDULES)}
    for name in present.keys() - wanted.keys():
        await js.publish(f"{_PREFIX}{name}", b"", headers={"KV-Operation": "DEL"})
    for name, value in wanted.items():
        if present.get(name) != value:
            await js.publish(f"{_PREFIX}{name}", value)
