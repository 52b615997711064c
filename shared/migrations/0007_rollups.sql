-- Results added up by hour and by day of UTC, so that a summary of a long time need not read every row of it. What writes results
-- only marks the hours and days that it wrote to, in the same transaction: a summary reads those from the rows, until
-- results_fold has added them up anew. A month that is dropped stays. docs/decisions/0013-rollups-of-hours-that-are-over.md

CREATE TABLE result_rollups (
  hours     smallint    NOT NULL CHECK (hours IN (1, 24)),
  since     timestamptz NOT NULL,
  -- all null: of all results together
  site      text,
  schedule  text,
  engine    text,
  -- succeeded, failed, skipped, missed
  statuses  bigint[]    NOT NULL,
  -- a place for each of result_metrics()
  sums      double precision[] NOT NULL,
  minima    double precision[] NOT NULL,
  maxima    double precision[] NOT NULL,
  -- what was measured, as often as it falls into each result_bin: 2^32 * bin + how often, in order
  histogram bigint[]    NOT NULL,
  -- as the API answers it, with exact percentiles: most summaries read nothing else, so it stays in its place, as it is
  summary   text        STORAGE MAIN NOT NULL,
  UNIQUE NULLS NOT DISTINCT (since, hours, site, schedule, engine)
);
CREATE INDEX result_rollups_site ON result_rollups (site, hours, since);
CREATE INDEX result_rollups_schedule ON result_rollups (schedule, hours, since);

-- The hours and days in which there are rows that the rollups do not have, or have otherwise.
CREATE TABLE stale_rollups (
  hours smallint    NOT NULL,
  since timestamptz NOT NULL,
  PRIMARY KEY (hours, since)
);

-- From here on rows are kept: of what was due earlier there are rollups alone, and no late row changes them.
ALTER TABLE ledger_state ADD COLUMN kept_since timestamptz NOT NULL DEFAULT '-infinity';

CREATE FUNCTION result_metrics() RETURNS text[] IMMUTABLE PARALLEL SAFE LANGUAGE sql RETURN
  '{download_bps,upload_bps,latency_s,jitter_s,packet_loss,download_latency_s,upload_latency_s,responsiveness_rpm}'::text[];

-- The bucket of a value, as DDSketch has them (Masson, Rim and Lee, VLDB 2019): with g = 1.01 / 0.99, bucket n holds what is above
-- g^(n-1) and at most g^n, so no value (of 1e-307 to 1e307) is further than 1 % from the one that stands for all of its bucket.
-- 0 has one of its own, which is the first. The number of the metric is in it, so that one histogram holds all of a row.
CREATE FUNCTION result_bin(metric bigint, value double precision) RETURNS bigint IMMUTABLE PARALLEL SAFE LANGUAGE sql RETURN
  (metric << 20) + CASE WHEN value > 0 THEN ceil(ln(value) / 0.020000666706669543)::bigint + (1 << 19) ELSE 0 END;

CREATE FUNCTION result_bin_value(bin bigint) RETURNS double precision IMMUTABLE PARALLEL SAFE LANGUAGE sql RETURN
  CASE WHEN bin & 1048575 > 0
    -- what is too large or too small for exp() would be an error
    THEN exp(greatest(-708, least(709, ((bin & 1048575) - (1 << 19)) * 0.020000666706669543 - 0.010050335853501441)))
    ELSE 0 END;

-- What the API says of so many results: the members of an object, without what is around them.
CREATE FUNCTION result_summary(
  statuses bigint[], counts bigint[], sums double precision[], minima double precision[], maxima double precision[],
  medians double precision[], highs double precision[]
) RETURNS text IMMUTABLE PARALLEL SAFE LANGUAGE sql RETURN (
  SELECT format(
    '"counts":{"succeeded":%s,"failed":%s,"skipped":%s,"missed":%s},"metrics":{%s}', statuses[1], statuses[2], statuses[3], statuses[4],
    string_agg(
      CASE WHEN counts[n] > 0 THEN format(
        '"%s":{"count":%s,"mean":%s,"min":%s,"max":%s,"p50":%s,"p95":%s}',
        metric, counts[n], sums[n] / counts[n], minima[n], maxima[n], medians[n], highs[n]
      ) ELSE format('"%s":null', metric) END, ',' ORDER BY n
    )
  ) FROM unnest(result_metrics()) WITH ORDINALITY AS each (metric, n)
);

