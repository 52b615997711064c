"""What the OpenAPI document says beyond the operations themselves."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from services.api.problems import Problem, documented
from shared.service import Service

DESCRIPTION = """
Scheduled speed tests: what was measured, what will be, and what is happening.

* **Every instant of every schedule ends as exactly one result**: `succeeded`, `failed` (with the reason), `skipped` or
  `missed`. A number is true or null, never 0 or -1. Rates are in bit/s, times in seconds, moments in UTC.
* **To see the newest result** get `/api/v1/results/latest?status=succeeded`; **for a graph** get `/api/v1/summary` with
  `bucket=hour`; **for everything** get `/api/v1/results/export`.
* **To run a test now** post `{"schedule": "hourly"}` or `{"engine": "speedtest"}` to `/api/v1/runs`; with `?wait=true` the
  answer streams the progress and then the result.
* **Schedules** carry a revision (the `ETag`). Send it back as `If-Match` and nobody's change is overwritten unseen.
* **Who asks again and again** sends the `ETag` of the last answer as `If-None-Match`: 304 says that nothing has changed.
* **Errors** are problem documents (RFC 9457); `errors` names each field that is wrong, and why. A parameter that an
  operation does not know is an error, too. Whatever changes something needs `Content-Type: application/json`.
"""

TAGS = [
    {"name": "results", "description": "What was measured."},
    {"name": "schedules", "description": "What is to be measured, and when."},
    {"name": "runs", "description": "Measure now, and who does it."},
    {"name": "live", "description": "What is happening, as it happens."},
    {"name": "dead letters", "description": "What could not be used, and why."},
    {"name": "widgets", "description": "For dashboards made for speedtest-tracker."},
    {"name": "service", "description": "Health and metrics of this service itself."},
]

_UP = {"status": "up", "service": "api", "version": "0.1.0"}
_DOWN = {"status": "down", "down": {"postgres": "Postgres at 127.0.0.1:5432/postgres does not answer: Connection refused"}}
_HEALTH: dict[str, dict[str, Any]] = {
    "/health/live": {
        "summary": "Ask whether the process is alive",
        "description": "Answers for as long as the process does; nothing else is looked at.",
        "operation_id": "get_liveness",
        "responses": {200: {"description": "It is.", "content": {"application/json": {"schema": {"type": "object"}, "example": _UP}}}},
    },
    "/health/ready": {
        "summary": "Ask whether everything it needs is up",
        "description": "Asks NATS and Postgres. The API stays up without them and goes on by itself when they are back.",
        "operation_id": "get_readiness",
        "responses": {
            200: {
                "description": "Everything is up.",
                "content": {"application/json": {"schema": {"type": "object"}, "example": {"status": "up", "down": {}}}},
            },
            503: {
                "description": "`down` names what is not, and why.",
                "content": {"application/json": {"schema": {"type": "object"}, "example": _DOWN}},
            },
        },
    },
}


def add_health(app: FastAPI, service: Service) -> None:
    """Add the health routes that every service has, with their documentation."""
    for route in service.routes():
        if described := _HEALTH.get(route.path):
            responses = {**documented(422), **described["responses"]}
            del responses[421]  # health may be asked for under any name
            app.add_api_route(route.path, route.endpoint, tags=["service"], **{**described, "responses": responses})


def complete(app: FastAPI) -> None:
    """Make the document, once, with the schema of problems that every operation refers to."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            document = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
            )
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas = document["components"]["schemas"]
            schemas |= {**problem.pop("$defs"), "Problem": problem}
            for kind in ("Interval", "Cron"):  # in a body it says which of the two is meant: its default is for Python
                schemas[kind]["required"] = ["kind", *schemas[kind]["required"]]
            schemas["Cron"]["properties"]["expression"]["format"] = "cron"
            schemas["Cron"]["properties"]["zone"]["format"] = "time-zone"
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
