-- Background work. The row is the truth; the queue is only how a worker hears of it.

CREATE TABLE jobs (
  id UUID PRIMARY KEY,
  type VARCHAR(50) NOT NULL CONSTRAINT jobs_type_known CHECK (type IN (
    'sync_campaign', 'sync_statistics', 'generate_report', 'send_email', 'rollup_daily', 'budget_check',
    'archive_partition', 'apply_retention', 'backfill_chunk', 'import_batch', 'embed_items', 'reconcile_vectors',
    'erase_subject')),
  queue VARCHAR(20) NOT NULL CONSTRAINT jobs_queue_known CHECK (queue IN ('sync', 'reports', 'email', 'maintenance')),
  status VARCHAR(20) NOT NULL DEFAULT 'pending' CONSTRAINT jobs_status_known
    CHECK (status IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
  priority SMALLINT NOT NULL DEFAULT 0,
  client_id UUID REFERENCES clients (id) ON DELETE RESTRICT,
  requested_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  unique_key VARCHAR(255),
  trace_id VARCHAR(64) NOT NULL DEFAULT '',
  payload JSONB NOT NULL CONSTRAINT jobs_payload_object CHECK (jsonb_typeof(payload) = 'object'),
  progress JSONB NOT NULL DEFAULT '{}' CONSTRAINT jobs_progress_object CHECK (jsonb_typeof(progress) = 'object'),
  result JSONB,
  error TEXT,
  attempts INT NOT NULL DEFAULT 0 CONSTRAINT jobs_attempts_sign CHECK (attempts >= 0),
  max_attempts INT NOT NULL DEFAULT 3 CONSTRAINT jobs_max_attempts_positive CHECK (max_attempts > 0),
  lease_holder VARCHAR(255),
  lease_expires_at TIMESTAMPTZ,
  fence BIGINT NOT NULL DEFAULT 0,
  scheduled_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  started_at TIMESTAMPTZ,
  completed_at TIMESTAMPTZ,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT jobs_attempts_bound CHECK (attempts <= max_attempts),
  CONSTRAINT jobs_lease_whole CHECK (
    num_nulls(lease_holder, lease_expires_at) = CASE status WHEN 'processing' THEN 0 ELSE 2 END),
  CONSTRAINT jobs_completed_whole CHECK (
    (completed_at IS NOT NULL) = (status IN ('completed', 'failed', 'cancelled')))
);
COMMENT ON TABLE jobs IS 'Background work: what to do, how far it is, and what became of it. Payloads hold no secrets.';
COMMENT ON COLUMN jobs.priority IS 'Higher is sooner.';
COMMENT ON COLUMN jobs.client_id IS 'The tenant it works for; empty for maintenance over all of them.';
COMMENT ON COLUMN jobs.unique_key IS 'At most one pending or processing job has a given key.';
COMMENT ON COLUMN jobs.attempts IS 'Raised when a worker claims the job.';
COMMENT ON COLUMN jobs.fence IS
  'Raised on every claim and checked on completion, so that a worker that lost its lease cannot overwrite a newer one.';
CREATE UNIQUE INDEX jobs_unique_key ON jobs (unique_key) WHERE status IN ('pending', 'processing');
CREATE INDEX jobs_claim_idx ON jobs (queue, priority DESC, scheduled_at) WHERE status = 'pending';
CREATE INDEX jobs_lease_idx ON jobs (lease_expires_at) WHERE status = 'processing';
CREATE INDEX jobs_completed_idx ON jobs (completed_at) WHERE completed_at IS NOT NULL;
CREATE INDEX jobs_client_idx ON jobs (client_id, id);
CREATE INDEX jobs_requested_by_idx ON jobs (requested_by);
CREATE TRIGGER jobs_touch BEFORE UPDATE ON jobs
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row('lease_expires_at', 'progress');
