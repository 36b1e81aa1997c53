"""Signals between processes, and what happens while a store is away."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis.asyncio

from server.settings import MetricsSettings, WatchSettings
from server.statistics.aggregator import Aggregator
from server.statistics.feeds import Choice, Span
from server.statistics.hub import WatchHub
from storage.clickhouse import metrics, rebuild
from storage.errors import StoreUnavailable
from storage.redis.signals import Signals
from storage.scope import EVERYTHING
from tests.statistics.conftest import Stores, until

NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
SETTINGS = MetricsSettings(tick=0.05, lease_ttl=1.0, mark_overlap=timedelta(seconds=5))


class Listener:
    """Collects what a subscription yields."""

    def __init__(self, signals: Signals) -> None:
        self.heard: list[bytes | None] = []
        self._signals = signals

    async def run(self) -> None:
        async for payload in self._signals.listen("test"):
            self.heard.append(payload)

    async def has(self, *expected: bytes | None) -> bool:
        return self.heard == list(expected)


@pytest.fixture
async def signals(stores: Stores) -> AsyncIterator[Signals]:
    signals = Signals(stores.redis_dsn, idle_seconds=0.1)
    yield signals
    await signals.close()


async def cancelled(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_subscription_outlives_silence_and_a_lost_connection(stores: Stores, signals: Signals) -> None:
    listener = Listener(signals)
    task = asyncio.create_task(listener.run())
    try:
        await until(lambda: listener.has(None))
        await asyncio.sleep(0.5)
        await signals.publish("test", b"one")
        await until(lambda: listener.has(None, b"one"))
        async with redis.asyncio.Redis.from_url(stores.redis_dsn) as client:
            await client.client_kill_filter(_type="pubsub")
        await until(lambda: listener.has(None, b"one", None))
        await signals.publish("test", b"two")
        await until(lambda: listener.has(None, b"one", None, b"two"))
    finally:
        await cancelled(task)


async def test_signals_that_cannot_be_sent_say_so() -> None:
    signals = Signals("redis://127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable):
        await signals.publish("test", b"lost")
    await signals.close()


async def test_the_aggregator_outlives_its_stores(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    client_id, [campaign] = await stores.tenant()
    # Redis is away all the time, ClickHouse at first.
    signals = Signals("redis://127.0.0.1:1/0")
    look, failed = rebuild.look, asyncio.Event()

    async def away(*_: Any) -> Any:
        failed.set()
        raise StoreUnavailable("clickhouse")

    monkeypatch.setattr(rebuild, "look", away)
    aggregator = Aggregator(stores.database, stores.clickhouse, signals, SETTINGS, holder="one")
    task = asyncio.create_task(aggregator.run())
    try:
        await failed.wait()
        await stores.events(campaign, NOW)
        monkeypatch.setattr(rebuild, "look", look)

        async def counted() -> bool:
            return bool(await stores.hours(client_id))

        await until(counted)
    finally:
        await cancelled(task)
        await signals.close()


async def test_watches_outlive_clickhouse(stores: Stores, signals: Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    client_id, [_] = await stores.tenant()
    live_totals, failed = metrics.live_totals, asyncio.Event()

    async def away(*_: Any) -> Any:
        failed.set()
        raise StoreUnavailable("clickhouse")

    monkeypatch.setattr(metrics, "live_totals", away)
    hub = WatchHub(stores.database, stores.clickhouse, signals, WatchSettings(tick=0.05, poll=0.2))
    task = asyncio.create_task(hub.run())
    try:
        with hub.subscribe(EVERYTHING, client_id, Span(days=1), Choice(), asyncio.Event()) as mailbox:
            await failed.wait()
            assert not mailbox.feed.ready
            monkeypatch.setattr(metrics, "live_totals", live_totals)
            assert await mailbox.wait(asyncio.get_running_loop().time() + 15)
            assert mailbox.feed.ready
            assert len(mailbox.take_snapshot()) == 1
    finally:
        await cancelled(task)
