"""redis-py's clients, for what is not worth a connection of our own: publishing, listening, BullMQ."""

from __future__ import annotations

from typing import Any, Final

import redis.asyncio as redis
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from storage.redis.dsn import parse_dsn

_SENTINEL_SECONDS: Final = 0.5


class _Primary(redis.Redis):
    """Closes its connections to the sentinels, too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool = self.connection_pool
        assert isinstance(pool, SentinelConnectionPool)
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def client(dsn: str, **options: Any) -> redis.Redis:
    """A client of the server that a DSN names, or of the one that its sentinels take for the primary.

    Args:
        dsn: As `parse_dsn` reads it.
        options: Of every connection, as redis-py calls them.

    Raises:
        MalformedDsn: The URL cannot be used.
    """
    address = parse_dsn(dsn)
    if not address.sentinels:
        return redis.Redis.from_url(dsn, **options)
    secure: dict[str, Any] = {"ssl": True, "ssl_ca_certs": address.ca_file} if address.tls else {}
    asking = {"socket_connect_timeout": _SENTINEL_SECONDS, "socket_timeout": _SENTINEL_SECONDS, **secure}
    if address.sentinel_password:
        asking["password"] = address.sentinel_password
    options |= {"username": address.username or None, "password": address.password or None, "db": address.database}
    sentinel = Sentinel(address.sentinels, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    found: _Primary = sentinel.master_for(address.service, redis_class=_Primary, **secure, **options)
    return found
