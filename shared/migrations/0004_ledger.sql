-- What was to happen, so that it can be held against what did (shared/ledger.py, docs/ledger.md).

-- Every schedule as it was at any time: each value that the bucket of schedules had, in the order in which they were read.
CREATE TABLE schedule_versions (
  number   bigint      PRIMARY KEY,
  name     text        NOT NULL,
  -- by the clock of the NATS server; null revision: the bucket itself was made anew, and the schedule was not in it
  revision bigint,
  since    timestamptz NOT NULL,
  -- without the options of its engine; null: removed, or no schedule
  spec     jsonb
);

-- The runs that somebody asked for by hand.
CREATE TABLE asked_runs (
  run_id     uuid        PRIMARY KEY,
  due_at     timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  site       text        NOT NULL,
  line       text,
  schedule   text,
  engine     text        NOT NULL
);
CREATE INDEX asked_runs_due_at ON asked_runs (due_at);

-- Runs without a row so far, and when to look again. A row here is short-lived: it goes when the result comes.
CREATE TABLE open_runs (
  due_at        timestamptz NOT NULL,
  run_id        uuid        NOT NULL,
  site          text        NOT NULL,
  line          text,
  schedule      text,
  trigger       text        NOT NULL,
  engine        text        NOT NULL,
  start_at      timestamptz NOT NULL,
  -- false: at the edge of a change, where a scheduler may or may not have published it
  is_certain    boolean     NOT NULL,
  -- what became of its schedule before it was to start; null: it is to be run
  withdrawn     text,
  -- of its tick; null while none was seen
  expires_at    timestamptz,
  tick_sequence bigint,
  -- until when its tick must have been there, and whether it was looked for by then; null for a run that was asked for by hand
  tick_until    timestamptz,
  is_watched    boolean     NOT NULL DEFAULT false,
  look_at       timestamptz NOT NULL,
  PRIMARY KEY (due_at, run_id)
);
CREATE INDEX open_runs_look_at ON open_runs (look_at);

-- How far the recorder has come: one row. The ledger begins when it is made; what was due before is nobody's.
CREATE TABLE ledger_state (
  one                boolean     PRIMARY KEY DEFAULT true CHECK (one),
  began_at           timestamptz NOT NULL,
  settled_until      timestamptz NOT NULL,
  -- the streams by the time at which they were made, and the last message that was read
  schedules_made_at  timestamptz,
  schedules_sequence bigint      NOT NULL DEFAULT 0,
  -- no revision that is read counts for what was earlier
  schedules_floor    timestamptz,
  ticks_made_at      timestamptz,
  ticks_sequence     bigint      NOT NULL DEFAULT 0,
  -- the sites that have, or had, a NATS server of their own: cut off, they go by an older version of a schedule
  leaves             text[]      NOT NULL DEFAULT '{}'
);
INSERT INTO ledger_state (began_at, settled_until) VALUES (now(), now());

-- What a runner says takes the place of a guess, and a run that started that of one which did not. Who may update results may do
-- that and nothing else.
CREATE FUNCTION results_stay() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
  IF OLD.started_at IS NULL AND (NEW.started_at IS NOT NULL OR OLD.runner IS NULL AND NEW.runner IS NOT NULL)
    OR pg_has_role((SELECT relowner FROM pg_class WHERE oid = 'results'::regclass), 'USAGE')
  THEN
    RETURN NEW;
  END IF;
  RAISE insufficient_privilege USING MESSAGE = 'a result is only changed by one that knows more: a runner''s, or of a run that started';
END $$;
CREATE TRIGGER results_stay BEFORE UPDATE ON results FOR EACH ROW EXECUTE FUNCTION results_stay();

CREATE OR REPLACE FUNCTION grant_to_roles() RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
  wanted record;
  others text := (
    SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
    WHERE attrelid = 'results'::regclass AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('due_at', 'run_id')
  );
BEGIN
  REVOKE ALL ON FUNCTION results_partition(date), grant_to_roles() FROM PUBLIC;
  FOR wanted IN
    SELECT * FROM (VALUES
      -- what the ledger compares, and what the storing of a result asks for; nothing of what was measured
      ('refresher_recorder', 'INSERT, SELECT (run_id, due_at, site, schedule, trigger, runner, started_at) ON results'),
      ('refresher_recorder', format('UPDATE (%s) ON results', others)),
      ('refresher_recorder', 'SELECT ON refresher_migrations'),
      ('refresher_recorder', 'SELECT, INSERT ON schedule_versions, asked_runs'),
      ('refresher_recorder', 'SELECT, INSERT, UPDATE, DELETE ON open_runs'),
      ('refresher_recorder', 'SELECT, UPDATE ON ledger_state'),
      ('refresher_recorder', 'EXECUTE ON FUNCTION results_partition(date)'),
      ('refresher_api', 'SELECT ON results, refresher_migrations, schedule_versions, asked_runs, open_runs, ledger_state'),
      ('refresher_grafana', 'SELECT ON results')
    ) AS wanted (role, rights)
  LOOP
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.role) THEN
      EXECUTE format('GRANT %s TO %I', wanted.rights, wanted.role);
    END IF;
  END LOOP;
END $$;
