-- What needs somebody's attention, when it is told, and the e-mails that tell it.

CREATE TABLE alerts (
  id UUID PRIMARY KEY,
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  project_id UUID,
  campaign_id UUID REFERENCES campaigns (id) ON DELETE RESTRICT,
  integration_id UUID REFERENCES client_integrations (id) ON DELETE RESTRICT,
  kind VARCHAR(40) NOT NULL CONSTRAINT alerts_kind_known CHECK (kind IN (
    'budget_threshold', 'budget_exhaustion', 'overspend', 'overpacing', 'underpacing', 'integration_error',
    'rollup_drift', 'job_failed')),
  severity VARCHAR(20) NOT NULL CONSTRAINT alerts_severity_known CHECK (severity IN ('info', 'warning', 'critical')),
  status VARCHAR(20) NOT NULL DEFAULT 'open' CONSTRAINT alerts_status_known
    CHECK (status IN ('open', 'acknowledged', 'resolved')),
  dedupe_key VARCHAR(200) NOT NULL CONSTRAINT alerts_dedupe_key_given CHECK (dedupe_key <> ''),
  summary TEXT NOT NULL DEFAULT '',
  details JSONB NOT NULL DEFAULT '{}' CONSTRAINT alerts_details_object CHECK (jsonb_typeof(details) = 'object'),
  occurrences INT NOT NULL DEFAULT 1 CONSTRAINT alerts_occurrences_positive CHECK (occurrences > 0),
  first_seen_at TIMESTAMPTZ NOT NULL,
  last_seen_at TIMESTAMPTZ NOT NULL,
  notified_at TIMESTAMPTZ NOT NULL,
  acknowledged_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  acknowledged_at TIMESTAMPTZ,
  resolved_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  resolved_at TIMESTAMPTZ,
  resolved_by_hand BOOLEAN NOT NULL DEFAULT false,
  comment TEXT NOT NULL DEFAULT '',
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT alerts_project_fkey FOREIGN KEY (project_id, client_id)
    REFERENCES projects (id, client_id) ON DELETE RESTRICT,
  CONSTRAINT alerts_resolved_whole CHECK ((resolved_at IS NOT NULL) = (status = 'resolved')),
  CONSTRAINT alerts_seen_order CHECK (last_seen_at >= first_seen_at)
);
COMMENT ON TABLE alerts IS 'Conditions that need attention, each once however often it is seen.';
COMMENT ON COLUMN alerts.dedupe_key IS
  'What makes two sightings the same: kind, thing, limit and period. At most one alert of a client that is not resolved has it.';
COMMENT ON COLUMN alerts.details IS 'mrm.operations.v1.AlertDetails as JSON, of the last sighting.';
COMMENT ON COLUMN alerts.notified_at IS 'When its recipients were last told; moved on by reminders.';
COMMENT ON COLUMN alerts.resolved_by_hand IS
  'Whether somebody, not the service, resolved it. Seen again soon after, it stays so: that person knew.';
CREATE UNIQUE INDEX alerts_live_key ON alerts (client_id, dedupe_key) WHERE status <> 'resolved';
CREATE INDEX alerts_client_idx ON alerts (client_id, id);
CREATE INDEX alerts_resolved_key_idx ON alerts (client_id, dedupe_key, resolved_at) WHERE resolved_by_hand;
CREATE INDEX alerts_project_idx ON alerts (project_id, id);
CREATE INDEX alerts_campaign_idx ON alerts (campaign_id, id);
CREATE INDEX alerts_integration_idx ON alerts (integration_id, id);
CREATE INDEX alerts_acknowledged_by_idx ON alerts (acknowledged_by);
CREATE INDEX alerts_resolved_by_idx ON alerts (resolved_by);
-- Being seen again is no edit: whoever read an alert may still acknowledge what was read.
CREATE TRIGGER alerts_touch BEFORE UPDATE ON alerts
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
  EXECUTE FUNCTION touch_row('occurrences', 'last_seen_at', 'notified_at', 'details', 'summary');

