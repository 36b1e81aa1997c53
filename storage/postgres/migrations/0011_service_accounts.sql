-- Programs that own several API keys, and the replacing of one key by another.

CREATE TABLE service_accounts (
  id UUID PRIMARY KEY,
  name VARCHAR(100) NOT NULL CONSTRAINT service_accounts_name_given CHECK (btrim(name) <> ''),
  description TEXT NOT NULL DEFAULT '',
  disabled_at TIMESTAMPTZ,
  deleted_at TIMESTAMPTZ,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE service_accounts IS 'Internal programs that call the service. Rows outlive their deletion: keys and audit name them.';
COMMENT ON COLUMN service_accounts.disabled_at IS 'Since when none of its keys works, if they do not.';
CREATE UNIQUE INDEX service_accounts_name_key ON service_accounts (lower(name)) WHERE deleted_at IS NULL;
CREATE TRIGGER service_accounts_touch BEFORE UPDATE ON service_accounts
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row();

ALTER TABLE api_keys
  ADD COLUMN service_account_id UUID REFERENCES service_accounts (id) ON DELETE RESTRICT,
  ADD COLUMN successor_id UUID REFERENCES api_keys (id) ON DELETE RESTRICT,
  ADD COLUMN family_id UUID REFERENCES api_keys (id) ON DELETE RESTRICT;
COMMENT ON COLUMN api_keys.service_account_id IS 'The program it belongs to; without it the key stands for itself.';
COMMENT ON COLUMN api_keys.successor_id IS 'The key that rotation put in its place.';
COMMENT ON COLUMN api_keys.family_id IS 'The first key of a chain of rotations; NULL in that key itself.';
CREATE INDEX api_keys_service_account_idx ON api_keys (service_account_id, id) WHERE service_account_id IS NOT NULL;
CREATE INDEX api_keys_successor_idx ON api_keys (successor_id) WHERE successor_id IS NOT NULL;
CREATE INDEX api_keys_family_idx ON api_keys (family_id) WHERE family_id IS NOT NULL;
