-- Campaigns and their daily figures.

CREATE TABLE campaigns (
  id UUID PRIMARY KEY,
  client_id UUID NOT NULL,
  project_id UUID NOT NULL,
  plan_lineage_id UUID,
  plan_version INT,
  plan_channel_id UUID,
  integration_id UUID REFERENCES client_integrations (id) ON DELETE RESTRICT,
  external_id VARCHAR(255) CONSTRAINT campaigns_external_id_given CHECK (btrim(external_id) <> ''),
  platform VARCHAR(50) NOT NULL CONSTRAINT campaigns_platform_known
    CHECK (platform IN ('yandex_direct', 'vk_ads', 'other')),
  name VARCHAR(255) NOT NULL CONSTRAINT campaigns_name_given CHECK (btrim(name) <> ''),
  status VARCHAR(20) NOT NULL DEFAULT 'draft' CONSTRAINT campaigns_status_known
    CHECK (status IN ('draft', 'pending_moderation', 'active', 'paused', 'archived')),
  currency CHAR(3) NOT NULL CONSTRAINT campaigns_currency_shape CHECK (currency ~ '^[A-Z]{3}$'),
  budget_daily NUMERIC(18, 6) CONSTRAINT campaigns_budget_daily_sign CHECK (budget_daily >= 0 AND budget_daily < 1e12),
  budget_total NUMERIC(18, 6) CONSTRAINT campaigns_budget_total_sign CHECK (budget_total >= 0 AND budget_total < 1e12),
  budget_spent NUMERIC(18, 6) NOT NULL DEFAULT 0
    CONSTRAINT campaigns_budget_spent_sign CHECK (budget_spent >= 0 AND budget_spent < 1e12),
  configuration JSONB NOT NULL DEFAULT '{}' CONSTRAINT campaigns_configuration_object
    CHECK (jsonb_typeof(configuration) = 'object'),
  observed JSONB NOT NULL DEFAULT '{}' CONSTRAINT campaigns_observed_object CHECK (jsonb_typeof(observed) = 'object'),
  last_synced_at TIMESTAMPTZ,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT campaigns_project_fkey FOREIGN KEY (project_id, client_id)
    REFERENCES projects (id, client_id) ON DELETE RESTRICT,
  CONSTRAINT campaigns_client_fkey FOREIGN KEY (client_id) REFERENCES clients (id) ON DELETE RESTRICT,
  CONSTRAINT campaigns_plan_lineage_fkey FOREIGN KEY (plan_lineage_id, project_id)
    REFERENCES plan_lineages (id, project_id) ON DELETE RESTRICT,
  CONSTRAINT campaigns_plan_version_fkey FOREIGN KEY (plan_lineage_id, plan_version)
    REFERENCES media_plans (lineage_id, version) ON DELETE RESTRICT,
  CONSTRAINT campaigns_plan_whole CHECK (plan_lineage_id IS NOT NULL OR num_nonnulls(plan_version, plan_channel_id) = 0),
  CONSTRAINT campaigns_budget_order CHECK (budget_daily <= budget_total)
);
COMMENT ON TABLE campaigns IS
  'What we want to run on a platform, and beside it what the platform says. Client, project and platform never change.';
COMMENT ON COLUMN campaigns.client_id IS 'Denormalised from the project, which the foreign key proves.';
COMMENT ON COLUMN campaigns.plan_lineage_id IS 'The media plan, through all its versions.';
COMMENT ON COLUMN campaigns.plan_version IS 'The version the campaign was made under.';
COMMENT ON COLUMN campaigns.plan_channel_id IS 'The entry of the plan''s channels this campaign spends from.';
COMMENT ON COLUMN campaigns.integration_id IS
  'The platform account it runs in, which may be one of an agency above the client.';
COMMENT ON COLUMN campaigns.platform IS 'other: imported, or measured by a tracker of our own.';
COMMENT ON COLUMN campaigns.status IS 'The state we want; what the platform reports is in observed.';
COMMENT ON COLUMN campaigns.budget_spent IS
  'Derived from statistics by one job, never written by callers. Not an edit: leaves revision alone.';
COMMENT ON COLUMN campaigns.observed IS '{state, moderation, payment, reasons[], at} as last read from the platform.';
CREATE INDEX campaigns_client_idx ON campaigns (client_id, id);
CREATE INDEX campaigns_project_idx ON campaigns (project_id, id);
CREATE INDEX campaigns_plan_idx ON campaigns (plan_lineage_id, plan_version) WHERE plan_lineage_id IS NOT NULL;
CREATE UNIQUE INDEX campaigns_external_key ON campaigns (integration_id, external_id) WHERE integration_id IS NOT NULL;
COMMENT ON INDEX campaigns_external_key IS
  'One campaign per account and external id. Local drafts have no external id, which never collides.';
