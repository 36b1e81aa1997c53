-- Templates and examples are embedded when they change. Their use changes nothing of what they are found by.

CREATE FUNCTION note_found_text() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_TABLE_NAME = 'clients' THEN
    INSERT INTO embedding_notes (kind, item_id)
    SELECT 'template', t.id FROM templates t JOIN clients c ON c.id = t.client_id WHERE NEW.id = ANY (c.path);
    INSERT INTO embedding_notes (kind, item_id)
    SELECT 'example', f.id FROM ai_feedback f
    WHERE f.client_id = NEW.id AND f.user_action IN ('accepted', 'edited') AND NEW.purged_at IS NOT NULL;
  ELSIF TG_TABLE_NAME = 'templates' THEN
    INSERT INTO embedding_notes (kind, item_id) VALUES ('template', CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END);
  ELSIF TG_OP = 'INSERT' THEN
    -- By the statement: feedback comes by the thousand.
    INSERT INTO embedding_notes (kind, item_id)
    SELECT 'example', f.id FROM added f WHERE f.user_action IN ('accepted', 'edited');
  ELSE
    INSERT INTO embedding_notes (kind, item_id) VALUES ('example', NEW.id);
  END IF;
  RETURN NULL;
END $$;
COMMENT ON FUNCTION note_found_text() IS 'Notes templates and examples whose vectors are to be made anew, or taken away.';
CREATE TRIGGER templates_text_made AFTER INSERT OR DELETE ON templates FOR EACH ROW EXECUTE FUNCTION note_found_text();
CREATE TRIGGER templates_text_changed AFTER UPDATE ON templates
  FOR EACH ROW WHEN ((OLD.name, OLD.artifact_type, OLD.columns) IS DISTINCT FROM (NEW.name, NEW.artifact_type, NEW.columns))
  EXECUTE FUNCTION note_found_text();
CREATE TRIGGER ai_feedback_text_made AFTER INSERT ON ai_feedback REFERENCING NEW TABLE AS added
  FOR EACH STATEMENT EXECUTE FUNCTION note_found_text();
CREATE TRIGGER ai_feedback_text_changed AFTER UPDATE ON ai_feedback
  FOR EACH ROW WHEN ((OLD.output_data, OLD.edited_output) IS DISTINCT FROM (NEW.output_data, NEW.edited_output))
  EXECUTE FUNCTION note_found_text();
CREATE TRIGGER clients_found_text_changed AFTER UPDATE ON clients
  FOR EACH ROW WHEN ((OLD.archived_at IS NULL, OLD.purged_at) IS DISTINCT FROM (NEW.archived_at IS NULL, NEW.purged_at))
  EXECUTE FUNCTION note_found_text();
INSERT INTO embedding_notes (kind, item_id, bulk)
SELECT 'example', id, true FROM ai_feedback WHERE user_action IN ('accepted', 'edited');
