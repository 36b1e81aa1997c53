-- What is kept how long: archives of whole months, who is not to be forgotten, and what was erased where.

CREATE TABLE archive_partitions (
  id UUID PRIMARY KEY,
  table_name VARCHAR(50) NOT NULL CONSTRAINT archive_partitions_table_known
    CHECK (table_name IN ('campaign_events', 'campaign_statistics')),
  month DATE NOT NULL CONSTRAINT archive_partitions_month_begins CHECK (month = date_trunc('month', month)::date),
  state VARCHAR(20) NOT NULL DEFAULT 'archiving' CONSTRAINT archive_partitions_state_known
    CHECK (state IN ('archiving', 'archived', 'dropping', 'dropped', 'restoring', 'restored', 'expired')),
  closed_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  archived_at TIMESTAMPTZ,
  dropped_at TIMESTAMPTZ,
  restored_at TIMESTAMPTZ,
  kept_until TIMESTAMPTZ,
  CONSTRAINT archive_partitions_key UNIQUE (table_name, month),
  CONSTRAINT archive_partitions_kept CHECK ((kept_until IS NOT NULL) = (state IN ('restoring', 'restored')))
);
COMMENT ON TABLE archive_partitions IS
  'Manifest: months of a table that were to leave it. archiving -> archived (every file was read back) -> dropping -> '
  'dropped (-> restoring -> restored -> dropping ...) -> expired. Each step may be repeated after a kill.';
COMMENT ON COLUMN archive_partitions.closed_at IS 'When rows of the month stopped being taken.';
COMMENT ON COLUMN archive_partitions.kept_until IS 'Until when restored rows stay.';

CREATE TABLE archives (
  partition_id UUID NOT NULL REFERENCES archive_partitions (id) ON DELETE RESTRICT,
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  object_key VARCHAR(512) NOT NULL,
  row_count BIGINT NOT NULL CONSTRAINT archives_row_count_positive CHECK (row_count > 0),
  digest NUMERIC(20) NOT NULL,
  size_bytes BIGINT NOT NULL,
  sha256 CHAR(64) NOT NULL,
  verified_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (partition_id, client_id)
);
COMMENT ON TABLE archives IS 'One Parquet file for each client of an archived month. A row is written once the file was read back.';
COMMENT ON COLUMN archives.digest IS 'Sum of hashes of the rows, as their own store computes it, of the table and of the file read back.';
CREATE INDEX archives_client_idx ON archives (client_id);

CREATE TABLE archived_spend (
  campaign_id UUID PRIMARY KEY REFERENCES campaigns (id) ON DELETE RESTRICT,
  spent NUMERIC(18, 6) NOT NULL
);
COMMENT ON TABLE archived_spend IS 'What a campaign spent on days whose daily figures are in the archive only.';

CREATE TABLE legal_holds (
  client_id UUID PRIMARY KEY REFERENCES clients (id) ON DELETE RESTRICT,
  reason TEXT NOT NULL CONSTRAINT legal_holds_reason_given CHECK (reason <> ''),
  set_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  set_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE legal_holds IS 'Clients of which nothing may be forgotten or erased.';
CREATE INDEX legal_holds_set_by_idx ON legal_holds (set_by);

CREATE TABLE erasures (
  id UUID PRIMARY KEY,
  subject VARCHAR(20) NOT NULL CONSTRAINT erasures_subject_known CHECK (subject IN ('client', 'user', 'user_ids')),
  subject_id UUID NOT NULL,
  requested_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  deadline TIMESTAMPTZ NOT NULL,
  completed_at TIMESTAMPTZ
);
COMMENT ON TABLE erasures IS 'What is to be erased in all stores, and by when.';
COMMENT ON COLUMN erasures.subject IS 'user_ids: the salt under which a client''s user ids are hashed, without which no pseudonym leads anywhere.';
CREATE INDEX erasures_subject_idx ON erasures (subject_id);
CREATE INDEX erasures_open_idx ON erasures (deadline) WHERE completed_at IS NULL;

CREATE TABLE erasure_receipts (
  erasure_id UUID NOT NULL REFERENCES erasures (id) ON DELETE RESTRICT,
  store VARCHAR(20) NOT NULL CONSTRAINT erasure_receipts_store_known
    CHECK (store IN ('postgresql', 'clickhouse', 'archives', 'objects', 'milvus', 'redis')),
  erased_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  note TEXT NOT NULL,
  PRIMARY KEY (erasure_id, store)
);
COMMENT ON TABLE erasure_receipts IS 'That a store holds nothing more of it, written after looking.';

-- Frozen and appended rows go with their client, and only then.
CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' AND TG_TABLE_NAME IN ('media_plans', 'restatements', 'prompt_label_moves')
    AND current_setting('mrm.erasing', true) = 'on' THEN
    RETURN OLD;
  END IF;
  RAISE EXCEPTION 'refused by %', TG_ARGV[0]
    USING ERRCODE = 'check_violation', CONSTRAINT = TG_ARGV[0], TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
END $$;

-- Alerts about the service itself have no client; administrators see them.
ALTER TABLE alerts ALTER COLUMN client_id DROP NOT NULL;
ALTER TABLE alerts DROP CONSTRAINT alerts_kind_known, ADD CONSTRAINT alerts_kind_known CHECK (kind IN (
  'budget_threshold', 'budget_exhaustion', 'overspend', 'overpacing', 'underpacing', 'integration_error',
  'rollup_drift', 'job_failed', 'retention_overdue', 'erasure_overdue'));
DROP INDEX alerts_live_key;
CREATE UNIQUE INDEX alerts_live_key ON alerts (client_id, dedupe_key) NULLS NOT DISTINCT WHERE status <> 'resolved';