CREATE UNIQUE INDEX campaigns_imported_key ON campaigns (client_id, platform, external_id)
  WHERE external_id IS NOT NULL AND integration_id IS NULL;
CREATE TRIGGER campaigns_identity_fixed BEFORE UPDATE OF id, client_id, project_id, platform ON campaigns
  FOR EACH ROW WHEN (
    (OLD.id, OLD.client_id, OLD.project_id, OLD.platform) IS DISTINCT FROM
    (NEW.id, NEW.client_id, NEW.project_id, NEW.platform))
  EXECUTE FUNCTION refuse_change('campaigns_identity_fixed');
CREATE TRIGGER campaigns_touch BEFORE UPDATE ON campaigns
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row('budget_spent', 'last_synced_at');

CREATE TABLE campaign_statistics (
  id UUID PRIMARY KEY,
  campaign_id UUID NOT NULL REFERENCES campaigns (id) ON DELETE RESTRICT,
  date DATE NOT NULL CONSTRAINT campaign_statistics_date_finite CHECK (isfinite(date)),
  impressions BIGINT NOT NULL DEFAULT 0 CONSTRAINT campaign_statistics_impressions_sign CHECK (impressions >= 0),
  clicks BIGINT NOT NULL DEFAULT 0 CONSTRAINT campaign_statistics_clicks_sign CHECK (clicks >= 0),
  conversions NUMERIC(18, 6) NOT NULL DEFAULT 0
    CONSTRAINT campaign_statistics_conversions_sign CHECK (conversions >= 0 AND conversions < 1e12),
  cost NUMERIC(18, 6) NOT NULL DEFAULT 0
    CONSTRAINT campaign_statistics_cost_sign CHECK (cost >= 0 AND cost < 1e12),
  revenue NUMERIC(18, 6) NOT NULL DEFAULT 0
    CONSTRAINT campaign_statistics_revenue_sign CHECK (revenue >= 0 AND revenue < 1e12),
  currency CHAR(3) NOT NULL CONSTRAINT campaign_statistics_currency_shape CHECK (currency ~ '^[A-Z]{3}$'),
  time_zone VARCHAR(64) NOT NULL CONSTRAINT campaign_statistics_time_zone_known CHECK (is_time_zone(time_zone)),
  source_version BIGINT NOT NULL CONSTRAINT campaign_statistics_source_version_sign CHECK (source_version >= 0),
  is_final BOOLEAN NOT NULL DEFAULT false,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT campaign_statistics_day_key UNIQUE (campaign_id, date)
);
COMMENT ON TABLE campaign_statistics IS
  'A campaign''s figures by day, rolled up from the measurements. A platform may restate a day, also downwards.';
COMMENT ON COLUMN campaign_statistics.date IS 'Calendar day in time_zone.';
COMMENT ON COLUMN campaign_statistics.clicks IS
  'May exceed impressions: a click after midnight belongs to an impression of the day before.';
COMMENT ON COLUMN campaign_statistics.conversions IS 'Fractional where a platform attributes parts of one.';
COMMENT ON COLUMN campaign_statistics.source_version IS 'Version of the measurements the row was computed from.';
COMMENT ON COLUMN campaign_statistics.is_final IS 'Whether the platform no longer restates the day.';
CREATE INDEX campaign_statistics_date_idx ON campaign_statistics (date);
CREATE TRIGGER campaign_statistics_touch BEFORE UPDATE ON campaign_statistics
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row();

CREATE VIEW campaign_statistics_with_ratios WITH (security_invoker = true) AS
SELECT
  id, campaign_id, date, impressions, clicks, conversions, cost, revenue, currency, time_zone, source_version, is_final,
  revision, created_at, updated_at,
  clicks::numeric * 100 / NULLIF(impressions, 0) AS ctr,
  cost / NULLIF(clicks, 0) AS cpc,
  cost * 1000 / NULLIF(impressions, 0) AS cpm,
  conversions * 100 / NULLIF(clicks, 0) AS cr,
  cost / NULLIF(conversions, 0) AS cpa,
  (revenue - cost) * 100 / NULLIF(cost, 0) AS romi,
  revenue / NULLIF(cost, 0) AS roas
FROM campaign_statistics;
COMMENT ON VIEW campaign_statistics_with_ratios IS
  'Daily figures with their quotients, unrounded; NULL where the denominator is zero. ctr, cr and romi are per cent. '
  'Totals over days must divide sums, not average these.';
