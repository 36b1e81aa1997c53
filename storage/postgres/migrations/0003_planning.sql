-- Projects, their teams and versioned media plans.

CREATE TABLE projects (
  id UUID PRIMARY KEY,
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  name VARCHAR(255) NOT NULL CONSTRAINT projects_name_given CHECK (btrim(name) <> ''),
  description TEXT NOT NULL DEFAULT '',
  status VARCHAR(20) NOT NULL DEFAULT 'draft' CONSTRAINT projects_status_known
    CHECK (status IN ('draft', 'active', 'paused', 'completed', 'archived')),
  budget_total NUMERIC(18, 6) CONSTRAINT projects_budget_total_sign CHECK (budget_total >= 0 AND budget_total < 1e12),
  budget_spent NUMERIC(18, 6) NOT NULL DEFAULT 0
    CONSTRAINT projects_budget_spent_sign CHECK (budget_spent >= 0 AND budget_spent < 1e12),
  budget_currency CHAR(3) NOT NULL DEFAULT 'RUB' CONSTRAINT projects_currency_shape CHECK (budget_currency ~ '^[A-Z]{3}$'),
  start_date DATE CONSTRAINT projects_start_finite CHECK (isfinite(start_date)),
  end_date DATE CONSTRAINT projects_end_finite CHECK (isfinite(end_date)),
  created_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT projects_dates_order CHECK (end_date >= start_date),
  CONSTRAINT projects_tenant_key UNIQUE (id, client_id)
);
COMMENT ON TABLE projects IS 'A piece of work for a client, with a budget and a period.';
COMMENT ON COLUMN projects.budget_spent IS
  'Derived from statistics by one job, never written by callers. Not an edit: leaves revision alone.';
COMMENT ON COLUMN projects.created_by IS 'The author, when a person; an API key leaves it empty.';
COMMENT ON CONSTRAINT projects_tenant_key ON projects IS
  'Lets other tables prove that the client they carry is the project''s.';
CREATE INDEX projects_client_idx ON projects (client_id, id);
CREATE INDEX projects_status_idx ON projects (status, id);
CREATE INDEX projects_dates_idx ON projects (start_date, end_date);
CREATE INDEX projects_created_by_idx ON projects (created_by);
CREATE TRIGGER projects_identity_fixed BEFORE UPDATE OF id, client_id ON projects
  FOR EACH ROW WHEN ((OLD.id, OLD.client_id) IS DISTINCT FROM (NEW.id, NEW.client_id))
  EXECUTE FUNCTION refuse_change('projects_identity_fixed');
CREATE TRIGGER projects_touch BEFORE UPDATE ON projects
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row('budget_spent');

CREATE TABLE project_team (
  id UUID PRIMARY KEY,
  project_id UUID NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
  user_id UUID NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
  role VARCHAR(50) NOT NULL CONSTRAINT project_team_role_known
    CHECK (role IN ('pm', 'media_planner', 'analyst', 'account_manager', 'specialist')),
  raci CHAR(1) NOT NULL DEFAULT 'I' CONSTRAINT project_team_raci_known CHECK (raci IN ('R', 'A', 'C', 'I')),
  assigned_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  revision BIGINT NOT NULL DEFAULT 1,
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT project_team_member_key UNIQUE (project_id, user_id, role)
);
COMMENT ON TABLE project_team IS
  'Who works on a project and as what. Membership alone makes the project visible, though not its client.';
COMMENT ON COLUMN project_team.raci IS
  'Responsible may edit, Accountable (one per project) may also approve, Consulted may comment, Informed is notified.';
CREATE UNIQUE INDEX project_team_one_accountable ON project_team (project_id) WHERE raci = 'A';
CREATE INDEX project_team_user_idx ON project_team (user_id, project_id);
CREATE TRIGGER project_team_touch BEFORE UPDATE ON project_team
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row();

CREATE TABLE plan_lineages (
  id UUID PRIMARY KEY,
  project_id UUID NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
  name VARCHAR(255) NOT NULL CONSTRAINT plan_lineages_name_given CHECK (btrim(name) <> ''),
  created_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT plan_lineages_project_key UNIQUE (id, project_id)
);
COMMENT ON TABLE plan_lineages IS
  'A media plan through all its versions. Campaigns belong to the lineage, so that a new version orphans none.';
