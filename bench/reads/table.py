"""A year of results from 50 sites, made inside of Postgres."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import asyncpg

from services.recorder.rollups import add_up
from shared.migrate import migrate

SITES = 50
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
END = datetime(2026, 1, 1, tzinfo=UTC)
SIDE_BY_SIDE = 2
"""How many months are made at once."""

# Row n is of site n modulo 50, so each site's come at an even pace; one of 50 failed. Every figure is different and makes sense.
_FILL = """
INSERT INTO {name} (run_id, due_at, site, schedule, trigger, engine, engine_version, status, runner, attempt, started_at, finished_at,
  recorded_at, download_bps, upload_bps, latency_s, jitter_s, packet_loss, download_latency_s, upload_latency_s, responsiveness_rpm,
  download_bytes, upload_bytes, server_id, server_name, server_url, server_country_code, failure_kind, failure_message)
SELECT gen_random_uuid(), due_at, 'site-' || site, 'schedule-' || site, 'schedule', 'http', '1', status, 'runner-' || site, 1,
  due_at + interval '12 ms', due_at + interval '20 s', due_at + interval '20.1 s',
  CASE WHEN good THEN 5e7 + 5e7 * random() END, CASE WHEN good THEN 2e7 + 2e7 * random() END,
  CASE WHEN good THEN 0.01 + 0.01 * random() END, CASE WHEN good THEN 0.001 * random() END, CASE WHEN good THEN 0.01 * random() END,
  CASE WHEN good THEN 0.02 + 0.05 * random() END, CASE WHEN good THEN 0.02 + 0.05 * random() END,
  CASE WHEN good THEN 500 + 1000 * random() END, CASE WHEN good THEN 117440512 END, CASE WHEN good THEN 47185920 END,
  '4711', 'Frankfurt', 'http://test.example.net/', 'DE',
  CASE WHEN NOT good THEN 'timeout' END, CASE WHEN NOT good THEN 'no answer within 60 s' END
FROM (
  SELECT $2::timestamptz + n * $3::interval AS due_at, n % {sites} AS site, (n / {sites}) % 50 <> 7 AS good,
    CASE WHEN (n / {sites}) % 50 <> 7 THEN 'succeeded' ELSE 'failed' END AS status
  FROM generate_series(0, $1::bigint - 1) AS n
) AS run
"""


async def fill(url: str, rows: int) -> None:
    """Put about `rows` results into an empty database, spread evenly over the year, and add them up.

    A month is filled before it becomes part of the table: its indexes are then built once instead of row by row. So it is with the
    rollups: the migration that brings them finds the rows, as it does where an older version is brought up to date.
    """
    connection = await asyncpg.connect(url)
    await migrate(connection, up_to="0006_retention")
    await connection.close()
    turns = asyncio.Semaphore(SIDE_BY_SIDE)
    await asyncio.gather(*(_month(url, turns, first, after, (END - BEGIN) / rows) for first, after in _months()))
    connection = await asyncpg.connect(url)
    await migrate(connection)
    await connection.close()
    await asyncio.gather(*(_add_up(url) for _ in range(SIDE_BY_SIDE)))
    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM ANALYZE results, result_rollups, stale_rollups")
    await connection.close()


async def _add_up(url: str) -> None:
    connection = await asyncpg.connect(url)
    await add_up(connection, END)
    await connection.close()


async def _month(url: str, turns: asyncio.Semaphore, first: datetime, after: datetime, pace: timedelta) -> None:
    async with turns:
        connection = await asyncpg.connect(url)
        name = f"results_{first:%Y_%m}"
        await connection.execute("SET maintenance_work_mem = '512MB'")
        await connection.execute(f"CREATE TABLE {name} (LIKE results INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        await connection.execute(_FILL.format(name=name, sites=SITES), (after - first) // pace, first, pace)
        await connection.execute(f"ALTER TABLE results ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{after}')")
        await connection.close()


def _months() -> Iterable[tuple[datetime, datetime]]:
    firsts = [datetime(2025, month, 1, tzinfo=UTC) for month in range(1, 13)]
    return zip(firsts, [*firsts[1:], END], strict=True)
