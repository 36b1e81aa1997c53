"""BackfillService: daily figures of the past, a month at a time."""

from __future__ import annotations

import asyncio
from uuid import UUID

from mrm.statistics.v1 import backfill_pb2, snapshot_pb2
from mrm.statistics.v1 import backfill_service_pb2 as pb
from mrm.statistics.v1.statistics_service_pb2 import AppendMetricsRequest
from server.rpc.call import Call
from server.rpc.errors import InvalidRequest, NotFound, Violation
from server.rpc.values import required_id, timestamp
from server.statistics.snapshots import SnapshotWriter
from storage.clickhouse import snapshots
from storage.clickhouse.connect import ClickHouse
from storage.postgres import backfills, clients
from storage.postgres.backfills import Chunk
from storage.postgres.database import Database

_MOST_FAULTS = 100


class BackfillService:
    """Implements mrm.statistics.v1.BackfillService.

    Args:
        database: Knows rights, and how far each file is.
        clickhouse: Holds the figures.
        writer: Checks and stores snapshots.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse, writer: SnapshotWriter) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._writer = writer
        # The past waits for its turn, so that the places of the writer are there for what is new.
        self._turn = asyncio.Lock()

    async def StoreBackfillChunk(
        self, request: pb.StoreBackfillChunkRequest, call: Call
    ) -> pb.StoreBackfillChunkResponse:
        """Stores a chunk unless it is stored already."""
        _check_days(request)
        client_id = required_id(request.client_id, "client_id")
        file = await backfills.begin(self._database, call.scope, client_id, request.fingerprint, request.source_name)
        if file is None:
            raise NotFound.resource("client", str(client_id))
        async with self._turn:
            known = await backfills.chunk(self._database, call.scope, file.id, request.month, request.part)
            if known is not None:
                return pb.StoreBackfillChunkResponse(chunk=_chunk(known), already_stored=True)
            reading = AppendMetricsRequest(
                client_id=str(client_id),
                source=snapshot_pb2.METRICS_SOURCE_BACKFILL,
                version=file.version,
                vat_included=request.vat_included,
                attribution_model=request.attribution_model,
                snapshots=request.snapshots,
            )
            rows = await self._writer.check(reading, call.scope)
            await self._writer.store(reading, rows)
            later = await snapshots.replaced(self._clickhouse, client_id, "backfill", file.version, rows)
            stored = Chunk(request.month, request.part, len(rows), later)
            await backfills.note(self._database, file.id, stored)
        return pb.StoreBackfillChunkResponse(chunk=_chunk(stored))

    async def GetBackfill(self, request: pb.GetBackfillRequest, call: Call) -> pb.GetBackfillResponse:
        """Tells how far a file is, and what is stored of it."""
        client_id = UUID(request.client_id)
        if not await clients.visible_ids(self._database, call.scope, [client_id]):
            raise NotFound.resource("client", str(client_id))
        file = await backfills.get(self._database, call.scope, client_id, request.fingerprint)
        if file is None:
            begun = backfill_pb2.Backfill(client_id=str(client_id), fingerprint=request.fingerprint)
            return pb.GetBackfillResponse(backfill=begun, totals=backfill_pb2.BackfillTotals())
        found = await backfills.chunks(self._database, call.scope, file.id)
        sums = await snapshots.sums(self._clickhouse, client_id, "backfill", file.version)
        return pb.GetBackfillResponse(
            backfill=backfill_pb2.Backfill(
                client_id=str(file.client_id),
                fingerprint=file.fingerprint,
                source_name=file.source_name,
                version=file.version,
                chunks=map(_chunk, found),
                create_time=timestamp(file.created_at),
            ),
            totals=backfill_pb2.BackfillTotals(
                snapshot_count=sums.snapshots,
                impressions=sums.impressions,
                clicks=sums.clicks,
                cost_micros=str(sums.cost_micros),
                conversions_micros=str(sums.conversions_micros),
                revenue_micros=str(sums.revenue_micros),
            ),
        )


def _check_days(request: pb.StoreBackfillChunkRequest) -> None:
    """Raises InvalidRequest for snapshots that are not of a day of the month."""
    faults = [
        Violation(f"snapshots[{index}].date", "OTHER_MONTH", "must be a day of the month")
        for index, snapshot in enumerate(request.snapshots)
        if not snapshot.date.startswith(f"{request.month}-")
    ]
    if faults:
        raise InvalidRequest("snapshots are not of the month, nothing is stored", violations=faults[:_MOST_FAULTS])


def _chunk(row: Chunk) -> backfill_pb2.BackfillChunk:
    return backfill_pb2.BackfillChunk(
        month=row.month, part=row.part, snapshot_count=row.snapshot_count, stale_count=row.stale_count
    )
