-- Campaigns from files, the plan they belong to, and how far files of campaigns and of figures have been taken.

ALTER TABLE media_plans
  ADD COLUMN imported BOOLEAN NOT NULL DEFAULT false,
  DROP CONSTRAINT media_plans_approval_whole,
  ADD CONSTRAINT media_plans_approval_whole CHECK (num_nulls(approved_by, approved_at) = CASE
    WHEN imported THEN 1 WHEN status IN ('approved', 'active', 'completed') THEN 0 ELSE 2 END),
  ADD CONSTRAINT media_plans_imported_history CHECK (NOT imported OR (
    status = 'completed' AND approved_by IS NULL AND total_budget = 0 AND channels = '[]'));
COMMENT ON COLUMN media_plans.imported IS
  'What campaigns of a time before this service belong to: a completed plan that nobody wrote, without channels or money.';
CREATE UNIQUE INDEX media_plans_one_imported ON media_plans (project_id) WHERE imported;

CREATE TABLE campaign_imports (
  id UUID PRIMARY KEY,
  client_id UUID NOT NULL,
  project_id UUID NOT NULL,
  fingerprint CHAR(64) NOT NULL CONSTRAINT campaign_imports_fingerprint_shape CHECK (fingerprint ~ '^[0-9a-f]{64}$'),
  source_name VARCHAR(255) NOT NULL DEFAULT '',
  on_duplicate VARCHAR(10) NOT NULL CONSTRAINT campaign_imports_on_duplicate_known
    CHECK (on_duplicate IN ('skip', 'update')),
  state VARCHAR(20) NOT NULL DEFAULT 'running' CONSTRAINT campaign_imports_state_known
    CHECK (state IN ('running', 'completed')),
  acknowledged_line BIGINT NOT NULL DEFAULT 0,
  row_count BIGINT NOT NULL DEFAULT 0,
  created_count BIGINT NOT NULL DEFAULT 0,
  updated_count BIGINT NOT NULL DEFAULT 0,
  skipped_count BIGINT NOT NULL DEFAULT 0,
  failed_count BIGINT NOT NULL DEFAULT 0,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  completed_at TIMESTAMPTZ,
  CONSTRAINT campaign_imports_file_key UNIQUE (project_id, fingerprint, on_duplicate),
  CONSTRAINT campaign_imports_project_fkey FOREIGN KEY (project_id, client_id)
    REFERENCES projects (id, client_id) ON DELETE RESTRICT,
  CONSTRAINT campaign_imports_counts_whole CHECK (
    row_count = created_count + updated_count + skipped_count + failed_count),
  CONSTRAINT campaign_imports_completed_whole CHECK ((completed_at IS NOT NULL) = (state = 'completed'))
);
COMMENT ON TABLE campaign_imports IS
  'How far each file of campaigns has been taken. Moves in the transaction of the campaigns, so it is never beside them.';
COMMENT ON COLUMN campaign_imports.acknowledged_line IS 'Rows up to this line are dealt with.';
CREATE INDEX campaign_imports_client_idx ON campaign_imports (client_id, id);

CREATE TABLE campaign_import_errors (
  id UUID PRIMARY KEY,
  campaign_import_id UUID NOT NULL REFERENCES campaign_imports (id) ON DELETE RESTRICT,
  line BIGINT NOT NULL,
  field VARCHAR(100) NOT NULL,
  reason VARCHAR(100) NOT NULL,
  message TEXT NOT NULL
);
COMMENT ON TABLE campaign_import_errors IS 'What was wrong with rows of files. Holds no value of a row.';
CREATE INDEX campaign_import_errors_import_idx ON campaign_import_errors (campaign_import_id, id);

CREATE TABLE backfills (
  id UUID PRIMARY KEY,
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  fingerprint CHAR(64) NOT NULL CONSTRAINT backfills_fingerprint_shape CHECK (fingerprint ~ '^[0-9a-f]{64}$'),
  source_name VARCHAR(255) NOT NULL DEFAULT '',
  version BIGINT NOT NULL CONSTRAINT backfills_version_positive CHECK (version > 0),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT backfills_file_key UNIQUE (client_id, fingerprint),
  CONSTRAINT backfills_version_key UNIQUE (client_id, version)
);
COMMENT ON TABLE backfills IS 'Files of historical figures.';
COMMENT ON COLUMN backfills.version IS 'Of its snapshots: a file begun later replaces the days of an earlier one.';

CREATE TABLE backfill_chunks (
  backfill_id UUID NOT NULL REFERENCES backfills (id) ON DELETE RESTRICT,
  month CHAR(7) NOT NULL CONSTRAINT backfill_chunks_month_shape CHECK (month ~ '^[0-9]{4}-(0[1-9]|1[0-2])$'),
  part INT NOT NULL CONSTRAINT backfill_chunks_part_sign CHECK (part >= 0),
  snapshot_count BIGINT NOT NULL,
  stale_count BIGINT NOT NULL,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (backfill_id, month, part)
);
COMMENT ON TABLE backfill_chunks IS 'Which chunks are stored. Written after the figures, whose versions make a repeat harmless.';
