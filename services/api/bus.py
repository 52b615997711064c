"""NATS as the API uses it. An outage is `Unavailable`, and ends by itself."""

from collections.abc import Iterator
from contextlib import contextmanager

from faststream.nats import NatsBroker
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.kv import KeyValue

from shared import buckets
from shared.connect import NATS_AWAY, client_of, unreachable
from shared.errors import Unavailable

ANSWERED_WITHIN_S = 10.0


class Bus:
    """The streams and buckets of a started broker."""

    def __init__(self, broker: NatsBroker, url: str) -> None:
        self._broker, self._url = broker, url
        self._buckets: dict[str, KeyValue] = {}

    @contextmanager
    def reached(self) -> Iterator[JetStreamContext]:
        """Lend the JetStream context.

        Raises: Unavailable at once while disconnected, and for whatever NATS says that was not caught inside.
        """
        client, js = client_of(self._broker)
        if not client.is_connected:
            raise unreachable("NATS", self._url, ConnectionError("not connected"))
        try:
            yield js
        except NATS_AWAY as error:
            raise unreachable("NATS", self._url, error) from error

    async def bucket(self, name: str) -> KeyValue:
        """Return a key-value bucket; to be used inside `reached`."""
        if name not in self._buckets:
            _, js = client_of(self._broker)
            self._buckets[name] = await js.key_value(name)
        return self._buckets[name]

    async def entries(self, name: str) -> list[KeyValue.Entry]:
        """Return everything in a bucket, in order of the keys.

        Raises: Unavailable.
        """
        with self.reached() as js:
            return await buckets.entries(js, name)

    async def ask(self, subject: str, question: bytes, who: str, within_s: float = ANSWERED_WITHIN_S) -> Msg:
        """Ask another service, and return its answer.

        Raises: Unavailable, also when there is no such service (`who` names it).
        """
        with self.reached():
            try:
                return await client_of(self._broker)[0].request(subject, question, timeout=within_s)
            except NoRespondersError:
                raise Unavailable(f"No {who} is there to answer: start one.") from None
