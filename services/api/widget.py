"""The newest result as speedtest-tracker gives it, for the dashboards that read that: Homepage, Organizr."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from services.api import queries
from services.api.models import EXAMPLE
from services.api.parts import TheDatabase
from services.api.problems import ProblemError, documented

router = APIRouter(prefix="/api/speedtest", tags=["widgets"])


class WidgetData(BaseModel):
    """A result in the units of speedtest-tracker."""

    id: UUID
    ping: float | None
    """Milliseconds."""
    download: float | None
    """Mbit/s."""
    upload: float | None
    """Mbit/s."""
    server_id: str | None
    server_host: str | None
    server_name: str | None
    url: None
    scheduled: bool
    failed: bool
    created_at: datetime
    updated_at: datetime


class Widget(BaseModel):
    """The newest result that succeeded or failed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "message": "ok",
                    "data": {
                        "id": EXAMPLE["run_id"],
                        "ping": 12.3,
                        "download": 94.2,
                        "upload": 38.1,
                        "server_id": "4711",
                        "server_host": "speedtest.example.net:8080",
                        "server_name": "Frankfurt",
                        "url": None,
                        "scheduled": True,
                        "failed": False,
                        "created_at": "2026-10-03T07:24:33.401Z",
                        "updated_at": "2026-10-03T07:24:33.407Z",
                    },
                }
            ]
        }
    )

    message: Literal["ok"]
    data: WidgetData


_COLUMNS = ("run_id", "status", "trigger", "latency_s", "download_bps", "upload_bps", "server_id", "server_host", "server_name")


@router.get(
    "/latest",
    summary="Get the newest result for a dashboard",
    operation_id="get_latest_for_widgets",
    responses=documented(404, 503),
)
async def latest(database: TheDatabase) -> Widget:
    """Get the newest result that succeeded or failed, with ping in ms and rates in Mbit/s; null after a failure."""
    row = await queries.newest_flat(database, *_COLUMNS, "finished_at", "recorded_at")
    if row is None:
        raise ProblemError(404, "There is no result yet.")
    return Widget(
        message="ok",
        data=WidgetData(
            id=row["run_id"],
            ping=_scaled(row["latency_s"], 1e3),
            download=_scaled(row["download_bps"], 1e-6),
            upload=_scaled(row["upload_bps"], 1e-6),
            **{name: row[name] for name in ("server_id", "server_host", "server_name")},
            url=None,
            scheduled=row["trigger"] != "manual",
            failed=row["status"] == "failed",
            created_at=row["finished_at"],
            updated_at=row["recorded_at"],
        ),
    )


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
