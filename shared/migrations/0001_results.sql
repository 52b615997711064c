-- One row per run. The checks mirror shared/events.py: a number is true or absent, never 0 or -1.
CREATE TABLE results (
  run_id              uuid        NOT NULL,
  due_at              timestamptz NOT NULL,
  site                text        NOT NULL,
  schedule            text,
  trigger             text        NOT NULL CHECK (trigger IN ('schedule', 'catch_up', 'manual')),
  engine              text        NOT NULL,
  engine_version      text,
  status              text        NOT NULL CHECK (status IN ('succeeded', 'failed', 'skipped', 'missed')),
  runner              text,
  attempt             integer     NOT NULL CHECK (attempt >= 1),
  started_at          timestamptz,
  finished_at         timestamptz NOT NULL,
  recorded_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
  download_bps        double precision CHECK (download_bps > 0 AND download_bps < 'Infinity'),
  upload_bps          double precision CHECK (upload_bps > 0 AND upload_bps < 'Infinity'),
  latency_s           double precision CHECK (latency_s > 0 AND latency_s < 'Infinity'),
  jitter_s            double precision CHECK (jitter_s >= 0 AND jitter_s < 'Infinity'),
  packet_loss         double precision CHECK (packet_loss BETWEEN 0 AND 1),
  download_bytes      bigint      CHECK (download_bytes >= 0),
  upload_bytes        bigint      CHECK (upload_bytes >= 0),
  server_id           text,
  server_name         text,
  server_sponsor      text,
  server_url          text,
  server_host         text,
  server_country      text,
  server_country_code text,
  server_latitude     double precision CHECK (server_latitude BETWEEN -90 AND 90),
  server_longitude    double precision CHECK (server_longitude BETWEEN -180 AND 180),
  server_distance_m   double precision CHECK (server_distance_m >= 0 AND server_distance_m < 'Infinity'),
  client_isp          text,
  client_address      text,
  client_country_code text,
  client_latitude     double precision CHECK (client_latitude BETWEEN -90 AND 90),
  client_longitude    double precision CHECK (client_longitude BETWEEN -180 AND 180),
  failure_kind        text,
  failure_message     text,
  details             jsonb       NOT NULL DEFAULT '{}',
  log                 text        NOT NULL DEFAULT '',
  -- due_at first: it is part of what run_id is derived from, keeps the index local in time, and allows partitions.
  PRIMARY KEY (due_at, run_id),
  CHECK ((status = 'succeeded') = (failure_kind IS NULL)),
  CHECK ((failure_kind IS NULL) = (failure_message IS NULL)),
  CHECK (status = 'succeeded' OR num_nonnulls(download_bps, upload_bps, latency_s, jitter_s, packet_loss) = 0)
) PARTITION BY RANGE (due_at);

CREATE INDEX results_run_id ON results (run_id);
CREATE INDEX results_site ON results (site, due_at DESC, run_id DESC);
CREATE INDEX results_site_engine ON results (site, engine, due_at DESC, run_id DESC);
CREATE INDEX results_schedule ON results (schedule, due_at DESC, run_id DESC);

-- Months of UTC, made when the first row of a month arrives: retention is then a drop, not a delete.
CREATE FUNCTION results_partition(month date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  first date := date_trunc('month', month)::date;
  name text := 'results_' || to_char(first, 'YYYY_MM');
BEGIN
  IF to_regclass(name) IS NULL THEN
    PERFORM pg_advisory_xact_lock(hashtext('results_partition'));
    EXECUTE format(
      'CREATE TABLE IF NOT EXISTS %I PARTITION OF results FOR VALUES FROM (%L) TO (%L)',
      name, first::timestamp AT TIME ZONE 'UTC', (first + interval '1 month') AT TIME ZONE 'UTC'
    );
  END IF;
END $$;
