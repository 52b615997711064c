"""Rows for the tests, as the recorder writes them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from shared.database import Connection


def row(due_at: datetime, **columns: Any) -> dict[str, Any]:
    """Return the columns of a result: a succeeded one of site home, unless told."""
    status = columns.get("status", "succeeded")
    measured = {"download_bps": 94e6, "upload_bps": 38e6, "latency_s": 0.012, "jitter_s": 0.001} if status == "succeeded" else {}
    failed = {} if status == "succeeded" else {"failure_kind": "timeout", "failure_message": "no answer within 60 s"}
    return {
        "run_id": uuid4(),
        "due_at": due_at,
        "site": "home",
        "schedule": "hourly",
        "trigger": "schedule",
        "engine": "speedtest",
        "status": status,
        "attempt": 1,
        "started_at": due_at,
        "finished_at": due_at + timedelta(seconds=20),
        **measured,
        **failed,
        **columns,
    }


async def insert(database: Connection, *rows: dict[str, Any]) -> list[UUID]:
    """Insert rows and return their run ids; the partitions of their months are made."""
    for month in {each["due_at"].astimezone(UTC).date().replace(day=1) for each in rows}:
        await database.execute("SELECT results_partition($1)", month)
    for columns in {tuple(each) for each in rows}:
        placeholders = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
        await database.executemany(
            f"INSERT INTO results ({', '.join(columns)}) VALUES ({placeholders})",
            [tuple(each.values()) for each in rows if tuple(each) == columns],
        )
    return [each["run_id"] for each in rows]
