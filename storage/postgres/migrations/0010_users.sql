-- What users and sessions need: which sessions have ended, by whose word a password may be set anew.

CREATE TABLE ended_sessions (
  token_digest BYTEA PRIMARY KEY CONSTRAINT ended_sessions_digest_length CHECK (octet_length(token_digest) = 32),
  user_id UUID NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
  ended_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE ended_sessions IS
  'Sessions that were ended one by one, kept as long as the session store could bring them back.';
COMMENT ON COLUMN ended_sessions.token_digest IS 'SHA-256 of the session token, as the session store names it.';
CREATE INDEX ended_sessions_user_idx ON ended_sessions (user_id);
CREATE INDEX ended_sessions_ended_at_idx ON ended_sessions (ended_at);

CREATE TABLE session_epoch (
  only_row BOOLEAN PRIMARY KEY DEFAULT true CONSTRAINT session_epoch_only_row CHECK (only_row),
  not_before TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE session_epoch IS 'Sessions of anybody begun before this are void. Moved after a restore of the session store.';
INSERT INTO session_epoch (not_before) VALUES ('epoch');

CREATE TABLE password_resets (
  user_id UUID PRIMARY KEY REFERENCES users (id) ON DELETE RESTRICT,
  token_hash BYTEA NOT NULL CONSTRAINT password_resets_hash_length CHECK (octet_length(token_hash) = 32),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
  expires_at TIMESTAMPTZ NOT NULL,
  CONSTRAINT password_resets_hash_key UNIQUE (token_hash)
);
COMMENT ON TABLE password_resets IS 'One-time permission to set a password; a newer one of the same user replaces it.';
COMMENT ON COLUMN password_resets.token_hash IS 'SHA-256 of the token, which is random enough to need no slow hash.';

CREATE INDEX users_sessions_not_before_idx ON users (sessions_not_before);

-- A password and the end of sessions are no part of what callers see as the user, so neither changes the etag.
DROP TRIGGER users_touch ON users;
CREATE TRIGGER users_touch BEFORE UPDATE ON users
  FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)
  EXECUTE FUNCTION touch_row('last_login_at', 'password_hash', 'sessions_not_before');
