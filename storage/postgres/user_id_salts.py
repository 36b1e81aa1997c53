"""The secrets under which the user ids of events are hashed, one for each client."""

from __future__ import annotations

import secrets
from uuid import UUID

from storage.postgres.database import Executor

SALT_BYTES = 16

# Makes the salt unless another process has; all then read the same one.
_INSERT = "INSERT INTO user_id_salts (client_id, salt) VALUES ($1, $2) ON CONFLICT DO NOTHING"
# Reads the salt.
_SELECT = "SELECT salt FROM user_id_salts WHERE client_id = $1"
# Forgets the salt.
_DELETE = "DELETE FROM user_id_salts WHERE client_id = $1 RETURNING true"


async def get_internal(db: Executor, client_id: UUID) -> bytes:
    """The salt of a client, 16 bytes, made on first use. No caller may ever see it.

    Raises:
        Conflict: There is no such client.
    """
    salt: bytes | None = await db.fetchval(_SELECT, client_id)
    while salt is None:
        await db.execute(_INSERT, client_id, secrets.token_bytes(SALT_BYTES))
        salt = await db.fetchval(_SELECT, client_id)
    return salt


async def drop_internal(db: Executor, client_id: UUID) -> bool:
    """Forgets the salt of a client: its stored pseudonyms can never be linked to user ids again.

    Later events are hashed under a new salt, once every process has noticed.

    Returns:
        Whether there was one.
    """
    return await db.fetchval(_DELETE, client_id) is not None
