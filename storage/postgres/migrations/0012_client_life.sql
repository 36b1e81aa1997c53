-- The rest of a client's life: what the archive forbids, and the two steps of a purge.

ALTER TABLE clients
  ADD COLUMN purge_allowed_at TIMESTAMPTZ,
  ADD COLUMN purged_at TIMESTAMPTZ,
  ADD CONSTRAINT clients_purge_archived
    CHECK (archived_at IS NOT NULL OR (purge_allowed_at IS NULL AND purged_at IS NULL));
COMMENT ON COLUMN clients.purge_allowed_at IS 'From when on a requested purge may be confirmed; empty while none is requested.';
COMMENT ON COLUMN clients.purged_at IS
  'When the client was erased. Such a row only holds the place of what must stay; nobody may see it, or anything of it.';
CREATE TRIGGER clients_purged_fixed BEFORE UPDATE ON clients
  FOR EACH ROW WHEN (OLD.purged_at IS NOT NULL AND OLD.purged_at IS DISTINCT FROM NEW.purged_at)
  EXECUTE FUNCTION refuse_change('clients_purged_fixed');

CREATE FUNCTION is_client_archived(candidate UUID) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
RETURN EXISTS (
  SELECT FROM clients c JOIN clients above ON above.id = ANY (c.path)
  WHERE c.id = candidate AND above.archived_at IS NOT NULL AND c.purged_at IS NULL);
COMMENT ON FUNCTION is_client_archived(UUID) IS
  'Whether a client, or an agency above it, is archived. A purged client is past that: only its eraser writes there.';

CREATE FUNCTION refuse_in_archive() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  row_ JSONB := to_jsonb(CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END);
  owner UUID := row_->>'client_id';
BEGIN
  IF owner IS NULL THEN
    SELECT client_id INTO owner FROM projects WHERE id = (row_->>'project_id')::uuid;
  END IF;
  IF is_client_archived(owner) THEN
    RAISE EXCEPTION 'the client is archived'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'client_archived', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
COMMENT ON FUNCTION refuse_in_archive() IS
  'Refuses a change of what belongs to an archived client, whoever makes it. Bookkeeping of jobs is not a change: the '
  'triggers name the columns that people decide on.';

CREATE TRIGGER projects_archive BEFORE INSERT OR DELETE
  OR UPDATE OF name, description, status, budget_total, budget_currency, start_date, end_date ON projects
  FOR EACH ROW EXECUTE FUNCTION refuse_in_archive();
CREATE TRIGGER project_team_archive BEFORE INSERT OR DELETE OR UPDATE OF user_id, role, raci ON project_team
  FOR EACH ROW EXECUTE FUNCTION refuse_in_archive();
CREATE TRIGGER media_plans_archive BEFORE INSERT OR DELETE
  OR UPDATE OF name, status, total_budget, currency, channels, targeting, approved_by ON media_plans
  FOR EACH ROW EXECUTE FUNCTION refuse_in_archive();
CREATE TRIGGER campaigns_archive BEFORE INSERT OR DELETE
  OR UPDATE OF name, status, currency, budget_daily, budget_total, external_id, configuration, plan_lineage_id,
    plan_version, plan_channel_id, integration_id ON campaigns
  FOR EACH ROW EXECUTE FUNCTION refuse_in_archive();
