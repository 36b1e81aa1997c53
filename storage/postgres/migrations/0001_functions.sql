-- Functions that the tables' constraints and triggers share.

CREATE FUNCTION touch_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_NARGS = 0 OR to_jsonb(NEW) - TG_ARGV::text[] IS DISTINCT FROM to_jsonb(OLD) - TG_ARGV::text[] THEN
    NEW.revision := OLD.revision + 1;
    NEW.updated_at := now();
  ELSE
    NEW.revision := OLD.revision;
    NEW.updated_at := OLD.updated_at;
  END IF;
  RETURN NEW;
END $$;
COMMENT ON FUNCTION touch_row() IS
  'Sets revision (the etag) and updated_at. Arguments name bookkeeping columns whose change alone is not an edit.';

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'refused by %', TG_ARGV[0]
    USING ERRCODE = 'check_violation', CONSTRAINT = TG_ARGV[0], TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
END $$;
COMMENT ON FUNCTION refuse_change() IS
  'Refuses the statement that fired the trigger, reported as a violated constraint of the given name.';

CREATE FUNCTION is_secret_envelope(candidate jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN COALESCE(
  jsonb_typeof(candidate) = 'object'
  AND candidate ?& ARRAY['alg', 'key_id', 'nonce', 'ciphertext']
  AND candidate - ARRAY['alg', 'key_id', 'nonce', 'ciphertext'] = '{}'
  AND jsonb_typeof(candidate->'alg') = 'string' AND candidate->>'alg' ~ '^[A-Za-z0-9_-]{3,40}$'
  AND jsonb_typeof(candidate->'key_id') = 'string' AND candidate->>'key_id' ~ '^[A-Za-z0-9._:/-]{1,200}$'
  AND jsonb_typeof(candidate->'nonce') = 'string' AND candidate->>'nonce' ~ '^[A-Za-z0-9+/_-]{16,64}={0,2}$'
  AND jsonb_typeof(candidate->'ciphertext') = 'string' AND candidate->>'ciphertext' ~ '^[A-Za-z0-9+/_-]{22,}={0,2}$',
  false);
COMMENT ON FUNCTION is_secret_envelope(jsonb) IS
  'Whether a value has the shape of an AEAD envelope: {alg, key_id, nonce, ciphertext}, the last two in base64. '
  'A 96-bit nonce and a 128-bit tag are the least that pass.';

CREATE FUNCTION is_time_zone(candidate text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  -- PostgreSQL also knows abbreviations and POSIX rules, which the other stores do not: only IANA names pass.
  IF candidate IS NULL OR candidate !~ '^(UTC|[A-Z][A-Za-z_]+(/[A-Za-z0-9_+-]+){1,2})$' THEN
    RETURN false;
  END IF;
  PERFORM timestamptz '2025-01-01 00:00:00+00' AT TIME ZONE candidate;
  RETURN true;
EXCEPTION WHEN invalid_parameter_value THEN
  RETURN false;
END $$;
COMMENT ON FUNCTION is_time_zone(text) IS 'Whether a text is the IANA name of a time zone.';
