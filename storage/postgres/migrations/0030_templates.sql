-- What clients' files look like.

CREATE TABLE templates (
  id UUID PRIMARY KEY,
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  name VARCHAR(255) NOT NULL CONSTRAINT templates_name_given CHECK (btrim(name) <> ''),
  artifact_type VARCHAR(20) NOT NULL CONSTRAINT templates_artifact_type_known
    CHECK (artifact_type IN ('media_plan', 'report', 'brief')),
  file_name VARCHAR(255) NOT NULL DEFAULT '',
  file_sha256 BYTEA CONSTRAINT templates_file_sha256_length CHECK (octet_length(file_sha256) = 32),
  columns JSONB NOT NULL CONSTRAINT templates_columns_array
    CHECK (jsonb_typeof(columns) = 'array' AND jsonb_array_length(columns) BETWEEN 1 AND 200),
  sample JSONB NOT NULL DEFAULT '[]' CONSTRAINT templates_sample_array CHECK (jsonb_typeof(sample) = 'array'),
  aliases JSONB NOT NULL DEFAULT '{}' CONSTRAINT templates_aliases_object CHECK (jsonb_typeof(aliases) = 'object'),
  use_count BIGINT NOT NULL DEFAULT 0 CONSTRAINT templates_use_count_sign CHECK (use_count >= 0),
  last_used_at TIMESTAMPTZ,
  created_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE templates IS 'The shape of a client''s files. The files themselves are not kept.';
COMMENT ON COLUMN templates.file_sha256 IS 'Digest of the file it was made from; empty if it was described.';
COMMENT ON COLUMN templates.columns IS 'Array of {name, type}.';
COMMENT ON COLUMN templates.sample IS 'A few rows as arrays of text, scrubbed of personal data before they came here.';
COMMENT ON COLUMN templates.aliases IS 'Other names under which columns came, as they are compared, to the column''s name.';
COMMENT ON COLUMN templates.use_count IS 'How often files were taken by it. Not an edit: leaves revision alone.';
CREATE INDEX templates_client_idx ON templates (client_id, id);
CREATE UNIQUE INDEX templates_file_key ON templates (client_id, artifact_type, file_sha256) WHERE file_sha256 IS NOT NULL;
CREATE INDEX templates_created_by_idx ON templates (created_by);
CREATE TRIGGER templates_identity_fixed BEFORE UPDATE OF id, client_id ON templates
  FOR EACH ROW WHEN ((OLD.id, OLD.client_id) IS DISTINCT FROM (NEW.id, NEW.client_id))
  EXECUTE FUNCTION refuse_change('templates_identity_fixed');
CREATE TRIGGER templates_touch BEFORE UPDATE ON templates
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row('aliases', 'use_count', 'last_used_at');
CREATE TRIGGER templates_archive BEFORE INSERT OR DELETE OR UPDATE ON templates
  FOR EACH ROW EXECUTE FUNCTION refuse_in_archive();
