-- What a report is written in, which job makes it, and as of when its figures are.

ALTER TABLE reports
  ADD COLUMN language VARCHAR(2) NOT NULL DEFAULT 'ru' CONSTRAINT reports_language_known CHECK (language IN ('ru', 'en')),
  ADD COLUMN job_id UUID;
COMMENT ON COLUMN reports.status IS
  'Ready, or what it was made as: how far a report is that is not ready is told by its job.';
COMMENT ON COLUMN reports.job_id IS
  'The job that makes it. No foreign key: ended jobs are forgotten, and ready reports do not change.';
COMMENT ON COLUMN reports.statistics_version IS
  'Watermark of the figures in Unix milliseconds: everything acknowledged before is in them. Empty before there was one.';
COMMENT ON COLUMN reports.data IS
  'The figures, kept before anything is drawn from them, so that a repeated try draws the same.';