CREATE TABLE budget_alert_policies (
  id UUID PRIMARY KEY,
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  project_id UUID,
  campaign_id UUID REFERENCES campaigns (id) ON DELETE RESTRICT,
  muted BOOLEAN NOT NULL DEFAULT false,
  threshold_percents INT[] NOT NULL,
  pacing_low_percent INT NOT NULL CONSTRAINT budget_alert_policies_low_sign CHECK (pacing_low_percent >= 0),
  pacing_high_percent INT NOT NULL,
  recipient_emails TEXT[] NOT NULL DEFAULT '{}',
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT budget_alert_policies_band CHECK (pacing_low_percent < pacing_high_percent),
  CONSTRAINT budget_alert_policies_campaign_whole CHECK ((campaign_id IS NULL) = (project_id IS NULL)),
  CONSTRAINT budget_alert_policies_project_fkey FOREIGN KEY (project_id, client_id)
    REFERENCES projects (id, client_id) ON DELETE RESTRICT
);
COMMENT ON TABLE budget_alert_policies IS 'When a client, or one campaign of it, is told about budgets. Without a row the settings decide.';
COMMENT ON COLUMN budget_alert_policies.project_id IS 'The campaign''s, by which it is seen.';
CREATE UNIQUE INDEX budget_alert_policies_client_key ON budget_alert_policies (client_id) WHERE campaign_id IS NULL;
CREATE UNIQUE INDEX budget_alert_policies_campaign_key ON budget_alert_policies (campaign_id) WHERE campaign_id IS NOT NULL;
CREATE INDEX budget_alert_policies_client_idx ON budget_alert_policies (client_id);
CREATE INDEX budget_alert_policies_project_idx ON budget_alert_policies (project_id);
CREATE TRIGGER budget_alert_policies_touch BEFORE UPDATE ON budget_alert_policies
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER budget_alert_policies_archive BEFORE INSERT OR UPDATE ON budget_alert_policies
  FOR EACH ROW EXECUTE FUNCTION refuse_in_archive();

CREATE TABLE emails (
  id UUID PRIMARY KEY,
  template VARCHAR(50) NOT NULL,
  language VARCHAR(2) NOT NULL CONSTRAINT emails_language_known CHECK (language IN ('ru', 'en')),
  address VARCHAR(255) NOT NULL,
  user_id UUID REFERENCES users (id) ON DELETE RESTRICT,
  client_id UUID REFERENCES clients (id) ON DELETE RESTRICT,
  event_id VARCHAR(150) NOT NULL CONSTRAINT emails_event_given CHECK (event_id <> ''),
  content JSONB NOT NULL CONSTRAINT emails_content_object CHECK (jsonb_typeof(content) = 'object'),
  status VARCHAR(20) NOT NULL DEFAULT 'queued' CONSTRAINT emails_status_known
    CHECK (status IN ('queued', 'sent', 'suppressed', 'undeliverable', 'skipped')),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  ended_at TIMESTAMPTZ,
  CONSTRAINT emails_once UNIQUE (template, address, event_id),
  CONSTRAINT emails_ended_whole CHECK ((ended_at IS NULL) = (status = 'queued'))
);
COMMENT ON TABLE emails IS 'What is to be told to whom by e-mail, once for each event; the job that sends it names the row.';
COMMENT ON COLUMN emails.user_id IS 'The recipient, when a person of ours, whose present address counts.';
COMMENT ON COLUMN emails.status IS 'skipped: no mail server is configured, or the recipient is no longer there.';
COMMENT ON COLUMN emails.content IS 'What the template says; emptied 30 days after the end. Holds no secrets.';
CREATE INDEX emails_user_idx ON emails (user_id);
CREATE INDEX emails_client_idx ON emails (client_id);
CREATE INDEX emails_ended_idx ON emails (ended_at) WHERE content <> '{}';

CREATE TABLE email_suppressions (
  id UUID PRIMARY KEY,
  address VARCHAR(255) NOT NULL CONSTRAINT email_suppressions_lower CHECK (address = lower(address)),
  reason VARCHAR(20) NOT NULL CONSTRAINT email_suppressions_reason_known CHECK (reason IN ('unsubscribed', 'manual')),
  comment TEXT NOT NULL DEFAULT '',
  created_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT email_suppressions_address_key UNIQUE (address)
);
COMMENT ON TABLE email_suppressions IS 'Addresses to which nothing is sent.';
CREATE INDEX email_suppressions_created_by_idx ON email_suppressions (created_by);
