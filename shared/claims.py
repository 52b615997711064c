"""What is said about runs that any line of a site may measure: read from the stream of claims."""

from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from pydantic import ValidationError

from shared import subjects
from shared.events import Claim


async def said(js: JetStreamContext, subject: str, *, direct: bool = False) -> Claim | None:
    """Return what is said on a subject of the stream of claims, None where nothing that can be read is.

    `direct` asks whichever server of a cluster answers, which may not have heard of it yet; otherwise the leader says.
    Raises: nats.errors.Error.
    """
    try:
        message = await js.get_msg(subjects.CLAIMS, subject=subject, direct=direct)
        return Claim.model_validate_json(message.data or b"")
    except (NotFoundError, ValidationError):
        return None
