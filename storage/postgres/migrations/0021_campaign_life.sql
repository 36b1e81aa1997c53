-- What campaigns need to be led through their life: typed settings, why moderation refused, and what is no edit.

ALTER TABLE campaigns
  ADD COLUMN settings JSONB NOT NULL DEFAULT '{}'
    CONSTRAINT campaigns_settings_object CHECK (jsonb_typeof(settings) = 'object'),
  ADD COLUMN rejection_reason TEXT NOT NULL DEFAULT '';
COMMENT ON COLUMN campaigns.settings IS
  '{<platform>: {...}}, the typed settings; fields that the present code does not know are kept.';
COMMENT ON COLUMN campaigns.configuration IS 'Whatever else belongs to the platform, kept as it is.';
COMMENT ON COLUMN campaigns.rejection_reason IS 'Why moderation refused the campaign last, until it is submitted again.';
COMMENT ON COLUMN campaigns.observed IS
  '{state, moderation, payment, reasons[], at, name, daily_budget, total_budget} as last read from the platform. Not an '
  'edit: leaves revision alone.';
CREATE INDEX campaigns_external_idx ON campaigns (external_id) WHERE external_id IS NOT NULL;

DROP TRIGGER campaigns_touch ON campaigns;
CREATE TRIGGER campaigns_touch BEFORE UPDATE ON campaigns
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
  EXECUTE FUNCTION touch_row('budget_spent', 'last_synced_at', 'observed');

DROP TRIGGER campaigns_archive ON campaigns;
CREATE TRIGGER campaigns_archive BEFORE INSERT OR DELETE
  OR UPDATE OF name, status, currency, budget_daily, budget_total, external_id, configuration, settings, plan_lineage_id,
    plan_version, plan_channel_id, integration_id ON campaigns
  FOR EACH ROW EXECUTE FUNCTION refuse_in_archive();
