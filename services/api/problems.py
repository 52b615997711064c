"""Every error of the API is a problem document (RFC 9457) that names what is wrong, where, and what to do."""

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import RefresherError, Unavailable, reason

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
NOT_VALID = "The request is not valid: see `errors`."


class FieldError(BaseModel):
    """One thing that is wrong with a request."""

    field: str
    """The name of the parameter, or the path to the field in the body, with dots; `body` for the body as a whole."""
    reason: str


class Problem(BaseModel):
    """What went wrong, to what, and what to do."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Unprocessable Content",
                    "status": 422,
                    "detail": "The request is not valid: see `errors`.",
                    "errors": [{"field": "limit", "reason": "Input should be less than or equal to 1000"}],
                }
            ]
        }
    )

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    errors: list[FieldError]
    """Empty unless particular fields are at fault."""


class ProblemError(RefresherError):
    """End a request with a problem document."""

    def __init__(self, status: int, detail: str, errors: Sequence[tuple[str, str]] = (), headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, errors, headers


def refused(field: str, reason: str) -> ProblemError:
    """Return the error for a value that is well formed and yet cannot be used: 422."""
    return ProblemError(422, NOT_VALID, [(field, reason)])


def answer(status: int, detail: str, errors: Sequence[tuple[str, str]] = (), headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem document as a response."""
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "errors": [{"field": field[:200], "reason": reason} for field, reason in errors[:100]],
    }
    # escaped to ASCII: a reason may quote what was sent, and that may be half of a surrogate pair
    return Response(json.dumps(document), status, headers, MEDIA_TYPE)


_MEANINGS = {
    404: "There is no such thing; `detail` names it.",
    405: "This path knows no such method; `Allow` lists those it knows.",
    409: "It is there already, was changed by somebody else at the same time, or is not such that this can be done to it.",
    412: "`If-Match` names a revision that is no longer the present one: read it again.",
    413: "The body is over 64 KB.",
    415: "A request that changes something needs `Content-Type: application/json`.",
    421: "The `Host` header is not one of ours: see the setting `REFRESHER_API_HOSTS`.",
    422: "A parameter or a field of the body is wrong; `errors` names each and the reason.",
    500: "A defect in the API; the log has the rest.",
    503: "Postgres, NATS or another service does not answer, or there are too many clients already: try again after `Retry-After` seconds.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return these statuses for the OpenAPI document, with those that every operation may give."""
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **({"headers": {"Retry-After": {"schema": {"type": "integer"}}}} if status == 503 else {}),
        }
        for status in sorted({*statuses, 421, 500})
    }


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""
    app.exception_handler(ProblemError)(_problem)
    app.exception_handler(Unavailable)(_unavailable)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http)


async def _problem(_: Request, error: ProblemError) -> Response:
    return answer(error.status, error.detail, error.errors, error.headers)


async def _unavailable(_: Request, error: Unavailable) -> Response:
    return answer(503, str(error), headers={"Retry-After": str(RETRY_AFTER_S)})


async def _invalid(_: Request, error: RequestValidationError) -> Response:
    errors = [(_field(each["loc"], each["type"]), reason(each)) for each in error.errors()]
    return answer(422, NOT_VALID, errors)


async def _http(request: Request, error: HTTPException) -> Response:
    if error.status_code == 400:  # the framework's word for a body that is no JSON at all, such as bytes that are no UTF-8
        return answer(422, NOT_VALID, [("body", "no JSON that can be read")])
    details = {404: "There is nothing at this path; /docs lists what there is.", 405: "This path knows no such method."}
    headers = error.headers
    path = getattr(request.scope.get("route"), "path", None)
    if error.status_code == 405 and path in (paths := request.app.openapi()["paths"]):
        headers = {"Allow": ", ".join(sorted(method.upper() for method in paths[path]))}  # the framework names the first route's only
    return answer(error.status_code, details.get(error.status_code, str(error.detail)), headers=headers)


class Defects:
    """Answers what nothing else has caught. As the framework's own handler it would stand outside of all that is added to answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer 500 where that fails before anything was answered."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            if scope["type"] != "http" or begun:
                raise
            log.exception("request failed", extra={"path": scope["path"]})
            await answer(500, "A defect in the API, not in your request; its log has the rest.")(scope, receive, send)


def _field(location: tuple[str | int, ...], kind: str) -> str:
    """Return the name that a person knows the field by: without `query` or `body` before it, nor the kind of a union."""
    if kind == "json_invalid":
        return "body"
    inside = [str(part) for part in location[1:] if part not in _UNIONS]
    return ".".join(inside) or str(location[0])


_UNIONS = ("interval", "cron", "of a schedule", "ad hoc")
"""Parts of a location that say which form of a body was tried."""
