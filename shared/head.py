"""The reading of HTTP by httptools, within bounds."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST_BYTES = 512 * 1024
"""How much of a request may be no body: head, trailers, and the frame of each chunk, of which there may be one to a byte."""


class Bounded(HttpToolsProtocol):
    """uvicorn's protocol, which by itself keeps a head for as long as it grows."""

    _beside_body = 0

    def data_received(self, data: bytes) -> None:
        """Read on, and end the connection on which there is more than that."""
        self._beside_body += len(data)
        super().data_received(data)
        if self._beside_body > LONGEST_BYTES and not self.transport.is_closing():
            self.logger.warning("the head of a request is too long")
            self.transport.close()

    def on_message_begin(self) -> None:
        """Count anew, from the end of the piece of data that it begins in."""
        self._beside_body = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """Leave it out of what is counted."""
        self._beside_body -= len(body)
        super().on_body(body)
