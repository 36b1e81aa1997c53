-- What is searched by meaning: which texts have changed, and which vectors stand for what.

CREATE TABLE embedding_notes (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind VARCHAR(20) NOT NULL CONSTRAINT embedding_notes_kind_shape CHECK (kind ~ '^[a-z][a-z_]*$'),
  item_id UUID NOT NULL,
  bulk BOOLEAN NOT NULL DEFAULT false,
  noted_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE embedding_notes IS
  'Things whose text or fields may have changed, in the transaction of the change. Rows are only added, so that nobody waits '
  'for anybody, and go once every collection of the kind has the thing as it is.';
COMMENT ON COLUMN embedding_notes.bulk IS 'Noted together with everything of its kind; what people change goes before.';
CREATE INDEX embedding_notes_order_idx ON embedding_notes (kind, bulk, id);

CREATE TABLE embedding_collections (
  name VARCHAR(150) PRIMARY KEY,
  kind VARCHAR(20) NOT NULL,
  model VARCHAR(100) NOT NULL,
  dimension INT NOT NULL CONSTRAINT embedding_collections_dimension_positive CHECK (dimension > 0),
  state VARCHAR(10) NOT NULL CONSTRAINT embedding_collections_state_known
    CHECK (state IN ('filling', 'serving', 'retired')),
  fill_until BIGINT NOT NULL DEFAULT 0,
  created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  served_at TIMESTAMPTZ,
  retired_at TIMESTAMPTZ,
  checked_at TIMESTAMPTZ
);
COMMENT ON TABLE embedding_collections IS
  'Collections in Milvus. Searches ask the one that serves; one that is filling takes its place once it has everything.';
COMMENT ON COLUMN embedding_collections.fill_until IS 'It has everything once no note in bulk up to this one is left.';
COMMENT ON COLUMN embedding_collections.checked_at IS 'When it was last compared with what should be in it.';
CREATE UNIQUE INDEX embedding_collections_one_serving ON embedding_collections (kind) WHERE state = 'serving';
CREATE UNIQUE INDEX embedding_collections_one_filling ON embedding_collections (kind) WHERE state = 'filling';

CREATE TABLE embedding_vectors (
  collection VARCHAR(150) NOT NULL REFERENCES embedding_collections (name) ON DELETE RESTRICT,
  item_id UUID NOT NULL,
  client_id UUID NOT NULL,
  content_hash VARCHAR(64) NOT NULL,
  fields_hash VARCHAR(64) NOT NULL,
  error TEXT NOT NULL DEFAULT '',
  written_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (collection, item_id)
);
COMMENT ON TABLE embedding_vectors IS 'What each collection holds: of which text and which fields.';
COMMENT ON COLUMN embedding_vectors.error IS 'Why there is no vector: the model will not take this text.';
CREATE INDEX embedding_vectors_client_idx ON embedding_vectors (client_id);

-- Here and not in the services: whoever changes a project would have to remember it.
CREATE FUNCTION note_project_text() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_TABLE_NAME = 'projects' THEN
    INSERT INTO embedding_notes (kind, item_id) VALUES ('project', NEW.id);
  ELSIF TG_TABLE_NAME = 'media_plans' THEN
    INSERT INTO embedding_notes (kind, item_id)
    VALUES ('project', CASE TG_OP WHEN 'DELETE' THEN OLD.project_id ELSE NEW.project_id END);
  ELSE
    INSERT INTO embedding_notes (kind, item_id)
    SELECT 'project', p.id FROM projects p JOIN clients c ON c.id = p.client_id WHERE NEW.id = ANY (c.path);
  END IF;
  RETURN NULL;
END $$;
COMMENT ON FUNCTION note_project_text() IS 'Notes projects whose vectors are to be made anew, or taken away.';
CREATE TRIGGER projects_text_made AFTER INSERT ON projects FOR EACH ROW EXECUTE FUNCTION note_project_text();
CREATE TRIGGER projects_text_changed AFTER UPDATE ON projects
  FOR EACH ROW WHEN (
    (OLD.name, OLD.description, OLD.status, OLD.budget_total, OLD.budget_currency, OLD.brief, OLD.performance_rating)
    IS DISTINCT FROM
    (NEW.name, NEW.description, NEW.status, NEW.budget_total, NEW.budget_currency, NEW.brief, NEW.performance_rating))
  EXECUTE FUNCTION note_project_text();
CREATE TRIGGER media_plans_text_made AFTER INSERT OR DELETE ON media_plans
  FOR EACH ROW EXECUTE FUNCTION note_project_text();
CREATE TRIGGER media_plans_text_changed AFTER UPDATE ON media_plans
  FOR EACH ROW WHEN (
    (OLD.name, OLD.channels, OLD.targeting) IS DISTINCT FROM (NEW.name, NEW.channels, NEW.targeting))
  EXECUTE FUNCTION note_project_text();
CREATE TRIGGER clients_text_changed AFTER UPDATE ON clients
  FOR EACH ROW WHEN (
    (OLD.industry, OLD.archived_at IS NULL, OLD.purged_at) IS DISTINCT FROM
    (NEW.industry, NEW.archived_at IS NULL, NEW.purged_at))
  EXECUTE FUNCTION note_project_text();