CREATE INDEX plan_lineages_project_idx ON plan_lineages (project_id, id);
CREATE INDEX plan_lineages_created_by_idx ON plan_lineages (created_by);
CREATE TRIGGER plan_lineages_identity_fixed BEFORE UPDATE OF id, project_id ON plan_lineages
  FOR EACH ROW WHEN ((OLD.id, OLD.project_id) IS DISTINCT FROM (NEW.id, NEW.project_id))
  EXECUTE FUNCTION refuse_change('plan_lineages_identity_fixed');
CREATE TRIGGER plan_lineages_touch BEFORE UPDATE ON plan_lineages
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row();

CREATE TABLE media_plans (
  id UUID PRIMARY KEY,
  lineage_id UUID NOT NULL,
  project_id UUID NOT NULL,
  name VARCHAR(255) NOT NULL CONSTRAINT media_plans_name_given CHECK (btrim(name) <> ''),
  version INT NOT NULL DEFAULT 1 CONSTRAINT media_plans_version_positive CHECK (version > 0),
  status VARCHAR(20) NOT NULL DEFAULT 'draft' CONSTRAINT media_plans_status_known
    CHECK (status IN ('draft', 'pending_approval', 'approved', 'active', 'completed')),
  total_budget NUMERIC(18, 6) CONSTRAINT media_plans_total_budget_sign CHECK (total_budget >= 0 AND total_budget < 1e12),
  currency CHAR(3) NOT NULL DEFAULT 'RUB' CONSTRAINT media_plans_currency_shape CHECK (currency ~ '^[A-Z]{3}$'),
  channels JSONB NOT NULL CONSTRAINT media_plans_channels_array CHECK (jsonb_typeof(channels) = 'array'),
  targeting JSONB NOT NULL DEFAULT '{}' CONSTRAINT media_plans_targeting_object
    CHECK (jsonb_typeof(targeting) = 'object'),
  created_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  approved_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  approved_at TIMESTAMPTZ,
  superseded_by UUID REFERENCES media_plans (id) ON DELETE RESTRICT,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT media_plans_lineage_fkey FOREIGN KEY (lineage_id, project_id)
    REFERENCES plan_lineages (id, project_id) ON DELETE RESTRICT,
  CONSTRAINT media_plans_version_key UNIQUE (lineage_id, version),
  CONSTRAINT media_plans_four_eyes CHECK (approved_by <> created_by),
  CONSTRAINT media_plans_approval_whole CHECK (
    num_nulls(approved_by, approved_at) = CASE WHEN status IN ('approved', 'active', 'completed') THEN 0 ELSE 2 END)
);
COMMENT ON TABLE media_plans IS 'One version of a media plan. Its content is frozen once approved.';
COMMENT ON COLUMN media_plans.channels IS 'Array of {channel, budget, formats, kpis}.';
COMMENT ON COLUMN media_plans.targeting IS '{geo, age, gender, interests}.';
COMMENT ON COLUMN media_plans.superseded_by IS 'The version whose activation completed this one.';
CREATE UNIQUE INDEX media_plans_one_active ON media_plans (lineage_id) WHERE status = 'active';
CREATE INDEX media_plans_project_idx ON media_plans (project_id, status);
CREATE INDEX media_plans_created_by_idx ON media_plans (created_by);
CREATE INDEX media_plans_approved_by_idx ON media_plans (approved_by);
CREATE INDEX media_plans_superseded_by_idx ON media_plans (superseded_by);
CREATE TRIGGER media_plans_frozen BEFORE UPDATE ON media_plans
  FOR EACH ROW WHEN (
    OLD.status IN ('approved', 'active', 'completed') AND (
      (OLD.id, OLD.lineage_id, OLD.name, OLD.version, OLD.total_budget, OLD.currency, OLD.channels, OLD.targeting,
       OLD.created_by, OLD.approved_by, OLD.approved_at)
      IS DISTINCT FROM
      (NEW.id, NEW.lineage_id, NEW.name, NEW.version, NEW.total_budget, NEW.currency, NEW.channels, NEW.targeting,
       NEW.created_by, NEW.approved_by, NEW.approved_at)))
  EXECUTE FUNCTION refuse_change('media_plans_frozen');
CREATE TRIGGER media_plans_kept BEFORE DELETE ON media_plans
  FOR EACH ROW WHEN (OLD.status IN ('approved', 'active', 'completed'))
  EXECUTE FUNCTION refuse_change('media_plans_kept');
CREATE TRIGGER media_plans_touch BEFORE UPDATE ON media_plans
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row();
