-- Prompts, what people thought of their answers, and reports.

CREATE TABLE ai_prompts (
  id UUID PRIMARY KEY,
  name VARCHAR(255) NOT NULL CONSTRAINT ai_prompts_name_given CHECK (btrim(name) <> ''),
  category VARCHAR(50) NOT NULL CONSTRAINT ai_prompts_category_known
    CHECK (category IN ('migration', 'media_plan', 'report', 'brief')),
  prompt_template TEXT NOT NULL,
  version INT NOT NULL DEFAULT 1 CONSTRAINT ai_prompts_version_positive CHECK (version > 0),
  status VARCHAR(20) NOT NULL DEFAULT 'active' CONSTRAINT ai_prompts_status_known
    CHECK (status IN ('active', 'deprecated')),
  metadata JSONB NOT NULL DEFAULT '{}' CONSTRAINT ai_prompts_metadata_object CHECK (jsonb_typeof(metadata) = 'object'),
  change_note TEXT NOT NULL DEFAULT '',
  created_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT ai_prompts_version_key UNIQUE (name, version)
);
COMMENT ON TABLE ai_prompts IS 'One version of a prompt. Text and parameters of a version never change; status may.';
COMMENT ON COLUMN ai_prompts.metadata IS '{model, temperature, max_tokens, ...}.';
CREATE INDEX ai_prompts_category_idx ON ai_prompts (category, name);
CREATE INDEX ai_prompts_created_by_idx ON ai_prompts (created_by);
CREATE TRIGGER ai_prompts_frozen BEFORE UPDATE ON ai_prompts
  FOR EACH ROW WHEN (
    (OLD.id, OLD.name, OLD.category, OLD.prompt_template, OLD.version, OLD.metadata) IS DISTINCT FROM
    (NEW.id, NEW.name, NEW.category, NEW.prompt_template, NEW.version, NEW.metadata))
  EXECUTE FUNCTION refuse_change('ai_prompts_frozen');
CREATE TRIGGER ai_prompts_touch BEFORE UPDATE ON ai_prompts
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row();

CREATE TABLE ai_feedback (
  id UUID PRIMARY KEY,
  prompt_id UUID NOT NULL REFERENCES ai_prompts (id) ON DELETE RESTRICT,
  user_id UUID NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  project_id UUID,
  artifact_type VARCHAR(20) CONSTRAINT ai_feedback_artifact_type_known
    CHECK (artifact_type IN ('media_plan', 'report', 'brief')),
  artifact_id UUID,
  input_data JSONB,
  output_data JSONB,
  edited_output JSONB,
  user_action VARCHAR(50) NOT NULL CONSTRAINT ai_feedback_action_known
    CHECK (user_action IN ('accepted', 'edited', 'rejected')),
  edit_distance INT CONSTRAINT ai_feedback_edit_distance_percent CHECK (edit_distance BETWEEN 0 AND 100),
  feedback_text TEXT NOT NULL DEFAULT '',
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT ai_feedback_project_fkey FOREIGN KEY (project_id, client_id)
    REFERENCES projects (id, client_id) ON DELETE RESTRICT,
  CONSTRAINT ai_feedback_artifact_whole CHECK (num_nulls(artifact_type, artifact_id) <> 1),
  CONSTRAINT ai_feedback_accepted_unedited CHECK (user_action <> 'accepted' OR COALESCE(edit_distance, 0) = 0)
);
COMMENT ON TABLE ai_feedback IS 'What a person did with one answer of a prompt.';
COMMENT ON COLUMN ai_feedback.edit_distance IS 'How much of the answer was changed, in per cent.';
COMMENT ON COLUMN ai_feedback.artifact_id IS 'The report, media plan or brief the answer went into.';
CREATE INDEX ai_feedback_prompt_idx ON ai_feedback (prompt_id, user_action);
CREATE INDEX ai_feedback_user_idx ON ai_feedback (user_id);
CREATE INDEX ai_feedback_client_idx ON ai_feedback (client_id, created_at);
CREATE INDEX ai_feedback_project_idx ON ai_feedback (project_id) WHERE project_id IS NOT NULL;

CREATE TABLE reports (
  id UUID PRIMARY KEY,
  project_id UUID NOT NULL REFERENCES projects (id) ON DELETE RESTRICT,
  type VARCHAR(50) NOT NULL CONSTRAINT reports_type_known
    CHECK (type IN ('performance', 'analytical_notes', 'channel_comparison')),
  period_start DATE NOT NULL CONSTRAINT reports_period_start_finite CHECK (isfinite(period_start)),
  period_end DATE NOT NULL CONSTRAINT reports_period_end_finite CHECK (isfinite(period_end)),
  status VARCHAR(20) NOT NULL DEFAULT 'queued' CONSTRAINT reports_status_known
    CHECK (status IN ('queued', 'running', 'ready', 'failed', 'cancelled')),
  data JSONB CONSTRAINT reports_data_object CHECK (jsonb_typeof(data) = 'object'),
  generated_by VARCHAR(20) NOT NULL DEFAULT 'ai' CONSTRAINT reports_generated_by_known
    CHECK (generated_by IN ('ai', 'user')),
  generated_at TIMESTAMPTZ,
  format VARCHAR(10) NOT NULL DEFAULT 'json' CONSTRAINT reports_format_known CHECK (format IN ('json', 'pdf', 'xlsx')),
  file_bucket VARCHAR(63),
  file_key VARCHAR(1024),
  file_size BIGINT CONSTRAINT reports_file_size_sign CHECK (file_size >= 0),
  file_sha256 BYTEA CONSTRAINT reports_file_sha256_length CHECK (octet_length(file_sha256) = 32),
  statistics_version BIGINT,
  prompt_id UUID REFERENCES ai_prompts (id) ON DELETE RESTRICT,
  model VARCHAR(100) NOT NULL DEFAULT '',
  replaces_id UUID REFERENCES reports (id) ON DELETE RESTRICT,
  error TEXT NOT NULL DEFAULT '',
  created_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT reports_period_order CHECK (period_end >= period_start),
  CONSTRAINT reports_file_whole CHECK (num_nulls(file_bucket, file_key, file_size, file_sha256) IN (0, 4)),
  CONSTRAINT reports_ready_whole CHECK (
    status <> 'ready' OR (data IS NOT NULL AND generated_at IS NOT NULL AND (format = 'json' OR file_key IS NOT NULL)))
);
COMMENT ON TABLE reports IS 'A report over a period of a project: a snapshot, which later restatements do not change.';
COMMENT ON COLUMN reports.file_key IS 'Where the file is in object storage. Callers get short-lived links, never a stored one.';
COMMENT ON COLUMN reports.statistics_version IS 'Version of the statistics the figures were taken from.';
COMMENT ON COLUMN reports.replaces_id IS 'The report this one regenerates.';
CREATE INDEX reports_project_idx ON reports (project_id, period_start, period_end);
CREATE INDEX reports_prompt_idx ON reports (prompt_id);
CREATE INDEX reports_replaces_idx ON reports (replaces_id);
CREATE INDEX reports_created_by_idx ON reports (created_by);
CREATE TRIGGER reports_frozen BEFORE UPDATE ON reports
  FOR EACH ROW WHEN (OLD.status = 'ready' AND OLD.* IS DISTINCT FROM NEW.*)
  EXECUTE FUNCTION refuse_change('reports_frozen');
CREATE TRIGGER reports_touch BEFORE UPDATE ON reports
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row();
