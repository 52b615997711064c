-- Up to where every result of the stream has its row. A database that was put back to an earlier state knows of less than what was
-- acknowledged to the stream since: the recorder then reads those results once more, before it takes their rows for missing.
ALTER TABLE ledger_state ADD COLUMN results_made_at timestamptz, ADD COLUMN results_sequence bigint NOT NULL DEFAULT 0;
