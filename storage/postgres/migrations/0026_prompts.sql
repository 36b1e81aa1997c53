-- Prompts by name, agency-wide or a client's own; where their labels point and how that came about; experiments.

CREATE TABLE prompt_lineages (
  id UUID PRIMARY KEY,
  client_id UUID REFERENCES clients (id) ON DELETE RESTRICT,
  name VARCHAR(255) NOT NULL CONSTRAINT prompt_lineages_name_given CHECK (btrim(name) <> ''),
  category VARCHAR(50) NOT NULL CONSTRAINT prompt_lineages_category_known
    CHECK (category IN ('migration', 'media_plan', 'report', 'brief')),
  latest_version INT NOT NULL DEFAULT 0 CONSTRAINT prompt_lineages_latest_version_sign CHECK (latest_version >= 0),
  created_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT prompt_lineages_name_key UNIQUE NULLS NOT DISTINCT (client_id, name),
  CONSTRAINT prompt_lineages_whole_key UNIQUE (id, name, category)
);
COMMENT ON TABLE prompt_lineages IS
  'A prompt through all its versions. Whoever changes anything of it locks this row first.';
COMMENT ON COLUMN prompt_lineages.client_id IS
  'Whose own it is; empty for the agency''s. A client''s own takes the place of the agency''s of the same name.';
COMMENT ON COLUMN prompt_lineages.latest_version IS 'The last number given out.';
CREATE INDEX prompt_lineages_category_idx ON prompt_lineages (category);
CREATE INDEX prompt_lineages_created_by_idx ON prompt_lineages (created_by);

INSERT INTO prompt_lineages (id, name, category, latest_version, created_by, created_at)
SELECT DISTINCT ON (name) id, name, category, max(version) OVER (PARTITION BY name), created_by, created_at
FROM ai_prompts ORDER BY name, version DESC;

ALTER TABLE ai_prompts
  ADD COLUMN lineage_id UUID,
  ADD COLUMN variables JSONB NOT NULL DEFAULT '[]' CONSTRAINT ai_prompts_variables_array
    CHECK (jsonb_typeof(variables) = 'array'),
  ADD COLUMN deprecation_reason TEXT NOT NULL DEFAULT '';
DROP TRIGGER ai_prompts_frozen ON ai_prompts;
UPDATE ai_prompts v SET lineage_id = l.id, category = l.category FROM prompt_lineages l WHERE l.name = v.name;
ALTER TABLE ai_prompts
  ALTER COLUMN lineage_id SET NOT NULL,
  DROP CONSTRAINT ai_prompts_version_key,
  ADD CONSTRAINT ai_prompts_version_key UNIQUE (lineage_id, version),
  ADD CONSTRAINT ai_prompts_lineage_key UNIQUE (id, lineage_id),
  ADD CONSTRAINT ai_prompts_lineage_fkey FOREIGN KEY (lineage_id, name, category)
    REFERENCES prompt_lineages (id, name, category) ON UPDATE CASCADE ON DELETE RESTRICT;
COMMENT ON COLUMN ai_prompts.variables IS
  'Array of {name, type, description}: what the text names as {{name}}, no more and no less.';
COMMENT ON COLUMN ai_prompts.metadata IS '{model, temperature, max_tokens, top_p, stop}, and whatever else was given.';

CREATE FUNCTION refuse_prompt_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM prompt_lineages l JOIN clients cl ON cl.id = l.client_id
             WHERE l.id = OLD.lineage_id AND cl.purged_at IS NOT NULL) THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION 'refused by ai_prompts_frozen'
    USING ERRCODE = 'check_violation', CONSTRAINT = 'ai_prompts_frozen', TABLE = TG_TABLE_NAME;
END $$;
COMMENT ON FUNCTION refuse_prompt_change() IS
  'Refuses a change of a version of a prompt, unless it is the eraser of a purged client who makes it.';
