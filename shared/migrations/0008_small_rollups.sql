-- A sum of an hour took 2 kB, and where a schedule has one result an hour that is several times the result itself. Where nothing was
-- measured twice, the sums are all that there is to keep: they are the values, and the rest is made of them when it is read.

ALTER TABLE result_rollups
  ALTER minima DROP NOT NULL, ALTER maxima DROP NOT NULL, ALTER histogram DROP NOT NULL, ALTER summary DROP NOT NULL;

-- A histogram of values that were measured once each.
CREATE FUNCTION result_histogram_of_one(measured double precision[]) RETURNS bigint[] IMMUTABLE PARALLEL SAFE LANGUAGE sql RETURN (
  SELECT coalesce(array_agg((result_bin(n, value) << 32) + 1 ORDER BY n), '{}')
  FROM unnest(measured) WITH ORDINALITY AS each (value, n) WHERE value IS NOT NULL
);

-- (replace takes a quarter of the time of format)
CREATE FUNCTION result_figures_of_one(measured double precision) RETURNS text IMMUTABLE PARALLEL SAFE LANGUAGE sql RETURN
  coalesce(replace('{"count":1,"mean":#,"min":#,"max":#,"p50":#,"p95":#}', '#', measured::text), 'null');

-- What result_summary says of them, in a tenth of the time.
CREATE FUNCTION result_summary_of_one(statuses bigint[], measured double precision[]) RETURNS text IMMUTABLE PARALLEL SAFE
LANGUAGE sql RETURN format(
  '"counts":{"succeeded":%s,"failed":%s,"skipped":%s,"missed":%s},"metrics":{"download_bps":%s,"upload_bps":%s,"latency_s":%s,'
  '"jitter_s":%s,"packet_loss":%s,"download_latency_s":%s,"upload_latency_s":%s,"responsiveness_rpm":%s}',
  statuses[1], statuses[2], statuses[3], statuses[4],
  result_figures_of_one(measured[1]), result_figures_of_one(measured[2]), result_figures_of_one(measured[3]),
  result_figures_of_one(measured[4]), result_figures_of_one(measured[5]), result_figures_of_one(measured[6]),
  result_figures_of_one(measured[7]), result_figures_of_one(measured[8])
);

-- As before, but for what was measured once at most.
CREATE OR REPLACE FUNCTION results_add_up(size smallint, first timestamptz) RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
  after timestamptz := first + size * interval '1 hour';
