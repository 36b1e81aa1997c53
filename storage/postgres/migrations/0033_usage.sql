-- What each client uses, and when what must happen again and again last went well.

CREATE TABLE client_usage (
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  day DATE NOT NULL,
  calls BIGINT NOT NULL DEFAULT 0 CONSTRAINT client_usage_calls_sign CHECK (calls >= 0),
  exports BIGINT NOT NULL DEFAULT 0 CONSTRAINT client_usage_exports_sign CHECK (exports >= 0),
  PRIMARY KEY (client_id, day)
);
COMMENT ON TABLE client_usage IS 'Calls by client and day of UTC, added up every few seconds by each process that counts them.';
COMMENT ON COLUMN client_usage.calls IS 'Calls that went well and whose reply, request or key names the client.';
COMMENT ON COLUMN client_usage.exports IS 'Those of them by which figures left the service.';

CREATE TABLE milestones (
  name VARCHAR(100) PRIMARY KEY CONSTRAINT milestones_name_form CHECK (name ~ '^[a-z][a-z0-9_.]*$'),
  reached_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE milestones IS 'When what must happen again and again, such as a backup, last went well: a metric each.';