CREATE TRIGGER ai_prompts_frozen BEFORE UPDATE ON ai_prompts
  FOR EACH ROW WHEN (
    (OLD.id, OLD.lineage_id, OLD.name, OLD.category, OLD.prompt_template, OLD.variables, OLD.version, OLD.metadata,
      OLD.change_note, OLD.created_by) IS DISTINCT FROM
    (NEW.id, NEW.lineage_id, NEW.name, NEW.category, NEW.prompt_template, NEW.variables, NEW.version, NEW.metadata,
      NEW.change_note, NEW.created_by))
  EXECUTE FUNCTION refuse_prompt_change();

CREATE TABLE prompt_labels (
  id UUID PRIMARY KEY,
  lineage_id UUID NOT NULL REFERENCES prompt_lineages (id) ON DELETE RESTRICT,
  name VARCHAR(50) NOT NULL CONSTRAINT prompt_labels_name_form CHECK (name ~ '^[a-z][a-z0-9_-]{0,49}$'),
  version_id UUID NOT NULL,
  move_count INT NOT NULL DEFAULT 1 CONSTRAINT prompt_labels_move_count_positive CHECK (move_count > 0),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT prompt_labels_name_key UNIQUE (lineage_id, name),
  CONSTRAINT prompt_labels_version_fkey FOREIGN KEY (version_id, lineage_id)
    REFERENCES ai_prompts (id, lineage_id) ON DELETE RESTRICT
);
COMMENT ON TABLE prompt_labels IS 'Which version of a prompt is served under a name, such as production.';
COMMENT ON COLUMN prompt_labels.move_count IS 'How many rows of prompt_label_moves tell of it.';
CREATE INDEX prompt_labels_version_idx ON prompt_labels (version_id);

CREATE TABLE prompt_experiments (
  id UUID PRIMARY KEY,
  lineage_id UUID NOT NULL REFERENCES prompt_lineages (id) ON DELETE RESTRICT,
  label VARCHAR(50) NOT NULL,
  control_version_id UUID NOT NULL,
  hypothesis TEXT NOT NULL DEFAULT '',
  min_sample_count INT NOT NULL CONSTRAINT prompt_experiments_min_sample_count_positive CHECK (min_sample_count > 0),
  max_acceptance_loss DOUBLE PRECISION NOT NULL CONSTRAINT prompt_experiments_max_acceptance_loss_share
    CHECK (max_acceptance_loss BETWEEN 0 AND 1),
  status VARCHAR(20) NOT NULL DEFAULT 'running' CONSTRAINT prompt_experiments_status_known
    CHECK (status IN ('running', 'stopped')),
  started_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  started_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  stopped_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  stopped_at TIMESTAMPTZ,
  stop_reason TEXT NOT NULL DEFAULT '',
  promoted_version_id UUID,
  promoted_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  promoted_at TIMESTAMPTZ,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT prompt_experiments_label_fkey FOREIGN KEY (lineage_id, label)
    REFERENCES prompt_labels (lineage_id, name) ON DELETE RESTRICT,
  CONSTRAINT prompt_experiments_stopped_whole CHECK ((status = 'stopped') = (stopped_at IS NOT NULL)),
  CONSTRAINT prompt_experiments_promoted_whole CHECK (num_nulls(promoted_version_id, promoted_by, promoted_at) IN (0, 3)),
  CONSTRAINT prompt_experiments_promoted_stopped CHECK (promoted_at IS NULL OR status = 'stopped'),
  CONSTRAINT prompt_experiments_starter_does_not_approve CHECK (promoted_by <> started_by)
);
COMMENT ON TABLE prompt_experiments IS 'Versions of a prompt that are served side by side under one label.';
COMMENT ON COLUMN prompt_experiments.control_version_id IS
  'What the label points to as long as it runs: a move of the label ends it.';
COMMENT ON COLUMN prompt_experiments.max_acceptance_loss IS
  'By how much a version may turn out to be accepted less often than control and still be promoted, as a share of 1.';
CREATE UNIQUE INDEX prompt_experiments_one_running ON prompt_experiments (lineage_id, label) WHERE status = 'running';
CREATE INDEX prompt_experiments_label_idx ON prompt_experiments (lineage_id, label);
CREATE INDEX prompt_experiments_started_by_idx ON prompt_experiments (started_by);
CREATE INDEX prompt_experiments_stopped_by_idx ON prompt_experiments (stopped_by);
CREATE INDEX prompt_experiments_promoted_by_idx ON prompt_experiments (promoted_by);
CREATE TRIGGER prompt_experiments_touch BEFORE UPDATE ON prompt_experiments
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row();

