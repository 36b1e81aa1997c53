-- What is read from platforms, how far, and what is still to be told to them.

CREATE TABLE sync_streams (
  integration_id UUID NOT NULL REFERENCES client_integrations (id) ON DELETE RESTRICT,
  stream VARCHAR(20) NOT NULL CONSTRAINT sync_streams_stream_known CHECK (stream IN ('entities', 'statistics')),
  cursor TEXT NOT NULL DEFAULT '',
  through DATE,
  whole_at TIMESTAMPTZ,
  reread_from DATE,
  reading_id UUID,
  reading_at TIMESTAMPTZ,
  attempted_at TIMESTAMPTZ,
  succeeded_at TIMESTAMPTZ,
  failures INT NOT NULL DEFAULT 0 CONSTRAINT sync_streams_failures_sign CHECK (failures >= 0),
  reason VARCHAR(40) NOT NULL DEFAULT '',
  error TEXT NOT NULL DEFAULT '',
  failed_at TIMESTAMPTZ,
  PRIMARY KEY (integration_id, stream),
  CONSTRAINT sync_streams_reading_whole CHECK (reading_id IS NULL OR reading_at IS NOT NULL)
);
COMMENT ON TABLE sync_streams IS
  'How far each stream of a platform account has been read. Moved on only once what was read is stored.';
COMMENT ON COLUMN sync_streams.cursor IS 'The platform''s own mark in its changes; empty where it has none.';
COMMENT ON COLUMN sync_streams.through IS 'Last day whose figures were read, in the account''s time zone.';
COMMENT ON COLUMN sync_streams.whole_at IS 'When all campaigns were last read, not only those that had changed.';
COMMENT ON COLUMN sync_streams.reread_from IS 'Somebody wishes figures to be read again from this day on.';
COMMENT ON COLUMN sync_streams.reading_id IS 'The reading that is under way, so that a later try asks for the same reports.';
COMMENT ON COLUMN sync_streams.reading_at IS 'When the latest reading began: the version of its figures. It never goes back.';
COMMENT ON COLUMN sync_streams.failures IS 'Tries that failed since one succeeded.';
COMMENT ON COLUMN sync_streams.reason IS 'Why the last one failed, a word of ours; empty once one succeeded.';

CREATE TABLE sync_coverage (
  integration_id UUID NOT NULL REFERENCES client_integrations (id) ON DELETE RESTRICT,
  campaign_id UUID NOT NULL REFERENCES campaigns (id) ON DELETE RESTRICT,
  first_day DATE NOT NULL,
  measured BOOLEAN NOT NULL,
  PRIMARY KEY (integration_id, campaign_id)
);
COMMENT ON TABLE sync_coverage IS 'From which day on figures of a campaign have been read from an account.';
COMMENT ON COLUMN sync_coverage.measured IS 'Whether there ever were any: only then a day without some is one of zeros.';
CREATE INDEX sync_coverage_campaign_idx ON sync_coverage (campaign_id);

CREATE TABLE platform_campaigns (
  integration_id UUID NOT NULL REFERENCES client_integrations (id) ON DELETE RESTRICT,
  external_id VARCHAR(255) NOT NULL,
  observed JSONB NOT NULL CONSTRAINT platform_campaigns_observed_object CHECK (jsonb_typeof(observed) = 'object'),
  first_seen_at TIMESTAMPTZ NOT NULL,
  seen_at TIMESTAMPTZ NOT NULL,
  gone_at TIMESTAMPTZ,
  PRIMARY KEY (integration_id, external_id)
);
COMMENT ON TABLE platform_campaigns IS 'All campaigns of an account as last read there, also those that nobody has linked.';
COMMENT ON COLUMN platform_campaigns.observed IS 'As campaigns.observed.';
COMMENT ON COLUMN platform_campaigns.gone_at IS 'Since when the platform does not list it any more.';