BEGIN
  DELETE FROM result_rollups WHERE hours = size AND since = first;
  INSERT INTO result_rollups (hours, since, site, schedule, engine, statuses, sums, minima, maxima, histogram, summary)
  WITH added AS (
    SELECT site, schedule, engine,
      ARRAY[
        count(*) FILTER (WHERE status = 'succeeded'), count(*) FILTER (WHERE status = 'failed'),
        count(*) FILTER (WHERE status = 'skipped'), count(*) FILTER (WHERE status = 'missed')
      ] AS statuses,
      ARRAY[
        count(download_bps), count(upload_bps), count(latency_s), count(jitter_s), count(packet_loss),
        count(download_latency_s), count(upload_latency_s), count(responsiveness_rpm)
      ] AS counts,
      -- a number that no line has must not make a sum that is none
      ARRAY[
        sum(least(download_bps, 1e290)) FILTER (WHERE download_bps IS NOT NULL),
        sum(least(upload_bps, 1e290)) FILTER (WHERE upload_bps IS NOT NULL),
        sum(least(latency_s, 1e290)) FILTER (WHERE latency_s IS NOT NULL),
        sum(least(jitter_s, 1e290)) FILTER (WHERE jitter_s IS NOT NULL),
        sum(least(packet_loss, 1e290)) FILTER (WHERE packet_loss IS NOT NULL),
        sum(least(download_latency_s, 1e290)) FILTER (WHERE download_latency_s IS NOT NULL),
        sum(least(upload_latency_s, 1e290)) FILTER (WHERE upload_latency_s IS NOT NULL),
        sum(least(responsiveness_rpm, 1e290)) FILTER (WHERE responsiveness_rpm IS NOT NULL)
      ] AS sums,
      ARRAY[
        min(download_bps), min(upload_bps), min(latency_s), min(jitter_s), min(packet_loss),
        min(download_latency_s), min(upload_latency_s), min(responsiveness_rpm)
      ] AS minima,
      ARRAY[
        max(download_bps), max(upload_bps), max(latency_s), max(jitter_s), max(packet_loss),
        max(download_latency_s), max(upload_latency_s), max(responsiveness_rpm)
      ] AS maxima,
      ARRAY[
        percentile_cont(0.5) WITHIN GROUP (ORDER BY download_bps), percentile_cont(0.5) WITHIN GROUP (ORDER BY upload_bps),
        percentile_cont(0.5) WITHIN GROUP (ORDER BY latency_s), percentile_cont(0.5) WITHIN GROUP (ORDER BY jitter_s),
        percentile_cont(0.5) WITHIN GROUP (ORDER BY packet_loss), percentile_cont(0.5) WITHIN GROUP (ORDER BY download_latency_s),
        percentile_cont(0.5) WITHIN GROUP (ORDER BY upload_latency_s), percentile_cont(0.5) WITHIN GROUP (ORDER BY responsiveness_rpm)
      ] AS medians,
      ARRAY[
        percentile_cont(0.95) WITHIN GROUP (ORDER BY download_bps), percentile_cont(0.95) WITHIN GROUP (ORDER BY upload_bps),
        percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_s), percentile_cont(0.95) WITHIN GROUP (ORDER BY jitter_s),
        percentile_cont(0.95) WITHIN GROUP (ORDER BY packet_loss), percentile_cont(0.95) WITHIN GROUP (ORDER BY download_latency_s),
        percentile_cont(0.95) WITHIN GROUP (ORDER BY upload_latency_s), percentile_cont(0.95) WITHIN GROUP (ORDER BY responsiveness_rpm)
      ] AS highs
    FROM results WHERE due_at >= first AND due_at < after
    GROUP BY GROUPING SETS ((site, schedule, engine), ()) HAVING count(*) > 0
  ), counted AS (
    SELECT site, schedule, engine, array_agg((bin << 32) + times ORDER BY bin) AS histogram
    FROM (
      SELECT site, schedule, engine, bin, count(*) AS times
      FROM results CROSS JOIN LATERAL (
        SELECT result_bin(n, value) AS bin
        FROM unnest(ARRAY[
          download_bps, upload_bps, latency_s, jitter_s, packet_loss, download_latency_s, upload_latency_s, responsiveness_rpm
        ]) WITH ORDINALITY AS each (value, n)
        WHERE value IS NOT NULL
      ) AS measured
      WHERE due_at >= first AND due_at < after
      GROUP BY GROUPING SETS ((site, schedule, engine, bin), (bin))
    ) AS binned GROUP BY site, schedule, engine
  )
  SELECT size, first, added.site, added.schedule, added.engine, statuses, sums,
    CASE WHEN several THEN minima END, CASE WHEN several THEN maxima END, CASE WHEN several THEN coalesce(histogram, '{}') END,
    CASE WHEN several THEN result_summary(statuses, counts, sums, minima, maxima, medians, highs) END
  FROM (SELECT *, 1 < ANY(counts) OR sums IS DISTINCT FROM minima AS several FROM added) AS added LEFT JOIN counted  -- by what is never null, so that it can be hashed
  ON (coalesce(added.site, ''), coalesce(added.schedule, ''), coalesce(added.engine, ''))
    = (coalesce(counted.site, ''), coalesce(counted.schedule, ''), coalesce(counted.engine, ''));
END $$;
