"""CampaignService's ties between campaigns here and those on their platforms."""

from dataclasses import replace
from uuid import UUID

from mrm.campaigns.v1 import campaign_service_pb2 as pb
from server.campaigns import convert
from server.rpc.call import AuditEntry, Mutation
from server.rpc.errors import FailedPrecondition, InvalidRequest, NotFound
from server.rpc.values import check_etag
from storage.postgres import campaigns, clients, integrations
from storage.postgres.campaigns import Campaign


class LinkRpcs:
    """Implements the links of mrm.campaigns.v1.CampaignService."""

    async def LinkExternalCampaign(
        self, request: pb.LinkExternalCampaignRequest, call: Mutation
    ) -> pb.LinkExternalCampaignResponse:
        """Ties a campaign to the one that it is on its platform."""
        row = await _locked(request.campaign_id, request.etag, call)
        if row.status == "archived":
            raise FailedPrecondition(
                "an archived campaign is read only", metadata={"state": "archived", "wanted": "linked"}
            )
        account = await integrations.get(call.tx, call.scope, UUID(request.integration_id))
        if account is None:
            raise NotFound.resource("integration", request.integration_id)
        if (row.integration_id, row.external_id) == (account.id, request.external_id):
            return pb.LinkExternalCampaignResponse(campaign=convert.campaign(row))
        if row.integration_id is not None:
            raise FailedPrecondition(
                "the campaign is linked already: unlink it first",
                metadata={"resource_type": "campaign", "state": "linked", "wanted": "linked"},
            )
        if account.platform != row.platform:
            raise InvalidRequest.field("integration_id", "PLATFORM_MISMATCH", f"is no account on {row.platform}")
        if account.client_id not in await clients.path_internal(call.tx, row.client_id):
            raise InvalidRequest.field(
                "integration_id", "ACCOUNT_FOREIGN", "is no account of the campaign's client or of an agency above it"
            )
        warnings = []
        if account.client_id != row.client_id:
            warnings.append(pb.LINK_WARNING_ACCOUNT_OF_AGENCY)
        if await campaigns.tracked_elsewhere(call.tx, call.scope, row, request.external_id):
            warnings.append(pb.LINK_WARNING_TRACKED_ELSEWHERE)
        if account.status != "connected":
            warnings.append(pb.LINK_WARNING_ACCOUNT_NOT_CONNECTED)
        linked = replace(row, integration_id=account.id, external_id=request.external_id)
        stored = await _stored(call, row, linked, "link")
        return pb.LinkExternalCampaignResponse(campaign=convert.campaign(stored), warnings=warnings)

    async def UnlinkExternalCampaign(
        self, request: pb.UnlinkExternalCampaignRequest, call: Mutation
    ) -> pb.UnlinkExternalCampaignResponse:
        """Unties a campaign."""
        row = await _locked(request.campaign_id, request.etag, call)
        if row.status not in ("draft", "paused"):
            raise FailedPrecondition.transition("campaign", row.status, "unlinked")
        if row.integration_id is None:
            return pb.UnlinkExternalCampaignResponse(campaign=convert.campaign(row))
        untied = replace(row, integration_id=None, external_id=None, observed={}, last_synced_at=None)
        stored = await _stored(call, row, untied, "unlink")
        return pb.UnlinkExternalCampaignResponse(campaign=convert.campaign(stored))


async def _locked(campaign_id: str, etag: str, call: Mutation) -> Campaign:
    row = await campaigns.get_for_update(call.tx, call.scope, UUID(campaign_id))
    if row is None:
        raise NotFound.resource("campaign", campaign_id)
    check_etag(etag, row.revision)
    return row


async def _stored(call: Mutation, before: Campaign, after: Campaign, action: str) -> Campaign:
    stored = await campaigns.update(call.tx, call.scope, after)
    if stored is None:
        raise NotFound.resource("campaign", str(before.id))
    entry = AuditEntry(
        action,
        "campaign",
        stored.id,
        stored.client_id,
        stored.project_id,
        convert.campaign(before),
        convert.campaign(stored),
    )
    await call.record(entry)
    return stored
