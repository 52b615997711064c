"""What every request passes before anything else looks at it, and the headers that every answer carries."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.problems import answer

LONGEST_BODY = 64 * 1024
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# the page of /docs is Swagger UI as FastAPI serves it: an inline script, and its code from this one server
_DOCS_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    "img-src 'self' data: https://fastapi.tiangolo.com; connect-src 'self'; frame-ancestors 'none'"
)


class Guard:
    """Refuses foreign host names, bodies over 64 KB, and changes that a web page elsewhere could have sent."""

    def __init__(self, app: ASGIApp, hosts: str) -> None:
        self._app = app
        self._hosts = {name.strip().lower() for name in hosts.split(",") if name.strip()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a problem document, or pass the request on with its body read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"] == "/docs":
                    headers["Content-Security-Policy"] = _DOCS_POLICY
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._foreign(scope, headers)
        if refusal is None and scope["method"] in {"POST", "PUT", "PATCH", "DELETE"}:
            body = await _read(receive, headers)
            refusal = _refusal(scope["method"], headers, body)
            receive = _again(body or b"", receive)
        await (refusal or self._app)(scope, receive, send_guarded)

    def _foreign(self, scope: Scope, headers: Headers) -> Response | None:
        # orchestrators ask for health by address, and it tells nothing worth stealing
        if not scope["path"].startswith("/health/") and not self._is_ours(headers.get("host", "")):
            return answer(421, "The Host header is not one of ours: call localhost, or list the name in REFRESHER_API_HOSTS.")
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if "*" in self._hosts or name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True  # an address cannot be pointed elsewhere; Prometheus finds every replica by it


def _refusal(method: str, headers: Headers, body: bytes | None) -> Response | None:
    if body is None:
        return answer(413, f"The body is over {LONGEST_BODY} bytes.")
    # A form or a script of another site can send POST without asking first, but not with this type; for PUT and DELETE a
    # browser always asks first, and is refused because there is no CORS. Origin and Sec-Fetch-Site are what browsers add:
    # without them and without a body (pause, resume) it is no browser.
    is_json = headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    is_plain = not body and not {"content-type", "origin", "sec-fetch-site"} & set(headers)
    if method == "DELETE" or is_json or is_plain:
        return None
    return answer(415, "A request that changes something needs the header Content-Type: application/json.")


async def _read(receive: Receive, headers: Headers) -> bytes | None:
    """Return the body, or None when it is too long; reading it here bounds one that comes in chunks, too."""
    announced = headers.get("content-length", "0")
    if announced.isdecimal() and int(announced[:20]) > LONGEST_BODY:
        return None
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LONGEST_BODY:
            return None
        if not message.get("more_body", False):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a channel that gives the body once more and then whatever comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
