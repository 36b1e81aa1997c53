-- The key under which the service authenticates page and resume tokens, shared by all its processes.
CREATE TABLE token_keys (
  only_row BOOLEAN PRIMARY KEY DEFAULT true CONSTRAINT token_keys_only_row CHECK (only_row),
  secret BYTEA NOT NULL CONSTRAINT token_keys_secret_length CHECK (octet_length(secret) = 32),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE token_keys IS 'Authenticates page and resume tokens. Replacing it makes clients start lists and watches anew.';
