-- What a project is for, and how well it went.

ALTER TABLE projects
  ADD COLUMN brief JSONB NOT NULL DEFAULT '{}'
    CONSTRAINT projects_brief_object CHECK (jsonb_typeof(brief) = 'object' AND pg_column_size(brief) <= 131072),
  ADD COLUMN performance_rating SMALLINT
    CONSTRAINT projects_performance_rating_range CHECK (performance_rating BETWEEN 1 AND 10);
COMMENT ON COLUMN projects.brief IS '{objective, audience, message, constraints, extra}; only what was given.';
COMMENT ON COLUMN projects.performance_rating IS 'Given at completion, 1 to 10.';
