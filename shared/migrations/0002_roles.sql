-- What each role may do, for those roles that this server has: deploy/postgres makes them, the embedded system has one user
-- for all. `refresher migrate` calls it every time, so roles that are made later get their rights then.
CREATE FUNCTION grant_to_roles() RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
  wanted record;
BEGIN
  REVOKE ALL ON FUNCTION results_partition(date), grant_to_roles() FROM PUBLIC;
  FOR wanted IN
    SELECT * FROM (VALUES
      -- run_id is what INSERT … RETURNING tells; it reads nothing else
      ('refresher_recorder', 'INSERT, SELECT (run_id) ON results'),
      ('refresher_recorder', 'SELECT ON refresher_migrations'),
      ('refresher_recorder', 'EXECUTE ON FUNCTION results_partition(date)'),
      ('refresher_api', 'SELECT ON results, refresher_migrations'),
      ('refresher_grafana', 'SELECT ON results')
    ) AS wanted (role, rights)
  LOOP
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.role) THEN
      EXECUTE format('GRANT %s TO %I', wanted.rights, wanted.role);
    END IF;
  END LOOP;
END $$;
