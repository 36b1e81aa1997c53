-- People, clients (the tenants), who may see which, their platform accounts, and the keys of internal callers.

CREATE TABLE users (
  id UUID PRIMARY KEY,
  email VARCHAR(255) NOT NULL CONSTRAINT users_email_shape CHECK (email ~ '^[^@\s]+@[^@\s]+$'),
  password_hash VARCHAR(255) NOT NULL
    CONSTRAINT users_password_hash_shape CHECK (password_hash LIKE '$argon2id$%' OR password_hash = '!'),
  first_name VARCHAR(100) NOT NULL DEFAULT '',
  last_name VARCHAR(100) NOT NULL DEFAULT '',
  role VARCHAR(50) NOT NULL CONSTRAINT users_role_known
    CHECK (role IN ('admin', 'pm', 'media_planner', 'analyst', 'account_manager', 'specialist')),
  status VARCHAR(20) NOT NULL DEFAULT 'active' CONSTRAINT users_status_known
    CHECK (status IN ('active', 'suspended', 'deleted')),
  sessions_not_before TIMESTAMPTZ NOT NULL DEFAULT 'epoch',
  last_login_at TIMESTAMPTZ,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE users IS 'People who sign in. Never deleted: status deleted is terminal and anonymises the row.';
COMMENT ON COLUMN users.email IS 'Unique without regard to case among users that are not deleted.';
COMMENT ON COLUMN users.password_hash IS 'An argon2id string, or ! for a user who cannot sign in with a password.';
COMMENT ON COLUMN users.sessions_not_before IS
  'Sessions begun before this are void, also those that come back with a restored session store.';
COMMENT ON COLUMN users.last_login_at IS 'The last successful sign-in. Not an edit: leaves revision alone.';
CREATE UNIQUE INDEX users_email_key ON users (lower(email)) WHERE status <> 'deleted';
CREATE INDEX users_status_role_idx ON users (status, role);
CREATE TRIGGER users_touch BEFORE UPDATE ON users
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row('last_login_at');

CREATE TABLE clients (
  id UUID PRIMARY KEY,
  parent_client_id UUID REFERENCES clients (id) ON DELETE RESTRICT,
  path UUID[] NOT NULL,
  name VARCHAR(255) NOT NULL CONSTRAINT clients_name_given CHECK (btrim(name) <> ''),
  type VARCHAR(50) NOT NULL CONSTRAINT clients_type_known CHECK (type IN ('agency', 'direct_advertiser')),
  industry VARCHAR(100) NOT NULL DEFAULT '',
  website VARCHAR(255) NOT NULL DEFAULT '',
  settings JSONB NOT NULL DEFAULT '{"timezone": "Europe/Moscow", "currency": "RUB", "language": "ru"}'
    CONSTRAINT clients_settings_object CHECK (jsonb_typeof(settings) = 'object')
    CONSTRAINT clients_settings_timezone CHECK (is_time_zone(settings->>'timezone'))
    CONSTRAINT clients_settings_currency CHECK (COALESCE(settings->>'currency' ~ '^[A-Z]{3}$', false))
    CONSTRAINT clients_settings_language
      CHECK (COALESCE(settings->>'language' ~ '^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$', false)),
  archived_at TIMESTAMPTZ,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT clients_path_ends_here CHECK (
    path[cardinality(path)] = id
    AND path[cardinality(path) - 1] IS NOT DISTINCT FROM parent_client_id)
);
COMMENT ON TABLE clients IS
  'The tenant of every other row. An agency may hold advertisers under it. Archived, never deleted.';
COMMENT ON COLUMN clients.path IS
  'All ancestors from the root down, and the client itself. Kept by triggers; a written value is ignored. '
  'Whoever is a member of any client on the path may see this one.';
COMMENT ON COLUMN clients.settings IS
  'timezone (IANA), currency (ISO 4217), language (BCP 47) always present; unknown keys are kept.';
CREATE INDEX clients_parent_idx ON clients (parent_client_id);
CREATE INDEX clients_path_idx ON clients USING gin (path);
CREATE INDEX clients_type_idx ON clients (type, id);
CREATE INDEX clients_industry_idx ON clients (industry, id);

CREATE FUNCTION clients_set_path() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  above UUID[] := '{}';
BEGIN
  IF TG_OP = 'UPDATE' AND NEW.parent_client_id IS NOT DISTINCT FROM OLD.parent_client_id THEN
    -- Only clients_move_subtree, which runs one level deeper, may write a path.
    IF pg_trigger_depth() < 2 THEN
      NEW.path := OLD.path;
    END IF;
    RETURN NEW;
  END IF;
  -- A move excludes other moves and new children, so that no path is computed from one that is changing.
  IF TG_OP = 'UPDATE' THEN
    PERFORM pg_advisory_xact_lock(hashtext('clients.path'));
  ELSIF NEW.parent_client_id IS NOT NULL THEN
    PERFORM pg_advisory_xact_lock_shared(hashtext('clients.path'));
  END IF;
  IF NEW.parent_client_id IS NOT NULL THEN
    SELECT path INTO above FROM clients WHERE id = NEW.parent_client_id;
    IF NOT FOUND AND NEW.parent_client_id <> NEW.id THEN
      RAISE EXCEPTION 'parent client does not exist'
        USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'clients_parent_client_id_fkey', TABLE = 'clients';
    END IF;
    IF NEW.parent_client_id = NEW.id OR NEW.id = ANY (above) THEN
      RAISE EXCEPTION 'a client cannot be its own ancestor'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'clients_no_cycle', TABLE = 'clients';
    END IF;
  END IF;
  NEW.path := above || NEW.id;
  RETURN NEW;
END $$;
CREATE TRIGGER clients_path BEFORE INSERT OR UPDATE OF id, parent_client_id, path ON clients
  FOR EACH ROW EXECUTE FUNCTION clients_set_path();

CREATE FUNCTION clients_move_subtree() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE clients SET path = NEW.path || path[cardinality(OLD.path) + 1:]
  WHERE path @> ARRAY[NEW.id] AND id <> NEW.id;
  RETURN NULL;
END $$;
CREATE TRIGGER clients_path_subtree AFTER UPDATE OF parent_client_id ON clients
  FOR EACH ROW WHEN (OLD.path IS DISTINCT FROM NEW.path) EXECUTE FUNCTION clients_move_subtree();
CREATE TRIGGER clients_id_fixed BEFORE UPDATE OF id ON clients
  FOR EACH ROW WHEN (OLD.id <> NEW.id) EXECUTE FUNCTION refuse_change('clients_id_fixed');
CREATE TRIGGER clients_touch BEFORE UPDATE ON clients
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row('path');

CREATE TABLE client_memberships (
  user_id UUID NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, client_id)
);
COMMENT ON TABLE client_memberships IS
  'Which clients a user may see, each with everything under it. What the user may do there follows from users.role.';
