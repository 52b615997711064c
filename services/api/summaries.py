"""The SQL of summaries: from what is added up by hour and day where that can be used, and from the rows where it cannot."""

from collections.abc import Sequence
from datetime import UTC, datetime
from datetime import time as clock_time
from functools import lru_cache
from itertools import pairwise

from services.api.database import Database
from services.api.parameters import Origin, text_of
from services.api.queries import Where

METRICS = (
    *("download_bps", "upload_bps", "latency_s", "jitter_s", "packet_loss"),
    *("download_latency_s", "upload_latency_s", "responsiveness_rpm"),
)
"""As result_metrics() of the migrations has them, in that order."""
_STATUSES = ("succeeded", "failed", "skipped", "missed")


async def summary(database: Database, wanted: Origin, edges: list[datetime]) -> str:
    """Return the elements of a JSON array, an object per bucket; bucket n lies between edges n (inclusive) and n + 1 (exclusive), in UTC.

    Whole days and hours of UTC are read from the rollups, unless results were written since they were added up. A bucket that is
    one of those, or is made of rows alone, has exact percentiles; the others' come from histograms and are within 1 % of them.
    """
    where = Where(Origin(site=wanted.site, schedule=wanted.schedule, engine=wanted.engine))
    origin = str(where)
    # days and hours of UTC that are not in one bucket
    cutting = [edge for edge in edges if edge.minute or edge.second or edge.microsecond]
    cut_hours = sorted({edge.replace(minute=0, second=0, microsecond=0) for edge in cutting})
    cut_days = [
        datetime.combine(day, clock_time(), UTC)
        for day in sorted({edge.date() for edge in cutting} | {edge.date() for edge in edges if edge.hour})
    ]
    arguments = {"first": edges[0], "last": edges[-1], "starts": edges[:-1], "cut_days": cut_days, "cut_hours": cut_hours}
    named = {name: where.argument(value) for name, value in arguments.items()}
    sql = _SUMMARY.format(
        **{name: f"{place}::timestamptz{'[]' if isinstance(arguments[name], list) else ''}" for name, place in named.items()},
        origin=origin,
        # the sums of all results are there, too
        summed=origin if where.conditions else "site IS NULL",
    )
    found = {row["number"]: row["summary"] for row in await database.rows(sql, *where.arguments)}
    texts = list(map(_text_of, edges))
    buckets = (
        f'{{"from":"{since}","to":"{until}",{found.get(number, _NOTHING)}}}' for number, (since, until) in enumerate(pairwise(texts), 1)
    )
    return ",".join(buckets)


_text_of = lru_cache(maxsize=4_096)(text_of)
"""Whoever looks at a month looks at most of its hours again; to write them took a tenth of the time of such a summary."""


def _each(aggregate: str) -> str:
    return f"ARRAY[{', '.join(aggregate.format(name) for name in METRICS)}]"


def _members(names: Sequence[str], value: str) -> str:
    return ",".join(f'"{name}":{value}' for name in names)


_NOTHING = f'"counts":{{{_members(_STATUSES, "0")}}},"metrics":{{{_members(METRICS, "null")}}}'
_COUNTED = ", ".join(f"count(*) FILTER (WHERE status = '{status}')" for status in _STATUSES)
_ADDED = ", ".join(f"sum(statuses[{n}])::bigint" for n in range(1, len(_STATUSES) + 1))
# where nothing was measured twice there are the values alone
_ROLLUP = """statuses, sums, coalesce(minima, sums) AS minima, coalesce(maxima, sums) AS maxima,
    coalesce(histogram, result_histogram_of_one(sums)) AS histogram, coalesce(summary, result_summary_of_one(statuses, sums)) AS summary"""
