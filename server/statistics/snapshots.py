"""AppendMetrics: figures that a platform, an analytics system or an import states."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from google.protobuf.timestamp_pb2 import Timestamp

from mrm.statistics.v1 import snapshot_pb2
from mrm.statistics.v1.statistics_service_pb2 import AppendMetricsRequest, AppendMetricsResponse
from server.rpc import values
from server.rpc.call import Call
from server.rpc.errors import InvalidRequest, NotFound, Violation
from server.settings import RollupSettings
from server.statistics.aggregator import CHANNEL
from server.statistics.marking import announce
from server.statistics.relay import CampaignDirectory
from storage.clickhouse import snapshots
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.snapshots import Delivery, Key, Outcome, Reading, Snapshot, Source
from storage.errors import StoreUnavailable
from storage.postgres import campaigns, reach, snapshot_order
from storage.postgres.campaigns import CampaignDimension
from storage.postgres.database import Database
from storage.redis.signals import Signals
from storage.scope import Scope

# Each request holds a connection while its client's turn lasts: the pool must have some left for the others.
_AT_ONCE = 3
_MOST_FAULTS = 100
_FIRST_DAY = date(1971, 1, 1)
_HOUR = 3600
# As for events: sums of very many still fit 64 bits.
_MOST_MICROS = 10**15
_MOST_COUNT = 10**12

_SOURCES: Mapping[int, Source] = {
    snapshot_pb2.METRICS_SOURCE_PLATFORM: "platform",
    snapshot_pb2.METRICS_SOURCE_ANALYTICS: "analytics",
    snapshot_pb2.METRICS_SOURCE_IMPORT: "import",
    snapshot_pb2.METRICS_SOURCE_BACKFILL: "backfill",
}
_MODELS = values.EnumWords(snapshot_pb2.AttributionModel, "ATTRIBUTION_MODEL_")


class SnapshotRpcs:
    """`AppendMetrics` of StatisticsService.

    Args:
        writer: Checks and stores snapshots.
    """

    def __init__(self, writer: "SnapshotWriter") -> None:
        self._writer = writer

    async def AppendMetrics(self, request: AppendMetricsRequest, call: Call) -> AppendMetricsResponse:
        """Stores snapshots that replace older ones of the same source, campaign and time."""
        rows = await self._writer.check(request, call.scope)
        stored = await self._writer.store(request, rows)
        return AppendMetricsResponse(stored_count=stored, stale_count=len(rows) - stored)


class SnapshotWriter:
    """Checks and stores readings of other sources, wherever they come from.

    Args:
        database: Knows rights and campaigns.
        clickhouse: Where figures go.
        directory: Makes campaigns known to ClickHouse, which needs their time zones.
        signals: Tells watchers whose figures changed.
        rollup: How long a restated day waits for others before it is rolled up.
    """

    def __init__(
        self,
        database: Database,
        clickhouse: ClickHouse,
        directory: CampaignDirectory,
        signals: Signals,
        rollup: RollupSettings | None = None,
    ) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._directory = directory
        self._signals = signals
        self._delay = (rollup or RollupSettings()).restatement_delay
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def check(self, request: AppendMetricsRequest, scope: Scope) -> list[Snapshot]:
        """The snapshots of a request that keeps the rules of its fields.

        Raises:
            NotFound: The client is out of scope.
            InvalidRequest: Snapshots are at fault.
        """
        client_id = values.required_id(request.client_id, "client_id")
        zones = await reach.clients(self._database, scope, [client_id])
        if client_id not in zones:
            raise NotFound.resource("client", str(client_id))
        wanted = {UUID(each.campaign_id) for each in request.snapshots}
        found = await campaigns.for_dimension(self._database, scope, campaign_ids=sorted(wanted), client_id=client_id)
        rows = _read(request, {each.campaign_id: each for each in found}, _tomorrow(zones[client_id]))
        await self._directory.resolve_unknown(wanted)
        return rows

    async def store(self, request: AppendMetricsRequest, rows: list[Snapshot]) -> int:
        """Stores what `check` gave for the request; returns how many of the snapshots count now."""
        client_id = UUID(request.client_id)
        reading = Reading(
            _SOURCES[request.source],
            request.version,
            request.vat_included,
            _MODELS.optional_word(request.attribution_model) or "",
            request.goal_ids,
        )
        async with self._turns, self._database.transaction("append_metrics") as tx:
            await snapshot_order.enter(tx, client_id)
            stored = await snapshots.append(self._clickhouse, client_id, reading, rows)
            # Also if none was stored: an earlier call may have stored them and failed before it got here.
            await announce(tx, self._delay, *_changed(client_id, rows))
        # What was long ago is no news; and watchers also look by themselves, so a signal may be lost.
        if stored and request.source != snapshot_pb2.METRICS_SOURCE_BACKFILL:
            with suppress(StoreUnavailable):
                await self._signals.publish(CHANNEL, json.dumps({"clients": [str(client_id)]}).encode())
        return stored


class _Faults:
    """Faults found so far; nothing is stored if there is one."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def add(self, index: int, field: str, reason: str, description: str) -> None:
        """Notes a fault of one snapshot."""
        path = f"snapshots[{index}].{field}" if field else f"snapshots[{index}]"
        self.violations.append(Violation(path, reason, description))

    @property
    def enough(self) -> bool:
        """Whether looking for more is of no use."""
        return len(self.violations) >= _MOST_FAULTS

    def check(self) -> None:
        """Raises InvalidRequest if there is any."""
        if self.violations:
            raise InvalidRequest(
                "snapshots are at fault, nothing is stored", reason="EVENTS_INVALID", violations=self.violations
            )


