-- What the engine http measures besides: round trips while the line is full, what they say of it, and how far the rates are to be
-- believed. The checks mirror shared/events.py; rows from before have none of it.
ALTER TABLE results
  ADD COLUMN download_latency_s double precision CHECK (download_latency_s > 0 AND download_latency_s < 'Infinity'),
  ADD COLUMN upload_latency_s double precision CHECK (upload_latency_s > 0 AND upload_latency_s < 'Infinity'),
  ADD COLUMN responsiveness_rpm double precision CHECK (responsiveness_rpm > 0 AND responsiveness_rpm < 'Infinity'),
  ADD COLUMN bufferbloat_grade text CHECK (bufferbloat_grade IN ('A+', 'A', 'B', 'C', 'D', 'F')),
  ADD COLUMN download_spread double precision CHECK (download_spread >= 0 AND download_spread < 'Infinity'),
  ADD COLUMN upload_spread double precision CHECK (upload_spread >= 0 AND upload_spread < 'Infinity'),
  ADD COLUMN limited_by text CHECK (limited_by IN ('line', 'host', 'loss')),
  ADD COLUMN confidence text CHECK (confidence IN ('reliable', 'indicative', 'underestimates')),
  ADD CHECK (
    status = 'succeeded' OR num_nonnulls(
      download_latency_s, upload_latency_s, responsiveness_rpm, bufferbloat_grade, download_spread, upload_spread, limited_by, confidence
    ) = 0
  );
