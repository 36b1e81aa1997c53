"""SyncService: how far accounts on platforms have been read, and what hurries it."""

from dataclasses import replace
from uuid import UUID

from mrm.campaigns.v1 import sync_pb2
from mrm.campaigns.v1 import sync_service_pb2 as pb
from server.campaigns import convert as campaigning
from server.operations import job_convert
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, InvalidRequest, NotFound
from server.rpc.paging import Pager
from server.rpc.values import check_etag, day
from server.sync import convert
from server.sync.making import enqueue
from storage.postgres import campaign_pushes, campaigns, clients, integrations, sync_streams
from storage.postgres.database import Database, Executor
from storage.postgres.integrations import Integration
from storage.postgres.sync_streams import StreamName

_PUSHES = 100
_STREAMS: dict[int, StreamName] = {
    sync_pb2.SYNC_STREAM_KIND_ENTITIES: "entities",
    sync_pb2.SYNC_STREAM_KIND_STATISTICS: "statistics",
}
# A counter has no campaigns of its own.
_COUNTERS = frozenset({"yandex_metrika"})


class SyncService:
    """Implements mrm.campaigns.v1.SyncService.

    Args:
        database: Where accounts and campaigns live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def SyncIntegration(self, request: pb.SyncIntegrationRequest, call: Mutation) -> pb.SyncIntegrationResponse:
        """Makes the jobs that read an account now."""
        row = await _found(call.tx, call, request.integration_id)
        _check_usable(row, "synchronised")
        wanted = [name for kind, name in _STREAMS.items() if kind in (request.streams or _STREAMS)]
        if row.platform in _COUNTERS:
            wanted = [name for name in wanted if name != "entities"]
        first = day(request.statistics_from_date, "statistics_from_date")
        if first is not None:
            await sync_streams.wish_internal(call.tx, row.id, first)
        requested_by = call.principal.principal_id if call.principal.kind == "user" else None
        made = [
            await enqueue(call.tx, row, name, requested_by=requested_by, urgent=True, trace_id=call.request_id)
            for name in wanted
        ]
        asked = pb.SyncIntegrationRequest(streams=request.streams, statistics_from_date=request.statistics_from_date)
        await call.record(AuditEntry("request_sync", "integration", row.id, row.client_id, None, None, asked))
        return pb.SyncIntegrationResponse(jobs=[job_convert.job(job) for job in made])

    async def GetSyncStatus(self, request: pb.GetSyncStatusRequest, call: Call) -> pb.GetSyncStatusResponse:
        """Tells how far an account has been read."""
        row = await _found(self._database, call, request.integration_id)
        streams = await sync_streams.of_integration(self._database, call.scope, row.id)
        counts = await sync_streams.counts_internal(self._database, row.id)
        pushes = await campaign_pushes.list_some(self._database, call.scope, row.id, _PUSHES)
        return pb.GetSyncStatusResponse(status=convert.status(row, streams, counts, pushes))

    async def ListUnlinkedCampaigns(
        self, request: pb.ListUnlinkedCampaignsRequest, call: Call
    ) -> pb.ListUnlinkedCampaignsResponse:
        """Lists campaigns of an account that nobody has linked."""
        page = self._pager.start(request, call)
        row = await _found(self._database, call, request.filter.integration_id)
        rows, next_token = page.cut(
            await sync_streams.unlinked(
                self._database,
                call.scope,
                row.id,
                limit=page.size + 1,
                after=page.after_key or None,
                name_contains=request.filter.name_contains or None,
            ),
            lambda each: each.external_id,
        )
        return pb.ListUnlinkedCampaignsResponse(
            campaigns=[convert.external(each) for each in rows], next_page_token=next_token
        )

    async def PublishCampaign(self, request: pb.PublishCampaignRequest, call: Mutation) -> pb.PublishCampaignResponse:
        """Has a draft created in an account."""
        row = await campaigns.get_for_update(call.tx, call.scope, UUID(request.campaign_id))
        if row is None:
            raise NotFound.resource("campaign", request.campaign_id)
        check_etag(request.etag, row.revision)
        account = await _found(call.tx, call, request.integration_id)
        if row.integration_id is not None or row.external_id is not None:
            raise FailedPrecondition(
                "the campaign is in an account, or has an id on its platform",
                metadata={"resource_type": "campaign", "state": "linked", "wanted": "published"},
            )
        if row.status != "draft":
            raise FailedPrecondition.transition("campaign", row.status, "published")
        if account.platform != row.platform:
            raise InvalidRequest.field("integration_id", "PLATFORM_MISMATCH", f"is no account on {row.platform}")
        if account.client_id not in await clients.path_internal(call.tx, row.client_id):
            raise InvalidRequest.field(
                "integration_id", "ACCOUNT_FOREIGN", "is no account of the campaign's client or of an agency above it"
            )
        _check_usable(account, "published")
        stored = await campaigns.update(call.tx, call.scope, replace(row, integration_id=account.id))
        if stored is None:
            raise NotFound.resource("campaign", request.campaign_id)
        await campaign_pushes.create_internal(call.tx, row.id, account.id)
        await enqueue(call.tx, account, "entities", urgent=True, trace_id=call.request_id)
        before, after = campaigning.campaign(row), campaigning.campaign(stored)
        await call.record(AuditEntry("publish", "campaign", row.id, row.client_id, row.project_id, before, after))
        return pb.PublishCampaignResponse(campaign=after)

    async def ConfigureSync(self, request: pb.ConfigureSyncRequest, call: Mutation) -> pb.ConfigureSyncResponse:
        """Replaces the settings of an account."""
        row = await integrations.get_for_update(call.tx, call.scope, UUID(request.integration_id))
        if row is None:
            raise NotFound.resource("integration", request.integration_id)
        check_etag(request.etag, row.revision)
        if row.paused:
            raise FailedPrecondition.archived("client")
        if len({each.goal_id for each in request.settings.goals}) < len(request.settings.goals):
            raise InvalidRequest.field("settings.goals", "GOAL_DUPLICATE", "name a goal twice")
        for index, each in enumerate(request.settings.goals):
            if each.HasField("value") and each.value.micros < 0:
                raise InvalidRequest.field(f"settings.goals[{index}].value", "INT64_GTE", "must not be negative")
        stored = await integrations.configure(call.tx, call.scope, row.id, convert.stored_settings(request.settings))
        if stored is None:
            raise NotFound.resource("integration", request.integration_id)
        before, after = convert.settings(row.settings), convert.settings(stored.settings)
        await call.record(AuditEntry("configure", "integration", row.id, row.client_id, None, before, after))
        return pb.ConfigureSyncResponse(settings=after)


async def _found(db: Executor, call: Call | Mutation, integration_id: str) -> Integration:
    row = await integrations.get(db, call.scope, UUID(integration_id))
    if row is None:
        raise NotFound.resource("integration", integration_id)
    return row


def _check_usable(row: Integration, wanted: str) -> None:
    if row.paused:
        raise FailedPrecondition.archived("client")
    if row.status != "connected":
        raise FailedPrecondition(
            f"the account is {row.status}",
            metadata={"resource_type": "integration", "state": row.status, "wanted": wanted},
        )