_BETWEEN = """
  min(value) FILTER (WHERE upto > floor({share} * (total - 1))) * (1 - {share} * (total - 1) + floor({share} * (total - 1)))
  + min(value) FILTER (WHERE upto > ceil({share} * (total - 1))) * ({share} * (total - 1) - floor({share} * (total - 1)))
"""
_SUMMARY = f"""
WITH cut AS MATERIALIZED (  -- the days that cannot be used as a whole
  SELECT since FROM stale_rollups WHERE hours = 24 AND since >= {{first}} AND since < {{last}}
  UNION SELECT unnest({{cut_days}})
), loose AS MATERIALIZED (  -- the hours of them whose rows are read, where there are any
  SELECT since FROM stale_rollups
  WHERE hours = 1 AND since >= {{first}} AND since < {{last}} AND date_bin('1 day', since, '2000-01-01Z') IN (SELECT since FROM cut)
  UNION SELECT since FROM unnest({{cut_hours}}) AS since WHERE since >= (SELECT kept_since FROM ledger_state)
), used AS MATERIALIZED (
  SELECT width_bucket(since, {{starts}}) AS number, {_ROLLUP} FROM result_rollups
  WHERE hours = 24 AND since >= {{first}} AND since < {{last}} AND {{summed}} AND since NOT IN (SELECT since FROM cut)
  UNION ALL
  SELECT width_bucket(hour.since, {{starts}}), {_ROLLUP} FROM cut CROSS JOIN LATERAL (
    SELECT * FROM result_rollups WHERE hours = 1 AND {{summed}}
    AND since >= greatest(cut.since, {{first}}) AND since < least(cut.since + interval '24 hours', {{last}})
    OFFSET 0  -- day by day by the index, rather than all of them against each day
  ) AS hour WHERE hour.since NOT IN (SELECT since FROM loose)
), span AS (  -- hours that follow each other are read at once
  SELECT greatest(min(since), {{first}}) AS since, least(max(since) + interval '1 hour', {{last}}) AS until
  FROM (SELECT since, since - row_number() OVER (ORDER BY since) * interval '1 hour' AS island FROM loose) AS numbered GROUP BY island
), run AS NOT MATERIALIZED (
  SELECT width_bucket(due_at, {{starts}}) AS number, status, {", ".join(METRICS)} FROM span CROSS JOIN LATERAL (
    SELECT * FROM results
    WHERE due_at >= span.since AND due_at < span.until AND due_at >= {{first}} AND due_at < {{last}} AND {{origin}}
    OFFSET 0  -- span by span by the index, too
  ) AS row
), from_rows AS MATERIALIZED (
  SELECT number, ARRAY[{_COUNTED}] AS statuses, {_each("count({})")} AS counts,
    {_each("sum(least({0}, 1e290)) FILTER (WHERE {0} IS NOT NULL)")} AS sums,
    {_each("min({})")} AS minima, {_each("max({})")} AS maxima,
    {_each("percentile_cont(0.5) WITHIN GROUP (ORDER BY {})")} AS medians,
    {_each("percentile_cont(0.95) WITHIN GROUP (ORDER BY {})")} AS highs
  FROM run GROUP BY number
), part AS (
  SELECT number, statuses, sums, minima, maxima FROM used UNION ALL SELECT number, statuses, sums, minima, maxima FROM from_rows
), several AS MATERIALIZED (
  SELECT number FROM (SELECT number FROM used UNION ALL SELECT number FROM from_rows) AS each GROUP BY number HAVING count(*) > 1
), bin AS (
  SELECT number, entry >> 32 AS bin, sum((entry & 4294967295)::double precision) AS times FROM (
    SELECT number, unnest(histogram) AS entry FROM used WHERE number IN (SELECT number FROM several)
    UNION ALL
    SELECT number, (result_bin(n, value) << 32) + 1 FROM run, unnest({_each("{}")}) WITH ORDINALITY AS each (value, n)
    WHERE value IS NOT NULL AND EXISTS (SELECT FROM several) AND number IN (SELECT number FROM several)
  ) AS entry GROUP BY 1, 2
), ranked AS (
  SELECT number, bin >> 20 AS metric, result_bin_value(bin) AS value,
    sum(times) OVER (PARTITION BY number, bin >> 20 ORDER BY bin) AS upto, sum(times) OVER (PARTITION BY number, bin >> 20) AS total
  FROM bin
), percentile AS (
  SELECT number, metric, total::bigint AS count, {_BETWEEN.format(share=0.5)} AS median, {_BETWEEN.format(share=0.95)} AS high
  FROM ranked GROUP BY number, metric, total
), figures AS (
  SELECT number, metric, sum(sum) AS sum, min(minimum) AS minimum, max(maximum) AS maximum
  FROM part JOIN several USING (number) CROSS JOIN unnest(sums, minima, maxima) WITH ORDINALITY AS each (sum, minimum, maximum, metric)
  GROUP BY number, metric
), ended AS (
  SELECT number, ARRAY[{_ADDED}] AS statuses FROM part JOIN several USING (number) GROUP BY number
)
SELECT number, summary FROM used WHERE number NOT IN (SELECT number FROM several)
UNION ALL
SELECT number, result_summary(statuses, counts, sums, minima, maxima, medians, highs)
FROM from_rows WHERE number NOT IN (SELECT number FROM several)
UNION ALL
SELECT number, result_summary(statuses, array_agg(coalesce(count, 0) ORDER BY metric), array_agg(sum ORDER BY metric),
  array_agg(minimum ORDER BY metric), array_agg(maximum ORDER BY metric),
  array_agg(least(greatest(median, minimum), maximum) ORDER BY metric), array_agg(least(greatest(high, minimum), maximum) ORDER BY metric))
FROM ended JOIN figures USING (number) LEFT JOIN percentile USING (number, metric) GROUP BY number, statuses
"""  # noqa: S608 - names and conditions from this module, values as parameters