CREATE SEQUENCE campaign_push_seq;
CREATE TABLE campaign_pushes (
  campaign_id UUID PRIMARY KEY REFERENCES campaigns (id) ON DELETE RESTRICT,
  integration_id UUID NOT NULL REFERENCES client_integrations (id) ON DELETE RESTRICT,
  creates BOOLEAN NOT NULL DEFAULT false,
  parts TEXT[] NOT NULL,
  version BIGINT NOT NULL DEFAULT nextval('campaign_push_seq'),
  wanted_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  creating_at TIMESTAMPTZ,
  creating_name TEXT NOT NULL DEFAULT '',
  refused BOOLEAN NOT NULL DEFAULT false,
  error TEXT NOT NULL DEFAULT '',
  tried_at TIMESTAMPTZ
);
COMMENT ON TABLE campaign_pushes IS 'Changes of ours that a platform has not been told yet. Gone once it has taken them.';
COMMENT ON COLUMN campaign_pushes.creates IS 'The campaign is to be created there.';
COMMENT ON COLUMN campaign_pushes.parts IS 'What changed: name, daily_budget, total_budget, configuration, state.';
COMMENT ON COLUMN campaign_pushes.version IS 'Drawn anew by each change: what changed while the platform was asked stays.';
COMMENT ON COLUMN campaign_pushes.creating_at IS
  'When the platform was first asked to create it: whatever became of that is looked up before it is asked again.';
COMMENT ON COLUMN campaign_pushes.creating_name IS 'Under which name.';
COMMENT ON COLUMN campaign_pushes.refused IS 'The platform will not take it, so it is not asked again until the campaign changes.';
CREATE INDEX campaign_pushes_integration_idx ON campaign_pushes (integration_id);

CREATE FUNCTION campaign_run(status TEXT) RETURNS text LANGUAGE sql IMMUTABLE
RETURN CASE status WHEN 'pending_moderation' THEN 'on' WHEN 'active' THEN 'on' WHEN 'paused' THEN 'off'
  WHEN 'archived' THEN 'away' END;
COMMENT ON FUNCTION campaign_run(TEXT) IS 'What a status of ours wants of the platform; null for a draft, of which it wants nothing.';

-- Here and not in the services: whoever changes a campaign would have to remember it.
CREATE FUNCTION want_push() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  changed TEXT[];
BEGIN
  IF NEW.integration_id IS NULL THEN
    DELETE FROM campaign_pushes WHERE campaign_id = NEW.id;
    RETURN NULL;
  END IF;
  -- A link takes over what is there, and the platform's own answer to a creation is nothing to tell it.
  IF OLD.integration_id IS DISTINCT FROM NEW.integration_id OR OLD.external_id IS DISTINCT FROM NEW.external_id THEN
    RETURN NULL;
  END IF;
  changed := array_remove(ARRAY[
    CASE WHEN OLD.name <> NEW.name THEN 'name' END,
    CASE WHEN OLD.budget_daily IS DISTINCT FROM NEW.budget_daily THEN 'daily_budget' END,
    CASE WHEN OLD.budget_total IS DISTINCT FROM NEW.budget_total THEN 'total_budget' END,
    CASE WHEN OLD.configuration <> NEW.configuration THEN 'configuration' END,
    CASE WHEN campaign_run(NEW.status) <> COALESCE(campaign_run(OLD.status), '') THEN 'state' END], NULL);
  IF changed = '{}' THEN
    RETURN NULL;
  END IF;
  IF NEW.external_id IS NULL THEN
    UPDATE campaign_pushes p SET version = nextval('campaign_push_seq'), refused = false, error = '',
      parts = ARRAY(SELECT DISTINCT unnest(p.parts || changed) ORDER BY 1)
    WHERE p.campaign_id = NEW.id;
  ELSE
    INSERT INTO campaign_pushes AS p (campaign_id, integration_id, parts) VALUES (NEW.id, NEW.integration_id, changed)
    ON CONFLICT (campaign_id) DO UPDATE SET version = nextval('campaign_push_seq'), refused = false, error = '',
      integration_id = EXCLUDED.integration_id, wanted_at = clock_timestamp(),
      parts = ARRAY(SELECT DISTINCT unnest(p.parts || EXCLUDED.parts) ORDER BY 1);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER campaigns_want_push AFTER UPDATE OF name, status, budget_daily, budget_total, configuration,
    integration_id, external_id ON campaigns
  FOR EACH ROW WHEN (OLD.integration_id IS NOT NULL OR NEW.integration_id IS NOT NULL) EXECUTE FUNCTION want_push();

ALTER TABLE client_integrations
  ADD COLUMN settings JSONB NOT NULL DEFAULT '{}'
    CONSTRAINT client_integrations_settings_object CHECK (jsonb_typeof(settings) = 'object');
COMMENT ON COLUMN client_integrations.settings IS 'mrm.campaigns.v1.SyncSettings as JSON: how the account is read.';

-- A row for each stream says more than a field, and does not wait for whoever edits the integration.
DROP TRIGGER client_integrations_touch ON client_integrations;
ALTER TABLE client_integrations DROP COLUMN cursors;
CREATE TRIGGER client_integrations_touch BEFORE UPDATE ON client_integrations
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row('last_synced_at');
