"""Publish to a stream so that the message is there once, whatever happens on the way."""

import asyncio
import logging

from nats.errors import ConnectionClosedError, MaxPayloadError
from nats.js import JetStreamContext
from nats.js.errors import APIError

from shared.connect import NATS_AWAY

log = logging.getLogger(__name__)

ALREADY_THERE = (10077, "maximum messages per subject exceeded")
"""What the server says to a second message on a subject that may hold one.

The code alone does not tell: a stream that is full says the same one, with other words, and the message is then nowhere.
"""


async def publish(
    js: JetStreamContext, stream: str, subject: str, payload: bytes, message_id: str, headers: dict[str, str] | None = None
) -> bool:
    """Publish once and return whether the message is new; False means that it was already there.

    A timeout does not say that the message was not stored: calling again with the same id is safe.
    Raises: nats.errors.Error when the server does not answer or refuses (APIError: stream full, no permission).
    """
    try:
        acknowledgement = await js.publish(subject, payload, stream=stream, headers={**(headers or {}), "Nats-Msg-Id": message_id})
    except APIError as error:
        if (error.err_code, error.description) == ALREADY_THERE:
            return False
        raise
    return not acknowledgement.duplicate


async def publish_until_stored(
    js: JetStreamContext, stream: str, subject: str, payload: bytes, message_id: str, headers: dict[str, str] | None = None
) -> bool:
    """Publish, trying again for as long as it takes, and return whether the message is new.

    Raises: MaxPayloadError for a message over the server's limit, ConnectionClosedError when the client has given up.
    """
    wait = 0.05
    while True:
        try:
            return await publish(js, stream, subject, payload, message_id, headers)
        except (MaxPayloadError, ConnectionClosedError):
            raise  # no waiting mends these
        except NATS_AWAY as error:
            log.warning("publish not acknowledged, trying again", extra={"subject": subject, "error": str(error) or type(error).__name__})
        await asyncio.sleep(wait)
        wait = min(wait * 2, 5)
