-- Who wrote, submitted and decided what about media plans, and what was said about them.

ALTER TABLE media_plans
  ADD COLUMN author_ids UUID[] NOT NULL DEFAULT '{}',
  ADD COLUMN submitted_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  ADD COLUMN override_reason TEXT NOT NULL DEFAULT '',
  ADD CONSTRAINT media_plans_authors_do_not_approve CHECK (NOT approved_by = ANY (author_ids)),
  ADD CONSTRAINT media_plans_submitter_does_not_approve CHECK (approved_by <> submitted_by),
  ADD CONSTRAINT media_plans_override_of_approved CHECK (override_reason = '' OR approved_by IS NOT NULL);
COMMENT ON COLUMN media_plans.channels IS
  'Array of {channel_id, type, platform, format, budget (millionths), start, end, kpis, extra}; the budgets add up to total_budget.';
COMMENT ON COLUMN media_plans.targeting IS '{geo, ages, genders, interests, extra}; only what was given.';
COMMENT ON COLUMN media_plans.author_ids IS 'Everybody who wrote this version, not only who began it.';
COMMENT ON COLUMN media_plans.override_reason IS 'Why it was approved beyond the project''s budget.';
CREATE INDEX media_plans_submitted_by_idx ON media_plans (submitted_by);
CREATE UNIQUE INDEX media_plans_one_open ON media_plans (lineage_id) WHERE status IN ('draft', 'pending_approval');
COMMENT ON INDEX media_plans_one_open IS 'What is being written and what is being decided on is one thing at a time.';
CREATE TRIGGER media_plans_decision_frozen BEFORE UPDATE ON media_plans
  FOR EACH ROW WHEN (
    OLD.status IN ('approved', 'active', 'completed') AND
    (OLD.author_ids, OLD.submitted_by, OLD.override_reason) IS DISTINCT FROM
    (NEW.author_ids, NEW.submitted_by, NEW.override_reason))
  EXECUTE FUNCTION refuse_change('media_plans_decision_frozen');

CREATE TABLE media_plan_decisions (
  id UUID PRIMARY KEY,
  media_plan_id UUID NOT NULL REFERENCES media_plans (id) ON DELETE RESTRICT,
  kind VARCHAR(20) NOT NULL CONSTRAINT media_plan_decisions_kind_known
    CHECK (kind IN ('submit', 'approve', 'reject', 'recall', 'activate', 'complete', 'supersede')),
  decided_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  comment TEXT NOT NULL DEFAULT '',
  override_reason TEXT NOT NULL DEFAULT '',
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT media_plan_decisions_explained CHECK (kind NOT IN ('reject', 'recall') OR btrim(comment) <> '')
);
COMMENT ON TABLE media_plan_decisions IS 'The steps of a version''s life. Rows are only added, and go only with a deleted draft.';
COMMENT ON COLUMN media_plan_decisions.decided_by IS 'Who, when a person; an API key leaves it empty.';
CREATE INDEX media_plan_decisions_plan_idx ON media_plan_decisions (media_plan_id, id);
CREATE INDEX media_plan_decisions_decided_by_idx ON media_plan_decisions (decided_by);
CREATE TRIGGER media_plan_decisions_fixed BEFORE UPDATE ON media_plan_decisions
  FOR EACH ROW EXECUTE FUNCTION refuse_change('media_plan_decisions_fixed');

CREATE TABLE media_plan_comments (
  id UUID PRIMARY KEY,
  media_plan_id UUID NOT NULL REFERENCES media_plans (id) ON DELETE RESTRICT,
  project_id UUID NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
  channel_id UUID,
  author_id UUID NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
  body TEXT NOT NULL CONSTRAINT media_plan_comments_body_given CHECK (btrim(body) <> ''),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE media_plan_comments IS 'What was said about a version, or about one channel of it.';
COMMENT ON COLUMN media_plan_comments.project_id IS 'That of the plan.';
CREATE INDEX media_plan_comments_plan_idx ON media_plan_comments (media_plan_id, id);
CREATE INDEX media_plan_comments_project_idx ON media_plan_comments (project_id);
CREATE INDEX media_plan_comments_author_idx ON media_plan_comments (author_id);
CREATE TRIGGER media_plan_comments_archive BEFORE INSERT ON media_plan_comments
  FOR EACH ROW EXECUTE FUNCTION refuse_in_archive();
