"""The job that reads figures of an account: days that have come, days that still settle, days that were restated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from uuid_utils.compat import uuid7

from mrm.statistics.v1 import snapshot_pb2
from mrm.statistics.v1.statistics_service_pb2 import AppendMetricsRequest
from server.jobs.handling import JobContext
from server.pacing.check_job import enqueue_check
from server.platforms.interface import (
    AnalyticsConnector,
    Attribution,
    CampaignConnector,
    Connector,
    PlatformStatistics,
    Refused,
    Statistics,
    StatisticsQuery,
    split,
    to_micros,
)
from server.statistics.relay import CampaignDirectory
from server.statistics.snapshots import SnapshotWriter
from server.sync import running, trouble
from server.sync.account import OpenAccount
from server.sync.goals import GoalMap
from server.sync.making import QUEUE, STATISTICS
from storage.postgres import sync_streams
from storage.postgres.jobs import Job
from storage.postgres.sync_streams import Measured, Stream
from storage.scope import EVERYTHING

__all__ = ["QUEUE", "TYPE", "handle"]

TYPE: Final = STATISTICS
# All three platforms count days so; what an account says of its zone is only known once it has been asked.
_ZONE: Final = ZoneInfo("Europe/Moscow")
_DAY: Final = timedelta(days=1)
_MOST_SNAPSHOTS: Final = 5_000
_DIRECT: Final = "yandex_direct"


async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
    """Reads the figures of an account."""
    return await running.read(job, context, "statistics", _work)


async def _work(job: Job, context: JobContext, account: OpenAccount) -> Mapping[str, Any]:
    stores, integration = context.stores, account.integration
    await sync_streams.begin_internal(stores.database, integration.id, "statistics")
    stream = await sync_streams.begin_reading_internal(
        stores.database, integration.id, "statistics", UUID(str(uuid7())), stores.settings.sync.reading_life
    )
    counter_of = integration.client_id if isinstance(account.connector, AnalyticsConnector) else None
    campaigns = await sync_streams.measured_internal(stores.database, integration.id, counter_of)
    reading = Reading(context, account, stream, campaigns, datetime.now(_ZONE).date())
    await reading.run()
    async with context.transaction("sync_statistics_done") as tx:
        await sync_streams.cover_internal(tx, integration.id, reading.covered)
        await sync_streams.succeed_internal(
            tx,
            integration.id,
            "statistics",
            cursor=reading.cursor,
            through=reading.today,
            reread_from=stream.reread_from,
        )
        await trouble.recovered_stream(tx, job, integration, "statistics")
        # In one order, so that two accounts of the same clients do not wait for each other in a circle.
        for client_id in sorted({each.client_id for each in campaigns}):
            await enqueue_check(tx, client_id)
    return reading.result()


class Reading:
    """One reading of an account's figures.

    Chunks are stored one by one under the version of the reading, which is the time when it began: a try that goes on
    with a reading, or repeats it, states the same again, and an older one changes nothing.

    Args:
        context: Whose try it is.
        account: Whom to ask.
        stream: How far it was read, with the reading that is under way.
        campaigns: Whose figures it has.
        today: The day that runs, where the account is.

    Attributes:
        cursor: The platform's mark for the next time.
        covered: By campaign, from which day on it has been read, and whether there were figures.
    """

    def __init__(
        self, context: JobContext, account: OpenAccount, stream: Stream, campaigns: Sequence[Measured], today: date
    ) -> None:
        stores = context.stores
        self._context = context
        self._account = account
        self._connector: Connector = account.connector
        self._stream = stream
        self._campaigns = campaigns
        self._by_external: dict[str, list[Measured]] = defaultdict(list)
        for each in campaigns:
            self._by_external[each.external_id].append(each)
        self._writer = SnapshotWriter(
            stores.database,
            stores.clickhouse,
            CampaignDirectory(stores.database, stores.clickhouse),
            stores.signals,
            stores.settings.rollup,
        )
        self._goals = GoalMap.of(account.integration.settings)
        assert stream.reading_at is not None
        self._version = int(stream.reading_at.timestamp() * 1000)
        self._days = 0
        self._stored = 0
        self._stale = 0
        self._foreign: set[UUID] = set()
        self._refused: set[str] = set()
        self._sampled = False
        self.today = today
        self.cursor = stream.cursor
        self.covered: dict[UUID, tuple[date, bool]] = {}

    def result(self) -> Mapping[str, Any]:
        """What was read, as the result of the job."""
        found: dict[str, Any] = {
            "campaigns": len(self._campaigns),
            "campaign_days": self._days,
            "stored": self._stored,
            "stale": self._stale,
        }
        if self._foreign:
            found["other_currency"] = [str(each) for each in sorted(self._foreign)[:100]]
        if self._refused:
            found["refused"] = sorted(self._refused)[:100]
        if self._sampled:
            found["sampled"] = True
        return found

    async def run(self) -> None:
        """Reads and stores."""
        if not self._campaigns:
            return
        firsts = await self._firsts()
        asked = list(self._questions(firsts))
        for done, query in enumerate(asked, 1):
            await self._ask(query)
            await self._context.progress(done, len(asked), f"figures up to {query.last}")
        self.covered = {
            each.campaign_id: (firsts[each.campaign_id], self.covered.get(each.campaign_id, (self.today, False))[1])
            for each in self._campaigns
        }

    async def _firsts(self) -> dict[UUID, date]:
        """From which day on each campaign is to be read."""
        capabilities, settings = self._connector.capabilities, self._context.stores.settings.sync
        stream, borders = self._stream, await self._borders()
        through = min(self.today, stream.through or self.today)
        settling = through - _DAY * capabilities.settle_days
        oldest = self.today - _DAY * (capabilities.history_days - 1) if capabilities.history_days else date.min
        firsts = {}
        for each in self._campaigns:
            first = settling
            if each.first_day is None:
                first = min(first, self.today - _DAY * settings.initial_days)
            if stream.reread_from is not None:
                first = min(first, stream.reread_from)
            if each.external_id in borders:
                first = min(first, borders[each.external_id])
            firsts[each.campaign_id] = max(first, oldest)
        return firsts

    async def _borders(self) -> Mapping[str, date]:
        """First day of the campaigns whose figures have changed, as far as the platform tells."""
        connector = self._connector
        if not isinstance(connector, CampaignConnector) or not connector.capabilities.changes:
            return {}
        ids = running.askable(self._by_external)
        changes = await self._account.ask(
            lambda account: connector.changes(account, self._stream.cursor, campaign_ids=ids)
        )
        self.cursor = changes.cursor
        return changes.statistics_from

    def _questions(self, firsts: Mapping[UUID, date]) -> Iterator[StatisticsQuery]:
        """What to ask, oldest days first."""
        groups: dict[tuple[date, bool], set[str]] = defaultdict(set)
        analytics = isinstance(self._connector, AnalyticsConnector)
        for each in self._campaigns:
            # A counter knows campaigns of its own platform by itself, all others by their tags.
            groups[firsts[each.campaign_id], analytics and each.platform != _DIRECT].add(each.external_id)
        name = str(self._stream.reading_id)
        for (first, tagged), ids in sorted(groups.items(), key=lambda each: each[0]):
            query = StatisticsQuery(first, self.today, tuple(ids), reading=name, tagged=tagged)
            if not analytics:
                numbers = tuple(running.askable(ids))
                # Without any the question would be about all.
                if numbers:
                    yield from split(self._connector.capabilities, replace(query, campaign_ids=numbers))
                continue
            for currency in sorted({each.currency for each in self._campaigns if each.external_id in ids}):
                only = {each.external_id for each in self._campaigns if each.currency == currency} & ids
                wanted = replace(
                    query, campaign_ids=tuple(only), currency=currency, attribution=self._goals.attribution
                )
                yield from split(self._connector.capabilities, wanted)

    async def _ask(self, query: StatisticsQuery) -> None:
        """Asks and stores. A campaign that the platform will not speak of must not keep the others from being read."""
        try:
            found = await self._answer(query)
        except Refused:
            ids = query.campaign_ids
            if len(ids) < 2:
                self._refused.update(ids)
                return
            for part in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
                await self._ask(replace(query, campaign_ids=part))
            return
        self._sampled = self._sampled or found.sampled
        await self._store(query, found)

    async def _answer(self, query: StatisticsQuery) -> Statistics:
        connector = self._connector
        if isinstance(connector, CampaignConnector):
            return await self._account.ask(lambda account: connector.statistics(account, query))
        assert isinstance(connector, AnalyticsConnector)
        return await self._goals.outcomes(self._account, connector, query)

    async def _store(self, query: StatisticsQuery, found: Statistics) -> None:
        rows = {(row.external_id, row.date): row for row in found.rows}
        there = {row.external_id for row in found.rows}
        by_client: dict[UUID, list[snapshot_pb2.MetricsSnapshot]] = defaultdict(list)
        for external_id in query.campaign_ids:
            for campaign in self._by_external[external_id]:
                if found.attribution is not None and campaign.currency != query.currency:
                    continue
                has_any = external_id in there
                before = self.covered.get(campaign.campaign_id, (query.first, campaign.measured))
                self.covered[campaign.campaign_id] = (query.first, before[1] or has_any)
                if not before[1] and not has_any:
                    continue
                for day in _days(query):
                    row = rows.get((external_id, day))
                    # A past day without a row had nothing. Of one that runs nothing is known yet.
                    if row is None and day >= self.today:
                        continue
                    snapshot = self._snapshot(campaign, day, row or PlatformStatistics(external_id, day))
                    if snapshot is not None:
                        by_client[campaign.client_id].append(snapshot)
        for client_id, snapshots in by_client.items():
            for start in range(0, len(snapshots), _MOST_SNAPSHOTS):
                await self._append(client_id, snapshots[start : start + _MOST_SNAPSHOTS], found)

    def _snapshot(self, campaign: Measured, day: date, row: PlatformStatistics) -> snapshot_pb2.MetricsSnapshot | None:
        """Figures of a day; None where they are in another currency than the campaign, and cannot be compared."""
        currencies = {each.currency for each in (row.cost, row.revenue) if each is not None and each.value}
        if currencies - {"", campaign.currency}:
            self._foreign.add(campaign.campaign_id)
            return None
        snapshot = snapshot_pb2.MetricsSnapshot(campaign_id=str(campaign.campaign_id), date=day.isoformat())
        if self._connector.capabilities.delivery:
            snapshot.delivery.impressions = row.impressions or 0
            snapshot.delivery.clicks = row.clicks or 0
            snapshot.delivery.cost_micros = row.cost.micros if row.cost else 0
            snapshot.delivery.SetInParent()
        if self._connector.capabilities.outcomes:
            snapshot.outcome.conversions_micros = to_micros(row.conversions or Decimal(0))
            snapshot.outcome.revenue_micros = row.revenue.micros if row.revenue else 0
            snapshot.outcome.SetInParent()
        return snapshot

    async def _append(
        self, client_id: UUID, snapshots: Sequence[snapshot_pb2.MetricsSnapshot], found: Statistics
    ) -> None:
        delivers = self._connector.capabilities.delivery
        request = AppendMetricsRequest(
            client_id=str(client_id),
            source=snapshot_pb2.METRICS_SOURCE_PLATFORM if delivers else snapshot_pb2.METRICS_SOURCE_ANALYTICS,
            version=self._version,
            vat_included=bool(self._connector.capabilities.vat),
            attribution_model=_MODELS[found.attribution] if found.attribution else 0,  # type: ignore[arg-type]
            goal_ids=found.goals[:100],
            snapshots=snapshots,
        )
        rows = await self._writer.check(request, EVERYTHING)
        stored = await self._writer.store(request, rows)
        self._days += len(rows)
        self._stored += stored
        self._stale += len(rows) - stored


_MODELS: Final = {
    each: snapshot_pb2.AttributionModel.Value(f"ATTRIBUTION_MODEL_{each.value.upper()}") for each in Attribution
}


def _days(query: StatisticsQuery) -> Iterator[date]:
    day = query.first
    while day <= query.last:
        yield day
        day += _DAY