-- Mark what was written to. The marks are held until the transaction ends, as many hold them at once as like, but not those who
-- add up: none of it is added up, and its mark gone, while rows of it are yet to be seen.
CREATE FUNCTION results_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  changed timestamptz[] := ARRAY(
    SELECT DISTINCT date_bin('1 hour', due_at, '2000-01-01Z') FROM written
    WHERE due_at >= coalesce((SELECT kept_since FROM ledger_state), '-infinity')
  );
  days timestamptz[] := ARRAY(SELECT DISTINCT date_bin('1 day', hour, '2000-01-01Z') FROM unnest(changed) AS hour);
  held bigint;
BEGIN
  LOOP
    -- in the same order for all, or two would wait for each other
    INSERT INTO stale_rollups
    SELECT 1, hour FROM unnest(changed) AS hour UNION ALL SELECT 24, day FROM unnest(days) AS day ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
    PERFORM FROM stale_rollups
    WHERE hours = 1 AND since = ANY(changed) OR hours = 24 AND since = ANY(days) ORDER BY hours, since FOR KEY SHARE;
    GET DIAGNOSTICS held = ROW_COUNT;
    EXIT WHEN held = cardinality(changed) + cardinality(days);  -- else one was added up meanwhile, without these rows
  END LOOP;
  RETURN NULL;
END $$;

CREATE TRIGGER results_added AFTER INSERT ON results REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION results_changed();
CREATE TRIGGER results_changed AFTER UPDATE ON results REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION results_changed();
CREATE TRIGGER results_moved AFTER UPDATE ON results REFERENCING OLD TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION results_changed();
CREATE TRIGGER results_removed AFTER DELETE ON results REFERENCING OLD TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION results_changed();

-- Add up what is there of some hours, in place of what was added up before.
CREATE FUNCTION results_add_up(size smallint, first timestamptz) RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
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
  SELECT size, first, added.site, added.schedule, added.engine, statuses, sums, minima, maxima, coalesce(histogram, '{}'),
    result_summary(statuses, counts, sums, minima, maxima, medians, highs)
  FROM added LEFT JOIN counted  -- by what is never null, so that it can be hashed
  ON (coalesce(added.site, ''), coalesce(added.schedule, ''), coalesce(added.engine, ''))
    = (coalesce(counted.site, ''), coalesce(counted.schedule, ''), coalesce(counted.engine, ''));
END $$;

-- Add up marked hours and days that ended by a moment, the oldest first, and return how many; those in which somebody is writing
-- right now are left for later.
CREATE FUNCTION results_fold(until timestamptz, at_most integer) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp SET jit = off AS $$
DECLARE
  mark record;
  folded integer := 0;
BEGIN
  FOR mark IN
    SELECT hours, since FROM stale_rollups WHERE since + hours * interval '1 hour' <= until
    ORDER BY since, hours LIMIT at_most FOR UPDATE SKIP LOCKED
  LOOP
    DELETE FROM stale_rollups WHERE hours = mark.hours AND since = mark.since;
    PERFORM results_add_up(mark.hours, mark.since);
    folded := folded + 1;
  END LOOP;
  RETURN folded;
END $$;

-- As before, but for what is kept of the month that goes.
CREATE OR REPLACE FUNCTION results_drop(moment timestamptz) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
  first timestamptz := date_trunc('month', moment, 'UTC');
  months text[];
  after timestamptz;
