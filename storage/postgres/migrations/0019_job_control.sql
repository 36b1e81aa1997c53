-- What holds jobs back: paused queues, limits over the whole cluster, throttles of accounts, holds.

ALTER TABLE jobs
  ADD COLUMN throttle_key VARCHAR(255),
  ADD COLUMN throttle_limit INT CONSTRAINT jobs_throttle_limit_positive CHECK (throttle_limit > 0),
  ADD COLUMN hold_key VARCHAR(255),
  ADD CONSTRAINT jobs_throttle_whole CHECK (num_nulls(throttle_key, throttle_limit) <> 1);
COMMENT ON COLUMN jobs.throttle_key IS 'Of the jobs with one key, at most throttle_limit run at a time.';
COMMENT ON COLUMN jobs.hold_key IS 'None of the jobs with this key begins while job_holds has it.';

CREATE TABLE job_queues (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  name VARCHAR(20) NOT NULL CONSTRAINT job_queues_name_key UNIQUE
    CONSTRAINT job_queues_name_known CHECK (name IN ('sync', 'reports', 'email', 'maintenance')),
  concurrency INT CONSTRAINT job_queues_concurrency_positive CHECK (concurrency > 0),
  paused_at TIMESTAMPTZ,
  pause_reason TEXT NOT NULL DEFAULT '',
  revision BIGINT NOT NULL DEFAULT 1,
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT job_queues_pause_whole CHECK (paused_at IS NOT NULL OR pause_reason = '')
);
COMMENT ON TABLE job_queues IS 'Queues: whether they are paused, and how many of their jobs may run at a time.';
COMMENT ON COLUMN job_queues.concurrency IS 'Most jobs at a time in the whole cluster; empty for no limit but the workers'' own.';
INSERT INTO job_queues (name) VALUES ('sync'), ('reports'), ('email'), ('maintenance');
CREATE TRIGGER job_queues_touch BEFORE UPDATE ON job_queues
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row();

CREATE TABLE job_holds (
  hold_key VARCHAR(255) PRIMARY KEY,
  reason TEXT NOT NULL,
  held_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE job_holds IS 'Jobs with such a key do not begin, for instance those of an account that the platform refuses.';

-- Every write of a job passes through its indexes: none for what is empty, and none twice.
DROP INDEX jobs_claim_idx, jobs_delivery_idx, jobs_client_idx, jobs_requested_by_idx;
CREATE INDEX jobs_due_idx ON jobs (queue, priority DESC, scheduled_at)
  WHERE status = 'pending' AND delivered_at IS NULL AND throttle_key IS NULL;
CREATE INDEX jobs_delivered_idx ON jobs (queue, delivered_at) WHERE status = 'pending' AND delivered_at IS NOT NULL;
CREATE INDEX jobs_throttled_idx ON jobs (throttle_key, priority DESC, scheduled_at)
  WHERE throttle_key IS NOT NULL AND status = 'pending';
CREATE INDEX jobs_throttle_running_idx ON jobs (throttle_key)
  WHERE throttle_key IS NOT NULL AND status = 'processing';
CREATE INDEX jobs_hold_idx ON jobs (hold_key) WHERE hold_key IS NOT NULL AND status IN ('pending', 'processing');
CREATE INDEX jobs_failed_idx ON jobs (id) WHERE status = 'failed';
CREATE INDEX jobs_client_idx ON jobs (client_id, id) WHERE client_id IS NOT NULL;
CREATE INDEX jobs_requested_by_idx ON jobs (requested_by) WHERE requested_by IS NOT NULL;

-- A try is now noted when it ends: until then the job itself says all there is to say of it.
DELETE FROM job_attempts WHERE outcome IS NULL;
COMMENT ON TABLE job_attempts IS 'Every try that has ended, also those before a manual retry.';
