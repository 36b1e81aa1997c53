-- What the service itself needs: audit, outbox, idempotency, leases, ingest streams and the state of the metrics.

CREATE TABLE audit_log (
  seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  xid XID8 NOT NULL DEFAULT pg_current_xact_id(),
  at TIMESTAMPTZ NOT NULL DEFAULT now(),
  actor_kind VARCHAR(20) NOT NULL CONSTRAINT audit_log_actor_kind_known
    CHECK (actor_kind IN ('user', 'api_key', 'system')),
  actor_id UUID,
  method VARCHAR(200) NOT NULL DEFAULT '',
  request_id VARCHAR(100) NOT NULL DEFAULT '',
  client_id UUID,
  project_id UUID,
  resource_type VARCHAR(50) NOT NULL,
  resource_id VARCHAR(100) NOT NULL,
  action VARCHAR(50) NOT NULL,
  diff JSONB NOT NULL DEFAULT '{}' CONSTRAINT audit_log_diff_object CHECK (jsonb_typeof(diff) = 'object'),
  cause TEXT NOT NULL DEFAULT '',
  CONSTRAINT audit_log_actor_whole CHECK ((actor_kind = 'system') = (actor_id IS NULL))
);
COMMENT ON TABLE audit_log IS
  'Every change and who made it, automatic ones included. Append-only. Holds ids without foreign keys: it outlives rows.';
COMMENT ON COLUMN audit_log.xid IS
  'The writing transaction. A reader of changes goes by (xid, seq) and stops below the oldest running transaction, '
  'because a bare seq skips rows that commit late.';
COMMENT ON COLUMN audit_log.diff IS 'Field -> [before, after]. Secrets are replaced before they get here.';
COMMENT ON COLUMN audit_log.cause IS 'Why an automatic action was taken.';
CREATE INDEX audit_log_feed_idx ON audit_log (xid, seq);
CREATE INDEX audit_log_client_idx ON audit_log (client_id, seq);
CREATE INDEX audit_log_resource_idx ON audit_log (resource_type, resource_id, seq);
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('audit_log_append_only');

CREATE TABLE outbox (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  xid XID8 NOT NULL DEFAULT pg_current_xact_id(),
  topic VARCHAR(100) NOT NULL,
  key VARCHAR(255) NOT NULL,
  payload JSONB NOT NULL DEFAULT '{}',
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  processed_at TIMESTAMPTZ
);
COMMENT ON TABLE outbox IS
  'Messages to other stores, written with the change that causes them. Delivered at least once; consumers are idempotent.';
COMMENT ON COLUMN outbox.id IS 'Order of writing, not of committing: a lower one may appear later.';
CREATE INDEX outbox_unprocessed_idx ON outbox (topic, id) WHERE processed_at IS NULL;
CREATE INDEX outbox_processed_idx ON outbox (processed_at) WHERE processed_at IS NOT NULL;

CREATE TABLE idempotency_keys (
  principal_id UUID NOT NULL,
  method VARCHAR(200) NOT NULL,
  request_id UUID NOT NULL,
  request_hash BYTEA NOT NULL,
  response BYTEA,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  expires_at TIMESTAMPTZ NOT NULL,
  PRIMARY KEY (principal_id, method, request_id)
);
COMMENT ON TABLE idempotency_keys IS
  'Replies of mutations, written in the mutation''s own transaction, so that a repeated request gets the same reply.';
COMMENT ON COLUMN idempotency_keys.request_hash IS 'Hash of the request, to refuse an id used for another one.';
COMMENT ON COLUMN idempotency_keys.response IS 'The reply without secrets. NULL only inside the transaction that claimed it.';
CREATE INDEX idempotency_keys_expiry_idx ON idempotency_keys (expires_at);

CREATE TABLE leases (
  name VARCHAR(100) PRIMARY KEY,
  holder VARCHAR(255) NOT NULL,
  epoch BIGINT NOT NULL CONSTRAINT leases_epoch_positive CHECK (epoch > 0),
  expires_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE leases IS 'Which process does a task that only one may do.';
COMMENT ON COLUMN leases.epoch IS 'Grows whenever the lease is taken anew; written with the work, it fences earlier holders.';

CREATE TABLE event_streams (
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  stream_id TEXT NOT NULL CONSTRAINT event_streams_stream_id_length CHECK (length(stream_id) BETWEEN 1 AND 200),
  next_offset BIGINT NOT NULL DEFAULT 0 CONSTRAINT event_streams_next_offset_sign CHECK (next_offset >= 0),
  writer UUID NOT NULL,
  writer_epoch BIGINT NOT NULL DEFAULT 1,
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (client_id, stream_id)
) WITH (fillfactor = 50);
COMMENT ON TABLE event_streams IS 'How far each producer''s event stream is durably stored.';
COMMENT ON COLUMN event_streams.next_offset IS 'Offset the next batch must begin at. Moved after its rows are durable.';
COMMENT ON COLUMN event_streams.writer_epoch IS 'Grows whenever a writer opens the stream; fences the one before.';

CREATE TABLE metric_cursors (
  name VARCHAR(100) PRIMARY KEY,
  position JSONB NOT NULL,
  epoch BIGINT NOT NULL,
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE metric_cursors IS 'How far the rebuilding of metrics has read.';
COMMENT ON COLUMN metric_cursors.epoch IS 'Epoch of the lease under which it was moved; a lower one cannot move it.';

CREATE TABLE metric_settings (
  only_row BOOLEAN PRIMARY KEY DEFAULT true CONSTRAINT metric_settings_only_row CHECK (only_row),
  raw_floor TIMESTAMPTZ NOT NULL,
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE metric_settings IS 'State of the metrics that must survive, in one row.';
COMMENT ON COLUMN metric_settings.raw_floor IS
  'Raw events before this may be gone, so nothing before it is ever rebuilt from them. Only rises.';
INSERT INTO metric_settings (raw_floor) VALUES ('epoch');
CREATE TRIGGER metric_settings_floor_rises BEFORE UPDATE ON metric_settings
  FOR EACH ROW WHEN (NEW.raw_floor < OLD.raw_floor) EXECUTE FUNCTION refuse_change('metric_settings_floor_rises');
CREATE TRIGGER metric_settings_kept BEFORE DELETE OR TRUNCATE ON metric_settings
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('metric_settings_kept');

CREATE SEQUENCE metric_version_seq MAXVALUE 1099511627775 NO CYCLE;
COMMENT ON SEQUENCE metric_version_seq IS 'The low 40 bits of a metric row''s version; the lease epoch is above them.';
