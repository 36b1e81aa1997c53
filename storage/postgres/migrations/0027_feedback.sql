-- Feedback under a caller's key, with texts as texts, whoever recorded it, and what stands for people who are gone.

ALTER TABLE ai_feedback
  ADD COLUMN key VARCHAR(100),
  ADD COLUMN content_hash BYTEA,
  ADD COLUMN label VARCHAR(50) NOT NULL DEFAULT '',
  ADD COLUMN user_pseudonym UUID,
  ADD COLUMN api_key_id UUID,
  ADD COLUMN acted_at TIMESTAMPTZ,
  ALTER COLUMN user_id DROP NOT NULL,
  ALTER COLUMN input_data TYPE TEXT USING COALESCE(input_data #>> '{}', input_data::text),
  ALTER COLUMN output_data TYPE TEXT USING COALESCE(output_data #>> '{}', output_data::text),
  ALTER COLUMN edited_output TYPE TEXT USING COALESCE(edited_output #>> '{}', edited_output::text),
  ALTER COLUMN edit_distance TYPE NUMERIC(5, 2);
UPDATE ai_feedback SET key = id::text, acted_at = created_at,
  edited_output = CASE WHEN user_action = 'edited' THEN edited_output END,
  edit_distance = CASE user_action WHEN 'accepted' THEN 0 WHEN 'edited' THEN NULLIF(edit_distance, 0) END;
ALTER TABLE ai_feedback
  ALTER COLUMN key SET NOT NULL,
  ALTER COLUMN acted_at SET NOT NULL,
  ALTER COLUMN acted_at SET DEFAULT now(),
  DROP CONSTRAINT ai_feedback_accepted_unedited,
  ADD CONSTRAINT ai_feedback_edit_distance_fits CHECK (CASE user_action
    WHEN 'accepted' THEN COALESCE(edit_distance = 0, false)
    WHEN 'edited' THEN edit_distance IS NULL OR edit_distance > 0
    ELSE edit_distance IS NULL END),
  ADD CONSTRAINT ai_feedback_edited_output_fits CHECK (user_action = 'edited' OR edited_output IS NULL),
  ADD CONSTRAINT ai_feedback_person_whole CHECK (num_nonnulls(user_id, user_pseudonym) <= 1),
  ADD CONSTRAINT ai_feedback_key UNIQUE (client_id, key);
COMMENT ON COLUMN ai_feedback.prompt_id IS 'The version of the prompt that answered.';
COMMENT ON COLUMN ai_feedback.key IS 'What its caller knows it by: a repeat is stored once.';
COMMENT ON COLUMN ai_feedback.content_hash IS 'Tells a repeat from another record under the same key; goes with the texts.';
COMMENT ON COLUMN ai_feedback.user_id IS 'Who decided, if it was said and the person is not deleted.';
COMMENT ON COLUMN ai_feedback.user_pseudonym IS
  'Stands for a person who is deleted: drawn by lot for each client, so it leads back to nobody.';
COMMENT ON COLUMN ai_feedback.api_key_id IS
  'Which key recorded it, if no person did. No foreign key: what it says stands by itself.';
COMMENT ON COLUMN ai_feedback.edit_distance IS
  'How much of the answer was changed, in per cent: 0 if accepted, empty if rejected or not known.';
COMMENT ON COLUMN ai_feedback.artifact_id IS
  'The report, media plan or brief the answer went into. No foreign key: drafts come and go.';
COMMENT ON COLUMN ai_feedback.acted_at IS 'When the person decided, which may be before it was recorded.';
DROP INDEX ai_feedback_prompt_idx;
CREATE INDEX ai_feedback_prompt_idx ON ai_feedback (prompt_id, acted_at);
DROP INDEX ai_feedback_client_idx;
CREATE INDEX ai_feedback_client_idx ON ai_feedback (client_id, acted_at);
CREATE INDEX ai_feedback_client_page_idx ON ai_feedback (client_id, id);
DROP INDEX ai_feedback_user_idx;
CREATE INDEX ai_feedback_user_idx ON ai_feedback (user_id) WHERE user_id IS NOT NULL;
-- Erasing takes words and people, never what happened.
CREATE TRIGGER ai_feedback_frozen BEFORE UPDATE ON ai_feedback
  FOR EACH ROW WHEN (
    (OLD.id, OLD.prompt_id, OLD.client_id, OLD.project_id, OLD.artifact_type, OLD.artifact_id, OLD.user_action,
      OLD.edit_distance, OLD.label, OLD.experiment_id, OLD.api_key_id, OLD.acted_at, OLD.created_at) IS DISTINCT FROM
    (NEW.id, NEW.prompt_id, NEW.client_id, NEW.project_id, NEW.artifact_type, NEW.artifact_id, NEW.user_action,
      NEW.edit_distance, NEW.label, NEW.experiment_id, NEW.api_key_id, NEW.acted_at, NEW.created_at))
  EXECUTE FUNCTION refuse_change('ai_feedback_frozen');