CREATE INDEX client_memberships_client_idx ON client_memberships (client_id);

CREATE TABLE client_integrations (
  id UUID PRIMARY KEY,
  client_id UUID NOT NULL REFERENCES clients (id) ON DELETE RESTRICT,
  platform VARCHAR(50) NOT NULL CONSTRAINT client_integrations_platform_known
    CHECK (platform IN ('yandex_direct', 'vk_ads', 'yandex_metrika')),
  status VARCHAR(20) NOT NULL DEFAULT 'connected' CONSTRAINT client_integrations_status_known
    CHECK (status IN ('connected', 'disconnected', 'error')),
  credentials JSONB NOT NULL CONSTRAINT client_integrations_credentials_sealed
    CHECK (credentials = '{}' OR is_secret_envelope(credentials)),
  platform_account_id VARCHAR(255) NOT NULL DEFAULT '',
  cursors JSONB NOT NULL DEFAULT '{}' CONSTRAINT client_integrations_cursors_object
    CHECK (jsonb_typeof(cursors) = 'object'),
  last_synced_at TIMESTAMPTZ,
  last_error TEXT NOT NULL DEFAULT '',
  last_error_at TIMESTAMPTZ,
  token_expires_at TIMESTAMPTZ,
  revision BIGINT NOT NULL DEFAULT 1,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  updated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  CONSTRAINT client_integrations_account_key UNIQUE (client_id, platform, platform_account_id),
  CONSTRAINT client_integrations_disconnected_erased CHECK (status <> 'disconnected' OR credentials = '{}')
);
COMMENT ON TABLE client_integrations IS 'A client''s accounts on advertising platforms and counters.';
COMMENT ON COLUMN client_integrations.credentials IS
  'AEAD envelope whose additional data is integration id + client id, or {} once disconnected. Never leaves the server.';
COMMENT ON COLUMN client_integrations.cursors IS 'How far each stream (entities, statistics, changes) has been read.';
COMMENT ON COLUMN client_integrations.last_synced_at IS 'The last sync that succeeded. Not an edit: leaves revision alone.';
CREATE INDEX client_integrations_platform_idx ON client_integrations (platform, status);
CREATE TRIGGER client_integrations_touch BEFORE UPDATE ON client_integrations
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION touch_row('last_synced_at', 'cursors');

CREATE TABLE api_keys (
  id UUID PRIMARY KEY,
  name VARCHAR(255) NOT NULL CONSTRAINT api_keys_name_given CHECK (btrim(name) <> ''),
  key_hash BYTEA NOT NULL CONSTRAINT api_keys_hash_length CHECK (octet_length(key_hash) = 32),
  prefix VARCHAR(32) NOT NULL,
  permissions TEXT[] NOT NULL DEFAULT '{}',
  client_ids UUID[] NOT NULL DEFAULT '{}',
  all_clients BOOLEAN NOT NULL DEFAULT false,
  created_by UUID REFERENCES users (id) ON DELETE RESTRICT,
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  expires_at TIMESTAMPTZ,
  revoked_at TIMESTAMPTZ,
  last_used_at TIMESTAMPTZ,
  CONSTRAINT api_keys_hash_key UNIQUE (key_hash),
  CONSTRAINT api_keys_one_reach CHECK (NOT (all_clients AND cardinality(client_ids) > 0))
);
COMMENT ON TABLE api_keys IS 'Credentials of internal services. The key itself is shown once and never stored.';
COMMENT ON COLUMN api_keys.key_hash IS 'SHA-256 of the key, which is random enough to need no slow hash.';
COMMENT ON COLUMN api_keys.prefix IS 'The first characters of the key, by which people recognise it.';
COMMENT ON COLUMN api_keys.client_ids IS 'Clients the key reaches, each with everything under it. Empty reaches none.';
CREATE INDEX api_keys_created_by_idx ON api_keys (created_by);