def _read(request: AppendMetricsRequest, known: Mapping[UUID, CampaignDimension], tomorrow: date) -> list[Snapshot]:
    """The snapshots of a request.

    Raises:
        InvalidRequest: Some are at fault.
    """
    faults = _Faults()
    seen: set[Key] = set()
    rows: list[Snapshot] = []
    for index, message in enumerate(request.snapshots):
        if faults.enough:
            break
        campaign = known.get(UUID(message.campaign_id))
        if campaign is None:
            faults.add(index, "campaign_id", "UNKNOWN_CAMPAIGN", "no such campaign in this client")
            continue
        for path, reason, description in _wrong_figures(message, request.source):
            faults.add(index, path, reason, description)
        key = _key(message, index, tomorrow, faults)
        if key is None:
            continue
        if key in seen:
            faults.add(index, "", "DUPLICATE", "an earlier snapshot of the request measures the same")
        seen.add(key)
        rows.append(_snapshot(message, key, campaign))
    faults.check()
    return rows


def _key(message: snapshot_pb2.MetricsSnapshot, index: int, tomorrow: date, faults: _Faults) -> Key | None:
    """What a snapshot measures; None if that is at fault."""
    campaign_id = UUID(message.campaign_id)
    if message.WhichOneof("bucket") == "hour":
        fault = _wrong_hour(message.hour)
        if fault is None:
            return Key(campaign_id, "hour", message.hour.seconds)
        faults.add(index, "hour", *fault)
        return None
    try:
        day = date.fromisoformat(message.date)
    except ValueError:
        faults.add(index, "date", "DATE_INVALID", "is not a day of the calendar")
        return None
    if not _FIRST_DAY <= day <= tomorrow:
        faults.add(index, "date", "TIME_OUT_OF_RANGE", f"must lie between {_FIRST_DAY} and tomorrow")
        return None
    return Key(campaign_id, "day", _midnight(day))


def _wrong_hour(hour: Timestamp) -> tuple[str, str] | None:
    if hour.nanos or hour.seconds % _HOUR:
        return "FULL_HOUR", "must be a full hour"
    latest = datetime.now(UTC) + timedelta(days=1)
    if not _midnight(_FIRST_DAY) <= hour.seconds <= latest.timestamp():
        return "TIME_OUT_OF_RANGE", f"must lie between {_FIRST_DAY} and this time tomorrow"
    return None


def _wrong_figures(message: snapshot_pb2.MetricsSnapshot, source: int) -> Iterator[tuple[str, str, str]]:
    """Field, reason and description of figures that cannot be."""
    if message.HasField("delivery") and source == snapshot_pb2.METRICS_SOURCE_ANALYTICS:
        yield "delivery", "NOT_MEASURED", "an analytics system does not measure delivery"
    delivery, outcome = message.delivery, message.outcome
    limits = (
        ("delivery.impressions", delivery.impressions, _MOST_COUNT),
        ("delivery.clicks", delivery.clicks, _MOST_COUNT),
        ("delivery.cost_micros", delivery.cost_micros, _MOST_MICROS),
        ("outcome.conversions_micros", outcome.conversions_micros, _MOST_MICROS),
        ("outcome.revenue_micros", outcome.revenue_micros, _MOST_MICROS),
    )
    for path, value, most in limits:
        if value > most:
            yield path, "INT64_LTE", f"must not be larger than {most}"


def _snapshot(message: snapshot_pb2.MetricsSnapshot, key: Key, campaign: CampaignDimension) -> Snapshot:
    delivery, outcome = message.delivery, message.outcome
    return Snapshot(
        key=key,
        project_id=campaign.project_id,
        platform=campaign.platform,
        currency=campaign.currency,
        delivery=Delivery(delivery.impressions, delivery.clicks, delivery.cost_micros)
        if message.HasField("delivery")
        else None,
        outcome=Outcome(outcome.conversions_micros, outcome.revenue_micros) if message.HasField("outcome") else None,
    )


def _changed(client_id: UUID, rows: list[Snapshot]) -> tuple[set[tuple[UUID, date]], set[tuple[UUID, int]]]:
    """Days, and instants of other days, that snapshots are about."""
    dates = {(client_id, datetime.fromtimestamp(row.key.start, UTC).date()) for row in rows if row.key.grain == "day"}
    return dates, {(client_id, row.key.start) for row in rows if row.key.grain == "hour"}


def _tomorrow(zone: str) -> date:
    """The day after today where the client is; of UTC if only PostgreSQL knows the zone."""
    try:
        known = ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        known = ZoneInfo("UTC")
    return datetime.now(known).date() + timedelta(days=1)


def _midnight(day: date) -> int:
    """Midnight UTC of a date, in Unix seconds: its label."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
