-- Platforms are told of changed settings too, not only of the open configuration.
COMMENT ON COLUMN campaign_pushes.parts IS 'What changed: name, daily_budget, total_budget, configuration, settings, state.';

CREATE OR REPLACE FUNCTION want_push() RETURNS trigger LANGUAGE plpgsql AS $$
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
    CASE WHEN OLD.settings <> NEW.settings THEN 'settings' END,
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

DROP TRIGGER campaigns_want_push ON campaigns;
CREATE TRIGGER campaigns_want_push AFTER UPDATE OF name, status, budget_daily, budget_total, configuration, settings,
    integration_id, external_id ON campaigns
  FOR EACH ROW WHEN (OLD.integration_id IS NOT NULL OR NEW.integration_id IS NOT NULL) EXECUTE FUNCTION want_push();
