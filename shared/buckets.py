"""Everything in a key-value bucket, read so that nothing is left out and nothing is left behind.

nats-py's own ways (`keys`, `watchall`) make a consumer for each call, which stays on the server for five minutes: a
stream has room for 1,000. And they may end too soon, with nothing, when the server answers faster than it delivers.
"""

import asyncio
from collections.abc import Mapping

from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from nats.js.kv import KeyValue

AT_ONCE = 100


async def entries(js: JetStreamContext, bucket: str) -> list[KeyValue.Entry]:
    """Return what is in a bucket, in order of the keys.

    Raises: nats.errors.Error when the server does not answer or has no such bucket (NotFoundError).
    """
    prefix = f"$KV.{bucket}."
    store = await js.key_value(bucket)
    state = (await js.stream_info(f"KV_{bucket}", subjects_filter=f"{prefix}>")).state
    keys = sorted(subject.removeprefix(prefix) for subject in state.subjects or {})
    found: list[KeyValue.Entry | None] = []
    for start in range(0, len(keys), AT_ONCE):
        found += await asyncio.gather(*(_entry(store, key) for key in keys[start : start + AT_ONCE]))
    return [entry for entry in found if entry]


def is_removal(headers: Mapping[str, str] | None) -> bool:
    """Return whether a message in a bucket's stream says that its key was removed (NATS ADR-8), by a person or by its age."""
    return bool(headers and ("KV-Operation" in headers or "Nats-Marker-Reason" in headers))


async def _entry(store: KeyValue, key: str) -> KeyValue.Entry | None:
    try:
        return await store.get(key, validate_keys=False)  # whoever wrote it may not have kept to the rules
    except NotFoundError:  # deleted: its subject remains
        return None
