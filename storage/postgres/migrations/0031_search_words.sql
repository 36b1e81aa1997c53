-- The words by which projects and templates are found, beside what they mean.

CREATE TABLE search_words (
  kind VARCHAR(20) NOT NULL CONSTRAINT search_words_kind_known CHECK (kind IN ('project', 'template')),
  item_id UUID NOT NULL,
  words TSVECTOR NOT NULL,
  PRIMARY KEY (kind, item_id)
);
COMMENT ON TABLE search_words IS 'Stemmed words, Russian and English, of projects and templates. Written by triggers at the commit of each change.';
COMMENT ON COLUMN search_words.words IS
  'Labels say where a word stands: A name, B description or columns, C brief or sample, D media plans and industry.';
-- Without a list of what is pending, through which every search would read.
CREATE INDEX search_words_project_idx ON search_words USING gin (words) WITH (fastupdate = off) WHERE kind = 'project';
CREATE INDEX search_words_template_idx ON search_words USING gin (words) WITH (fastupdate = off) WHERE kind = 'template';

CREATE FUNCTION spoken(candidate TEXT) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN left(regexp_replace(candidate, '[_/|\\]+', ' ', 'g'), 100000);
COMMENT ON FUNCTION spoken(TEXT) IS 'A text whose words are apart, short enough to be taken as words.';

CREATE FUNCTION project_words(candidate UUID) RETURNS tsvector LANGUAGE sql STABLE AS $$
  SELECT setweight(to_tsvector('russian', spoken(p.name)), 'A')
    || setweight(to_tsvector('russian', spoken(p.description)), 'B')
    || setweight(to_tsvector('russian', p.brief), 'C')
    || setweight(to_tsvector('russian', spoken(concat_ws(' ', cl.industry, plans.named, plans.channels))), 'D')
    || setweight(to_tsvector('russian', plans.targeting), 'D')
  FROM projects p JOIN clients cl ON cl.id = p.client_id, LATERAL (
    SELECT string_agg(m.name, ' ') AS named, COALESCE(jsonb_agg(m.targeting), '[]') AS targeting,
      string_agg((SELECT string_agg(concat_ws(' ', c->>'type', c->>'platform', c->>'format'), ' ')
        FROM jsonb_array_elements(m.channels) AS c), ' ') AS channels
    FROM (SELECT DISTINCT ON (lineage_id) * FROM media_plans
      WHERE project_id = p.id AND NOT imported ORDER BY lineage_id, version DESC) m) plans
  WHERE p.id = candidate AND cl.purged_at IS NULL $$;
COMMENT ON FUNCTION project_words(UUID) IS 'The words of a project: its name, description and brief, and the latest version of its plans.';

CREATE FUNCTION template_words(candidate UUID) RETURNS tsvector LANGUAGE sql STABLE AS $$
  SELECT setweight(to_tsvector('russian', spoken(concat_ws(' ', t.name, t.file_name, t.artifact_type))), 'A')
    || setweight(to_tsvector('russian', spoken((SELECT string_agg(c->>'name', ' ') FROM jsonb_array_elements(t.columns) AS c))), 'B')
    || setweight(to_tsvector('russian', t.sample), 'C')
  FROM templates t WHERE t.id = candidate $$;
COMMENT ON FUNCTION template_words(UUID) IS 'The words of a template: its name, columns and sample.';

CREATE FUNCTION keep_search_words(of_kind TEXT, of_item UUID) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  found TSVECTOR;
BEGIN
  -- Of two changes at once the second must read what the first has written.
  PERFORM pg_advisory_xact_lock(hashtextextended(of_kind || of_item::text, 0));
  found := CASE of_kind WHEN 'project' THEN project_words(of_item) ELSE template_words(of_item) END;
  IF found IS NULL THEN
    DELETE FROM search_words WHERE kind = of_kind AND item_id = of_item;
  ELSE
    INSERT INTO search_words (kind, item_id, words) VALUES (of_kind, of_item, found)
    ON CONFLICT (kind, item_id) DO UPDATE SET words = EXCLUDED.words WHERE search_words.words <> EXCLUDED.words;
  END IF;
END $$;
COMMENT ON FUNCTION keep_search_words(TEXT, UUID) IS 'Writes the words of a thing as it is now; none if it is gone.';

-- Deferred to the commit: whatever a transaction locks before, these locks come last, so nobody waits in a circle.
CREATE FUNCTION change_search_words() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_TABLE_NAME = 'projects' THEN
    PERFORM keep_search_words('project', NEW.id);
  ELSIF TG_TABLE_NAME = 'media_plans' THEN
    PERFORM keep_search_words('project', CASE TG_OP WHEN 'DELETE' THEN OLD.project_id ELSE NEW.project_id END);
  ELSIF TG_TABLE_NAME = 'clients' THEN
    PERFORM keep_search_words('project', p.id) FROM projects p WHERE p.client_id = NEW.id;
  ELSE
    PERFORM keep_search_words('template', CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END);
  END IF;
  RETURN NULL;
END $$;
COMMENT ON FUNCTION change_search_words() IS 'Keeps words as the texts are that they come from.';
CREATE CONSTRAINT TRIGGER projects_words_made AFTER INSERT ON projects DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION change_search_words();
CREATE CONSTRAINT TRIGGER projects_words_changed AFTER UPDATE ON projects DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN ((OLD.name, OLD.description, OLD.brief) IS DISTINCT FROM (NEW.name, NEW.description, NEW.brief))
  EXECUTE FUNCTION change_search_words();
CREATE CONSTRAINT TRIGGER media_plans_words_made AFTER INSERT OR DELETE ON media_plans DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION change_search_words();
CREATE CONSTRAINT TRIGGER media_plans_words_changed AFTER UPDATE ON media_plans DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN ((OLD.name, OLD.channels, OLD.targeting) IS DISTINCT FROM (NEW.name, NEW.channels, NEW.targeting))
  EXECUTE FUNCTION change_search_words();
CREATE CONSTRAINT TRIGGER clients_words_changed AFTER UPDATE ON clients DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN ((OLD.industry, OLD.purged_at) IS DISTINCT FROM (NEW.industry, NEW.purged_at))
  EXECUTE FUNCTION change_search_words();
CREATE CONSTRAINT TRIGGER templates_words_made AFTER INSERT OR DELETE ON templates DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION change_search_words();
CREATE CONSTRAINT TRIGGER templates_words_changed AFTER UPDATE ON templates DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (
    (OLD.name, OLD.artifact_type, OLD.columns, OLD.sample) IS DISTINCT FROM (NEW.name, NEW.artifact_type, NEW.columns, NEW.sample))
  EXECUTE FUNCTION change_search_words();

INSERT INTO search_words (kind, item_id, words)
SELECT 'project', id, project_words(id) FROM projects WHERE project_words(id) IS NOT NULL;
