-- Where and when a run was to be measured more exactly: the line of the site, the start with spread and jitter (null: due_at),
-- and the engine that failed first where a fallback measured.
ALTER TABLE results ADD COLUMN line text, ADD COLUMN start_at timestamptz, ADD COLUMN fallback_for text;
