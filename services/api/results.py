"""What was measured: pages, the newest, one, and all of it as a file."""

import csv
import io
from collections.abc import AsyncGenerator
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Path
from fastapi import Query as InQuery
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from services.api import queries
from services.api.conditional import IfNoneMatch, answer_once, documented_once, marked
from services.api.database import Database
from services.api.models import EXAMPLE, FullResultView, ResultPage
from services.api.parameters import Newest, Wanted
from services.api.parts import TheDatabase, TheMemory
from services.api.problems import ProblemError, documented
from services.api.streaming import streamed

router = APIRouter(prefix="/api/v1", tags=["results"])

_CHUNK = 32 * 1024


class PageQuery(Wanted):
    """Which results are wanted, and how many at a time."""

    limit: Annotated[int, Field(ge=1, le=1_000, description="At most so many results.")] = 100
    cursor: Annotated[
        str | None,
        Field(
            pattern="^[A-Za-z0-9_-]{32}$",
            description="`next` of the page before.",
            examples=["AAYf3ZkqLhALbvDUTlpeDop6D2uKPB1S"],
            json_schema_extra={"format": "cursor"},
        ),
    ] = None


class ExportQuery(Wanted):
    """Which results are wanted, and in which form."""

    form: Annotated[Literal["csv", "ndjson"], Field(alias="format", description="`csv` is flat; `ndjson` is one result per line.")] = "csv"


@router.get("/results", summary="List results", operation_id="list_results", response_model=ResultPage, responses=documented_once(422, 503))
async def page(
    wanted: Annotated[PageQuery, InQuery()], database: TheDatabase, memory: TheMemory, if_none_match: IfNoneMatch = None
) -> Response:
    """List results, the newest (by `due_at`) first.

    Follow `next` for older ones: pages stay in place while new results arrive. For everything at once use the export.
    """
    found = await memory.answer(wanted, lambda: queries.page(database, wanted, wanted.limit, wanted.cursor))
    return answer_once(found, if_none_match)


@router.get(
    "/results/latest",
    summary="Get the newest result",
    operation_id="get_latest_result",
    response_model=FullResultView,
    responses=documented_once(404, 422, 503),
)
async def latest(wanted: Annotated[Newest, InQuery()], database: TheDatabase, if_none_match: IfNoneMatch = None) -> Response:
    """Get the newest result that matches, with its log."""
    found = await queries.newest(database, wanted)
    if found is None:
        raise ProblemError(404, "There is no such result yet.")
    return answer_once(marked(found), if_none_match)


@router.get(
    "/results/export",
    summary="Export results",
    operation_id="export_results",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The results, the oldest first, as they are read from the database.",
            "content": {
                "text/csv": {
                    "schema": {"type": "string"},
                    "example": "run_id,site,schedule,…\n0b6ef0d4-4e5a-5e0e-8a7a-0f6b8a3c1d52,home,…\n",
                },
                "application/x-ndjson": {"schema": {"type": "string"}, "example": '{"run_id":"0b6ef0d4-4e5a-5e0e-8a7a-0f6b8a3c1d52",…}\n'},
            },
            "headers": {"Content-Disposition": {"schema": {"type": "string"}}},
        },
        **documented(422, 503),
    },
)
async def export(wanted: Annotated[ExportQuery, InQuery()], database: TheDatabase) -> Response:
    """Export all results that match, the oldest first, however many: memory stays flat at both ends.

    A stream that breaks off without its last chunk is not complete: ask again.
    """
    media_type = "text/csv; charset=utf-8" if wanted.form == "csv" else "application/x-ndjson"
    disposition = f'attachment; filename="refresher-results.{wanted.form}"'
    return await streamed(_pieces(database, wanted, wanted.form), media_type, {"Content-Disposition": disposition})


@router.get(
    "/results/{run_id}",
    summary="Get one result",
    operation_id="get_result",
    response_model=FullResultView,
    responses=documented_once(404, 422, 503),
)
async def one(
    run_id: Annotated[UUID, Path(description="The id of the run.", examples=[EXAMPLE["run_id"]])],
    database: TheDatabase,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Get the result of a run, with its log. 404 until the run has ended and was recorded."""
    found = await queries.one(database, run_id)
    if found is None:
        raise ProblemError(404, f"There is no result of run {run_id} (yet).")
    return answer_once(marked(found), if_none_match)


async def _pieces(database: Database, wanted: Wanted, form: str) -> AsyncGenerator[bytes, None]:
    """Yield an export in pieces of about 32 KB."""
    async with database.long_read() as connection:
        piece = io.StringIO(newline="")
        writer = csv.writer(piece, lineterminator="\r\n")
        if form == "csv":
            writer.writerow(queries.FLAT)
        async for row in queries.export(connection, wanted, flat=form == "csv"):
            if form == "csv":
                writer.writerow(row)
            else:
                piece.write(f"{row[0]}\n")
            if piece.tell() >= _CHUNK:
                yield piece.getvalue().encode()
                piece.seek(0)
                piece.truncate()
        yield piece.getvalue().encode()
