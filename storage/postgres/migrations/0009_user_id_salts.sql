-- The secret under which the user ids of a client's events are hashed before they are stored.
CREATE TABLE user_id_salts (
  client_id UUID PRIMARY KEY REFERENCES clients (id) ON DELETE RESTRICT,
  salt BYTEA NOT NULL CONSTRAINT user_id_salts_salt_length CHECK (octet_length(salt) = 16),
  created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE user_id_salts IS 'Keys of the pseudonyms of user ids. Without its row no pseudonym of a client can be linked to a user id again.';