BEGIN
  IF moment > now() - interval '31 days' THEN
    RAISE invalid_parameter_value USING MESSAGE = 'results of the last 31 days are not dropped: the streams still have them';
  END IF;
  SELECT array_agg(relname ORDER BY relname) INTO months
  FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
  WHERE inhparent = 'results'::regclass AND relname ~ '^results_[0-9]{4}_[0-9]{2}$'
  AND to_date(substr(relname, 9), 'YYYY_MM') < (first AT TIME ZONE 'UTC')::date;
  IF months IS NOT NULL THEN
    after := (to_date(substr(months[1], 9), 'YYYY_MM') + interval '1 month')::timestamp AT TIME ZONE 'UTC';
    PERFORM results_fold(after, NULL);
    -- what was written meanwhile; nobody writes from here on
    LOCK TABLE results IN ACCESS EXCLUSIVE MODE;
    PERFORM results_fold(after, NULL);
    EXECUTE format('DROP TABLE %I', months[1]);
    UPDATE ledger_state SET kept_since = greatest(kept_since, after);
  END IF;
  UPDATE ledger_state SET began_at = greatest(began_at, first), settled_until = greatest(settled_until, first) WHERE began_at < first;
  DELETE FROM open_runs WHERE due_at < first;
  DELETE FROM asked_runs WHERE due_at < first;
  -- The latest version of each schedule stays, and what ended not long before: a site that is cut off may still go by it.
  DELETE FROM schedule_versions AS old WHERE EXISTS (
    SELECT FROM schedule_versions AS newer
    WHERE newer.name = old.name AND newer.number > old.number AND newer.since < first - interval '31 days'
  );
  RETURN cardinality(months) - 1;
END $$;

-- What is there already is folded by the recorder, and read from the rows until then.
INSERT INTO stale_rollups
SELECT 1, since FROM (SELECT DISTINCT date_bin('1 hour', due_at, '2000-01-01Z') AS since FROM results) AS hour
UNION ALL SELECT 24, since FROM (SELECT DISTINCT date_bin('1 day', due_at, '2000-01-01Z') AS since FROM results) AS day;

CREATE OR REPLACE FUNCTION grant_to_roles() RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
  wanted record;
  others text := (
    SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
    WHERE attrelid = 'results'::regclass AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('due_at', 'run_id')
  );
BEGIN
  REVOKE ALL ON FUNCTION results_partition(date), results_drop(timestamptz), grant_to_roles() FROM PUBLIC;
  REVOKE ALL ON FUNCTION results_fold(timestamptz, integer), results_add_up(smallint, timestamptz) FROM PUBLIC;
  FOR wanted IN
    SELECT * FROM (VALUES
      -- what the ledger compares, and what the storing of a result asks for; nothing of what was measured
      ('refresher_recorder', 'INSERT, SELECT (run_id, due_at, site, schedule, trigger, runner, started_at) ON results'),
      ('refresher_recorder', format('UPDATE (%s) ON results', others)),
      ('refresher_recorder', 'SELECT ON refresher_migrations'),
      ('refresher_recorder', 'SELECT, INSERT ON schedule_versions, asked_runs'),
      ('refresher_recorder', 'SELECT, INSERT, UPDATE, DELETE ON open_runs'),
      ('refresher_recorder', 'SELECT, UPDATE ON ledger_state'),
      ('refresher_recorder', 'EXECUTE ON FUNCTION results_partition(date), results_drop(timestamptz)'),
      ('refresher_recorder', 'EXECUTE ON FUNCTION results_fold(timestamptz, integer)'),
      ('refresher_api', 'SELECT ON results, refresher_migrations, schedule_versions, asked_runs, open_runs, ledger_state'),
      ('refresher_api', 'SELECT ON result_rollups, stale_rollups'),
      ('refresher_grafana', 'SELECT ON results')
    ) AS wanted (role, rights)
  LOOP
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.role) THEN
      EXECUTE format('GRANT %s TO %I', wanted.rights, wanted.role);
    END IF;
  END LOOP;
END $$;
