"""Signals between processes: hints that something changed. A signal may be lost; who listens also looks by itself."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import suppress

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from storage.errors import StoreUnavailable
from storage.redis.clients import client

STORE = "redis"

_log = logging.getLogger(__name__)

_PUBLISH_SECONDS = 1.0
_CONNECT_SECONDS = 3.0
# A subscription says nothing for this long: ask whether it still stands.
_IDLE_SECONDS = 10.0
_ANSWER_SECONDS = 3.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


class Signals:
    """One Redis, used for publish and subscribe.

    Args:
        dsn: Redis URL.
        idle_seconds: Silence after which a subscription is asked whether it still stands.
    """

    def __init__(self, dsn: str, *, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._client = client(
            dsn, socket_connect_timeout=_CONNECT_SECONDS, socket_timeout=None, retry=None, health_check_interval=0
        )
        self._idle_seconds = idle_seconds

    async def publish(self, channel: str, payload: bytes) -> None:
        """Sends a signal to whoever listens now.

        Raises:
            StoreUnavailable: It could not be sent.
        """
        try:
            async with asyncio.timeout(_PUBLISH_SECONDS):
                await self._client.publish(channel, payload)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(STORE, type(error).__name__) from None

    async def listen(self, channel: str) -> AsyncIterator[bytes | None]:
        """Signals as they come, for ever: a lost connection is made again, with growing pauses.

        Yields:
            The payload of a signal, or None when the subscription stands (again): signals may have been lost before.
        """
        pause = _FIRST_PAUSE_SECONDS
        while True:
            subscription = self._client.pubsub()
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await subscription.subscribe(channel)
                yield None
                pause = _FIRST_PAUSE_SECONDS
                while True:
                    payload = await self._next(subscription)
                    if payload is not None:
                        yield payload
            except (RedisError, OSError, TimeoutError) as error:
                _log.info("signals_lost %s", type(error).__name__)
            finally:
                await _drop(subscription)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects, guards nothing
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def close(self) -> None:
        """Closes all connections."""
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_PUBLISH_SECONDS):
                await self._client.aclose()

    async def _next(self, subscription: PubSub) -> bytes | None:
        message = await subscription.get_message(timeout=self._idle_seconds)
        if message is None:
            # A dead peer is silent, too: redis-py waits for ever, and its own health check never reads the answer.
            await subscription.ping()
            message = await subscription.get_message(timeout=_ANSWER_SECONDS)
            if message is None:
                raise TimeoutError
        if message["type"] != "message":
            return None
        data: bytes = message["data"]
        return data


async def _drop(subscription: PubSub) -> None:
    with suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(_PUBLISH_SECONDS):
            await subscription.aclose()  # type: ignore[no-untyped-call]
