-- Which prompt and model a report's words are of.

ALTER TABLE reports
  ADD COLUMN prompt_name VARCHAR(255) NOT NULL DEFAULT '',
  ADD COLUMN prompt_version INT NOT NULL DEFAULT 0 CONSTRAINT reports_prompt_version_sign CHECK (prompt_version >= 0),
  ADD COLUMN fallback TEXT NOT NULL DEFAULT '';
COMMENT ON COLUMN reports.generated_by IS 'ai if words of a language model are in it; figures and findings never are of one.';
COMMENT ON COLUMN reports.prompt_name IS 'The prompt with which a model was asked for words, stored or built in; empty if none was.';
COMMENT ON COLUMN reports.model IS 'The model that was asked for words, as its server calls it.';
COMMENT ON COLUMN reports.fallback IS 'Why the words of the model that was asked are not used; empty if they are.';