CREATE TABLE prompt_experiment_arms (
  experiment_id UUID NOT NULL REFERENCES prompt_experiments (id) ON DELETE RESTRICT,
  version_id UUID NOT NULL REFERENCES ai_prompts (id) ON DELETE RESTRICT,
  position INT NOT NULL CONSTRAINT prompt_experiment_arms_position_sign CHECK (position >= 0),
  weight INT NOT NULL CONSTRAINT prompt_experiment_arms_weight_bounds CHECK (weight BETWEEN 1 AND 10000),
  PRIMARY KEY (experiment_id, version_id),
  CONSTRAINT prompt_experiment_arms_position_key UNIQUE (experiment_id, position)
);
COMMENT ON TABLE prompt_experiment_arms IS
  'The versions of an experiment. Weights and their order never change: a key would get another version.';
CREATE INDEX prompt_experiment_arms_version_idx ON prompt_experiment_arms (version_id);
CREATE TRIGGER prompt_experiment_arms_fixed BEFORE UPDATE ON prompt_experiment_arms
  FOR EACH ROW EXECUTE FUNCTION refuse_change('prompt_experiment_arms_fixed');

ALTER TABLE prompt_experiments
  ADD CONSTRAINT prompt_experiments_control_fkey FOREIGN KEY (id, control_version_id)
    REFERENCES prompt_experiment_arms (experiment_id, version_id) ON DELETE RESTRICT DEFERRABLE INITIALLY DEFERRED,
  ADD CONSTRAINT prompt_experiments_promoted_fkey FOREIGN KEY (id, promoted_version_id)
    REFERENCES prompt_experiment_arms (experiment_id, version_id) ON DELETE RESTRICT;

CREATE TABLE prompt_label_moves (
  id UUID PRIMARY KEY,
  label_id UUID NOT NULL REFERENCES prompt_labels (id) ON DELETE RESTRICT,
  number INT NOT NULL CONSTRAINT prompt_label_moves_number_positive CHECK (number > 0),
  previous INT GENERATED ALWAYS AS (NULLIF(number - 1, 0)) STORED,
  kind VARCHAR(20) NOT NULL CONSTRAINT prompt_label_moves_kind_known CHECK (kind IN ('move', 'rollback', 'promotion')),
  from_version_id UUID REFERENCES ai_prompts (id) ON DELETE RESTRICT,
  to_version_id UUID NOT NULL REFERENCES ai_prompts (id) ON DELETE RESTRICT,
  undoes INT,
  experiment_id UUID REFERENCES prompt_experiments (id) ON DELETE RESTRICT,
  reason TEXT NOT NULL,
  moved_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT prompt_label_moves_number_key UNIQUE (label_id, number),
  CONSTRAINT prompt_label_moves_place_key UNIQUE (label_id, number, to_version_id),
  CONSTRAINT prompt_label_moves_unbroken FOREIGN KEY (label_id, previous, from_version_id)
    REFERENCES prompt_label_moves (label_id, number, to_version_id) ON DELETE RESTRICT,
  CONSTRAINT prompt_label_moves_undone_once UNIQUE (label_id, undoes),
  CONSTRAINT prompt_label_moves_undone_fkey FOREIGN KEY (label_id, undoes)
    REFERENCES prompt_label_moves (label_id, number) ON DELETE RESTRICT,
  CONSTRAINT prompt_label_moves_first CHECK ((number = 1) = (from_version_id IS NULL)),
  CONSTRAINT prompt_label_moves_rollback_whole CHECK ((kind = 'rollback') = (undoes IS NOT NULL)),
  CONSTRAINT prompt_label_moves_promotion_whole CHECK ((kind = 'promotion') = (experiment_id IS NOT NULL))
);
COMMENT ON TABLE prompt_label_moves IS
  'Every move of a label, numbered without gaps: each begins where the one before ended. Rows are only added.';
