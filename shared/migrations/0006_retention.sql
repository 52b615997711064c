-- Results are kept for so long: a whole month goes at once, and the ledger begins after it.

-- Drop the oldest month that ended before `moment`, and return how many are left to be dropped; null when there was none. What
-- was due in the months before is nobody's any more. Whoever may call it loses nothing that is younger than the streams, from
-- which a row would come back.
CREATE FUNCTION results_drop(moment timestamptz) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
  first timestamptz := date_trunc('month', moment, 'UTC');
  months text[];
BEGIN
  IF moment > now() - interval '31 days' THEN
    RAISE invalid_parameter_value USING MESSAGE = 'results of the last 31 days are not dropped: the streams still have them';
  END IF;
  SELECT array_agg(relname ORDER BY relname) INTO months
  FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
  WHERE inhparent = 'results'::regclass AND relname ~ '^results_[0-9]{4}_[0-9]{2}$'
  AND to_date(substr(relname, 9), 'YYYY_MM') < (first AT TIME ZONE 'UTC')::date;
  IF months IS NOT NULL THEN
    EXECUTE format('DROP TABLE %I', months[1]);
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

CREATE OR REPLACE FUNCTION grant_to_roles() RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
  wanted record;
  others text := (
    SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
    WHERE attrelid = 'results'::regclass AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('due_at', 'run_id')
  );
BEGIN
  REVOKE ALL ON FUNCTION results_partition(date), results_drop(timestamptz), grant_to_roles() FROM PUBLIC;
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
      ('refresher_api', 'SELECT ON results, refresher_migrations, schedule_versions, asked_runs, open_runs, ledger_state'),
      ('refresher_grafana', 'SELECT ON results')
    ) AS wanted (role, rights)
  LOOP
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.role) THEN
      EXECUTE format('GRANT %s TO %I', wanted.rights, wanted.role);
    END IF;
  END LOOP;
END $$;
