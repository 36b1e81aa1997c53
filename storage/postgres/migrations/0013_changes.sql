-- The record of changes as a feed: why a change was made, how far back the feed reaches, and the order it goes by.

ALTER TABLE audit_log
  ADD COLUMN cause_kind VARCHAR(20) NOT NULL DEFAULT 'user' CONSTRAINT audit_log_cause_kind_known
    CHECK (cause_kind IN ('user', 'job', 'platform', 'operator')),
  ADD COLUMN cause_id VARCHAR(100) NOT NULL DEFAULT '';
COMMENT ON COLUMN audit_log.cause IS 'Why, in words; empty when a caller''s wish is all there is to say.';
COMMENT ON COLUMN audit_log.cause_kind IS 'What led to the change: a call, a job, what a platform reported, or an operator.';
COMMENT ON COLUMN audit_log.cause_id IS 'Which job, or which integration.';
COMMENT ON COLUMN audit_log.diff IS 'Path of a field -> [before, after], or true for a secret that changed.';
COMMENT ON COLUMN audit_log.seq IS
  'The order of the feed. A reader may pass a number only once no open transaction can still bring a lower one: it reads '
  'the highest number, then who holds a RowExclusiveLock on this table, and waits for those to end.';

-- Ordering by transaction would put a change before the one it builds on, and would not survive a restored dump.
DROP INDEX audit_log_feed_idx;
ALTER TABLE audit_log DROP COLUMN xid;
CREATE INDEX audit_log_at_idx ON audit_log USING brin (at);

CREATE TABLE change_feed (
  only_row BOOLEAN PRIMARY KEY DEFAULT true CONSTRAINT change_feed_only_row CHECK (only_row),
  floor BIGINT NOT NULL CONSTRAINT change_feed_floor_sign CHECK (floor >= 0)
);
COMMENT ON TABLE change_feed IS 'How far back the feed of changes reaches, in one row.';
COMMENT ON COLUMN change_feed.floor IS 'Changes up to this number may be gone; a reader who needs them starts over. Only rises.';
INSERT INTO change_feed (floor) VALUES (0);
CREATE TRIGGER change_feed_floor_rises BEFORE UPDATE ON change_feed
  FOR EACH ROW WHEN (NEW.floor < OLD.floor) EXECUTE FUNCTION refuse_change('change_feed_floor_rises');
CREATE TRIGGER change_feed_kept BEFORE DELETE OR TRUNCATE ON change_feed
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('change_feed_kept');