COMMENT ON COLUMN prompt_label_moves.undoes IS 'Number of the move that a rollback takes back.';
COMMENT ON COLUMN prompt_label_moves.moved_by IS 'Who, if a person stands behind it.';
CREATE INDEX prompt_label_moves_from_idx ON prompt_label_moves (from_version_id);
CREATE INDEX prompt_label_moves_to_idx ON prompt_label_moves (to_version_id);
CREATE INDEX prompt_label_moves_experiment_idx ON prompt_label_moves (experiment_id);
CREATE INDEX prompt_label_moves_moved_by_idx ON prompt_label_moves (moved_by);
-- A purge takes the words, never what happened.
CREATE TRIGGER prompt_label_moves_fixed BEFORE UPDATE ON prompt_label_moves
  FOR EACH ROW WHEN (
    (OLD.id, OLD.label_id, OLD.number, OLD.kind, OLD.from_version_id, OLD.to_version_id, OLD.undoes, OLD.experiment_id,
      OLD.moved_by, OLD.created_at) IS DISTINCT FROM
    (NEW.id, NEW.label_id, NEW.number, NEW.kind, NEW.from_version_id, NEW.to_version_id, NEW.undoes, NEW.experiment_id,
      NEW.moved_by, NEW.created_at)
    OR (NEW.reason <> '' AND NEW.reason <> OLD.reason))
  EXECUTE FUNCTION refuse_change('prompt_label_moves_fixed');
CREATE TRIGGER prompt_label_moves_kept BEFORE DELETE ON prompt_label_moves
  FOR EACH ROW EXECUTE FUNCTION refuse_change('prompt_label_moves_kept');

ALTER TABLE prompt_labels
  ADD CONSTRAINT prompt_labels_moved_fkey FOREIGN KEY (id, move_count, version_id)
    REFERENCES prompt_label_moves (label_id, number, to_version_id) ON DELETE RESTRICT DEFERRABLE INITIALLY DEFERRED;
COMMENT ON CONSTRAINT prompt_labels_moved_fkey ON prompt_labels IS 'No label is anywhere without a move that says how it came there.';

CREATE FUNCTION refuse_prompt_in_archive() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF is_client_archived((SELECT client_id FROM prompt_lineages WHERE id = NEW.lineage_id)) THEN
    RAISE EXCEPTION 'the client is archived'
      USING ERRCODE = 'check_violation', CONSTRAINT = 'client_archived', TABLE = TG_TABLE_NAME;
  END IF;
  RETURN NEW;
END $$;
COMMENT ON FUNCTION refuse_prompt_in_archive() IS 'As refuse_in_archive, for what belongs to a client''s own prompt.';
CREATE TRIGGER prompt_lineages_archive BEFORE INSERT OR UPDATE OF latest_version ON prompt_lineages
  FOR EACH ROW EXECUTE FUNCTION refuse_in_archive();
CREATE TRIGGER ai_prompts_archive BEFORE INSERT OR UPDATE OF status ON ai_prompts
  FOR EACH ROW EXECUTE FUNCTION refuse_prompt_in_archive();
CREATE TRIGGER prompt_labels_archive BEFORE INSERT OR UPDATE OF version_id ON prompt_labels
  FOR EACH ROW EXECUTE FUNCTION refuse_prompt_in_archive();
CREATE TRIGGER prompt_experiments_archive BEFORE INSERT OR UPDATE OF status ON prompt_experiments
  FOR EACH ROW EXECUTE FUNCTION refuse_prompt_in_archive();

ALTER TABLE ai_feedback
  ADD COLUMN experiment_id UUID,
  ADD CONSTRAINT ai_feedback_experiment_fkey FOREIGN KEY (experiment_id, prompt_id)
    REFERENCES prompt_experiment_arms (experiment_id, version_id) ON DELETE RESTRICT;
COMMENT ON COLUMN ai_feedback.experiment_id IS
  'The experiment that chose the version, if one did. The version is then its arm.';
CREATE INDEX ai_feedback_experiment_idx ON ai_feedback (experiment_id, prompt_id) WHERE experiment_id IS NOT NULL;
