-- What jobs need to be delivered, tried again, cancelled and run by the clock.

ALTER TABLE jobs
  ADD COLUMN delivered_at TIMESTAMPTZ,
  ADD COLUMN cancel_requested_at TIMESTAMPTZ,
  ADD COLUMN backoff_base INTERVAL NOT NULL DEFAULT '5 seconds'
    CONSTRAINT jobs_backoff_base_positive CHECK (backoff_base > '0'),
  ADD COLUMN backoff_cap INTERVAL NOT NULL DEFAULT '15 minutes'
    CONSTRAINT jobs_backoff_cap_positive CHECK (backoff_cap > '0');
COMMENT ON COLUMN jobs.delivered_at IS
  'When the present try was last put on its queue. Empty: not yet, so the row is its own outbox. Long ago: the entry may be lost.';
COMMENT ON COLUMN jobs.cancel_requested_at IS 'Since when whoever works on it is asked to stop.';
COMMENT ON COLUMN jobs.backoff_base IS 'Longest pause after the first failed try; doubled after each further one.';
COMMENT ON COLUMN jobs.backoff_cap IS 'Longest pause after any failed try.';
CREATE INDEX jobs_delivery_idx ON jobs (delivered_at NULLS FIRST, scheduled_at) WHERE status = 'pending';
DROP TRIGGER jobs_touch ON jobs;
CREATE TRIGGER jobs_touch BEFORE UPDATE ON jobs
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
  EXECUTE FUNCTION touch_row('lease_expires_at', 'progress', 'delivered_at');

CREATE FUNCTION job_pause(attempts INT, base INTERVAL, cap INTERVAL) RETURNS interval LANGUAGE sql VOLATILE
RETURN random() * LEAST(cap, base * power(2, LEAST(GREATEST(attempts, 1), 30) - 1));
COMMENT ON FUNCTION job_pause(INT, INTERVAL, INTERVAL) IS
  'Pause before the next try: exponential with full jitter, so that what failed together does not come back together.';

CREATE TABLE job_attempts (
  job_id UUID NOT NULL REFERENCES jobs (id) ON DELETE RESTRICT,
  fence BIGINT NOT NULL,
  attempt INT NOT NULL,
  holder VARCHAR(255) NOT NULL,
  started_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  ended_at TIMESTAMPTZ,
  outcome VARCHAR(20) CONSTRAINT job_attempts_outcome_known
    CHECK (outcome IN ('completed', 'failed', 'cancelled', 'lost', 'released')),
  error TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (job_id, fence),
  CONSTRAINT job_attempts_whole CHECK ((ended_at IS NULL) = (outcome IS NULL))
);
COMMENT ON TABLE job_attempts IS 'Every try of every job, also those before a manual retry.';

CREATE TABLE job_schedules (
  name VARCHAR(50) PRIMARY KEY,
  next_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE job_schedules IS 'When each recurring job is made next; whoever moves the time makes the job.';
