"""Put a message that can never be used aside, with the reason, where a person can look at it."""

import logging

from nats.aio.msg import Msg
from nats.js import JetStreamContext

from shared import subjects
from shared.publish import publish_until_stored

log = logging.getLogger(__name__)

REASON = "Refresher-Reason"
SUBJECT = "Refresher-Subject"
SEQUENCE = "Refresher-Sequence"
SIZE = "Refresher-Size"
LONGEST = 512 * 1024
"""In bytes. What is longer is cut, and its size told: with the headers, a message of the server's limit would exceed it."""


async def bury(js: JetStreamContext, message: Msg, reason: str) -> None:
    """Store a message on the dead-letter stream as it came, with reason, subject and sequence in its headers, and end its delivery.

    It is stored before the original is given up, so a crash in between leaves two copies at worst, and never none.
    """
    metadata = message.metadata
    # a header is one line of printable text
    told = " ".join(reason.split())[:1_000].encode("ascii", "backslashreplace").decode()
    headers = {REASON: told, SUBJECT: message.subject, SEQUENCE: str(metadata.sequence.stream)}
    data = message.data
    if len(data) > LONGEST:
        headers[SIZE], data = str(len(data)), data[:LONGEST]
    await publish_until_stored(
        js, subjects.DEAD, subjects.dead(metadata.stream), data, f"{metadata.stream}:{metadata.sequence.stream}", headers
    )
    await message.term()
    log.error("message put aside", extra={"subject": message.subject, "sequence": metadata.sequence.stream, "reason": told})
