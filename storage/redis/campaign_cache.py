"""Lists of projects' campaigns, kept for a while in the Redis that may forget."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from storage.errors import StoreError
from storage.redis.multiplex import MultiplexedRedis

KEPT_SECONDS = 900


class CampaignListStore:
    """The key ``cache:campaigns:{project_id}``. What it holds is opaque here.

    Args:
        redis: The volatile Redis.
    """

    def __init__(self, redis: MultiplexedRedis) -> None:
        self._redis = redis

    async def read(self, project_id: UUID) -> bytes | None:
        """What is kept for a project, or None.

        Raises:
            StoreError: Redis cannot say.
            TimeoutError: The call's deadline has passed.
        """
        kept: bytes | None = await self._redis.execute("GET", _key(project_id))
        return kept

    async def write(self, project_id: UUID, data: bytes) -> bool:
        """Keeps something for a project; whether that worked."""
        try:
            await self._redis.execute("SET", _key(project_id), data, "EX", KEPT_SECONDS)
        except (StoreError, TimeoutError):
            return False
        return True


def _key(project_id: UUID) -> str:
    return f"cache:campaigns:{project_id}"


async def forget(dsn: str, project_ids: Collection[UUID]) -> None:
    """Drops what is kept for projects.

    Args:
        dsn: The volatile Redis.
        project_ids: The projects.

    Raises:
        StoreUnavailable: Redis cannot be reached.
    """
    redis = await MultiplexedRedis.open(dsn)
    try:
        await redis.execute_many([("DEL", _key(project_id)) for project_id in project_ids])
    finally:
        await redis.close()
