"""The key that authenticates page and resume tokens."""

from __future__ import annotations

import secrets

from storage.postgres.database import Executor

# Makes the key unless another process has; all then read the same one.
_INSERT = "INSERT INTO token_keys (secret) VALUES ($1) ON CONFLICT DO NOTHING"
# Reads the key.
_SELECT = "SELECT secret FROM token_keys"


async def shared_key(db: Executor) -> bytes:
    """The key of this deployment, 32 bytes, made on first use."""
    key: bytes | None = await db.fetchval(_SELECT)
    if key is None:
        await db.execute(_INSERT, secrets.token_bytes(32))
        key = await db.fetchval(_SELECT)
    assert key is not None
    return key
