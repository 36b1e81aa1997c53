-- Daily figures: how far they are rolled up, which days are to be rolled up again, and what was restated.

CREATE TABLE rollups (
  client_id UUID PRIMARY KEY REFERENCES clients (id) ON DELETE RESTRICT,
  rolled_through DATE,
  rolled_at TIMESTAMPTZ,
  time_zone VARCHAR(64) CONSTRAINT rollups_time_zone_known CHECK (time_zone IS NULL OR is_time_zone(time_zone)),
  takes BIGINT NOT NULL DEFAULT 0,
  CONSTRAINT rollups_whole CHECK (num_nulls(rolled_through, rolled_at, time_zone) IN (0, 3))
);
COMMENT ON TABLE rollups IS 'How far the daily figures of a client are.';
COMMENT ON COLUMN rollups.rolled_through IS 'Last day, in time_zone, up to which every day was rolled up after it had ended.';
COMMENT ON COLUMN rollups.takes IS
  'How often the marks of the client were taken. Part of the key of the job that takes them, so that marks made while '
  'one runs get another.';

CREATE SEQUENCE rollup_mark_seq;
CREATE TABLE rollup_marks (
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  date DATE NOT NULL CONSTRAINT rollup_marks_date_finite CHECK (isfinite(date)),
  mark BIGINT NOT NULL DEFAULT nextval('rollup_mark_seq'),
  marked_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (client_id, date)
);
COMMENT ON TABLE rollup_marks IS 'Days whose measurements changed after they had ended, until they are rolled up again.';
COMMENT ON COLUMN rollup_marks.mark IS 'Drawn anew by each change: only what was there before the reading is done with it.';

CREATE TABLE restatements (
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  seq BIGINT GENERATED ALWAYS AS IDENTITY,
  campaign_id UUID NOT NULL REFERENCES campaigns (id) ON DELETE RESTRICT,
  date DATE NOT NULL,
  currency CHAR(3) NOT NULL,
  old_impressions BIGINT NOT NULL,
  old_clicks BIGINT NOT NULL,
  old_conversions NUMERIC(18, 6) NOT NULL,
  old_cost NUMERIC(18, 6) NOT NULL,
  old_revenue NUMERIC(18, 6) NOT NULL,
  impressions BIGINT NOT NULL,
  clicks BIGINT NOT NULL,
  conversions NUMERIC(18, 6) NOT NULL,
  cost NUMERIC(18, 6) NOT NULL,
  revenue NUMERIC(18, 6) NOT NULL,
  delivery_source VARCHAR(20) NOT NULL,
  outcome_source VARCHAR(20) NOT NULL,
  source_version BIGINT NOT NULL,
  revision BIGINT NOT NULL,
  cause VARCHAR(20) NOT NULL CONSTRAINT restatements_cause_known
    CHECK (cause IN ('new_reading', 'day_close', 'requested', 'reconciliation')),
  job_id UUID NOT NULL,
  at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (client_id, seq)
);
COMMENT ON TABLE restatements IS 'Every time the daily figures of a campaign became others than they had been. Append-only.';
COMMENT ON COLUMN restatements.seq IS
  'Order of the feed. Rows of a client are written under its lock, so that within a client no lower one appears later.';
COMMENT ON COLUMN restatements.job_id IS 'The job that found it; outlived by this record.';
CREATE INDEX restatements_campaign_idx ON restatements (campaign_id, date);
CREATE TRIGGER restatements_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON restatements
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('restatements_append_only');

CREATE TABLE campaign_statistics_quarantine (
  campaign_id UUID NOT NULL REFERENCES campaigns (id) ON DELETE RESTRICT,
  date DATE NOT NULL,
  impressions BIGINT NOT NULL,
  clicks BIGINT NOT NULL,
  conversions NUMERIC(18, 6) NOT NULL,
  cost NUMERIC(18, 6) NOT NULL,
  revenue NUMERIC(18, 6) NOT NULL,
  currency CHAR(3) NOT NULL,
  time_zone VARCHAR(64) NOT NULL,
  source_version BIGINT NOT NULL,
  reason VARCHAR(20) NOT NULL CONSTRAINT campaign_statistics_quarantine_reason_known CHECK (reason IN ('too_old')),
  quarantined_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (campaign_id, date)
);
COMMENT ON TABLE campaign_statistics_quarantine IS
  'Figures of days that are older than daily figures are kept: they came too late and count nowhere in PostgreSQL.';

CREATE TABLE rollup_checks (
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  date DATE NOT NULL,
  currency CHAR(3) NOT NULL,
  state VARCHAR(10) NOT NULL CONSTRAINT rollup_checks_state_known CHECK (state IN ('matched', 'healed', 'drifted')),
  campaigns INT NOT NULL,
  stored_impressions BIGINT NOT NULL,
  stored_clicks BIGINT NOT NULL,
  stored_conversions NUMERIC(24, 6) NOT NULL,
  stored_cost NUMERIC(24, 6) NOT NULL,
  stored_revenue NUMERIC(24, 6) NOT NULL,
  measured_impressions BIGINT NOT NULL,
  measured_clicks BIGINT NOT NULL,
  measured_conversions NUMERIC(24, 6) NOT NULL,
  measured_cost NUMERIC(24, 6) NOT NULL,
  measured_revenue NUMERIC(24, 6) NOT NULL,
  checked_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  drifted_at TIMESTAMPTZ,
  PRIMARY KEY (client_id, date, currency),
  CONSTRAINT rollup_checks_drifted CHECK (state = 'matched' OR drifted_at IS NOT NULL)
);
COMMENT ON TABLE rollup_checks IS
  'The latest comparison of a client''s day in PostgreSQL with the measurements in ClickHouse. Where they differed the '
  'sums are those of the moment of finding it.';
COMMENT ON COLUMN rollup_checks.state IS
  'matched: equal. healed: they differed though nothing new had been measured, and were made equal. drifted: they differ.';
COMMENT ON COLUMN rollup_checks.campaigns IS 'Campaigns that differed when it was last found.';
