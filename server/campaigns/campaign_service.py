"""CampaignService: campaigns on advertising platforms."""

from typing import Final
from uuid import UUID

from google.protobuf.field_mask_pb2 import FieldMask

from mrm.campaigns.v1 import campaign_pb2
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from server.campaigns import batch, convert
from server.campaigns.cache import MOST_BYTES, CampaignCache, CampaignList
from server.rpc.call import Call, Mutation
from server.rpc.errors import NotFound
from server.rpc.paging import Page, Pager
from server.rpc.values import check_read_mask, masked, moment, optional_id, required_id
from storage.postgres import campaigns
from storage.postgres.database import Database

_ORDERS: Final = {
    pb.CAMPAIGN_ORDER_UNSPECIFIED: campaigns.OLDEST,
    pb.CAMPAIGN_ORDER_NEWEST: campaigns.NEWEST,
    pb.CAMPAIGN_ORDER_NAME: campaigns.BY_NAME,
    pb.CAMPAIGN_ORDER_LAST_CHANGED: campaigns.LAST_CHANGED,
    pb.CAMPAIGN_ORDER_MOST_SPENT: campaigns.MOST_SPENT,
}


class CampaignService:
    """Implements reading, making and changing campaigns of mrm.campaigns.v1.CampaignService.

    Args:
        database: Where campaigns live.
        pager: Makes page tokens.
        cache: Has the lists of projects.
    """

    def __init__(self, database: Database, pager: Pager, cache: CampaignCache) -> None:
        self._database = database
        self._pager = pager
        self._cache = cache

    async def CreateCampaign(self, request: pb.CreateCampaignRequest, call: Mutation) -> pb.CreateCampaignResponse:
        """Makes a campaign in state draft; the outbox carries it to ClickHouse."""
        return pb.CreateCampaignResponse(campaign=await batch.run_one(call, batch.creation(request.campaign)))

    async def GetCampaign(self, request: pb.GetCampaignRequest, call: Call) -> pb.GetCampaignResponse:
        """Reads one campaign."""
        check_read_mask(request.read_mask, campaign_pb2.Campaign)
        row = await campaigns.get(self._database, call.scope, UUID(request.campaign_id))
        if row is None:
            raise NotFound.resource("campaign", request.campaign_id)
        return pb.GetCampaignResponse(campaign=masked(convert.campaign(row), request.read_mask))

    async def ListCampaigns(self, request: pb.ListCampaignsRequest, call: Call) -> pb.ListCampaignsResponse | bytes:
        """Lists visible campaigns."""
        check_read_mask(request.read_mask, campaign_pb2.Campaign)
        page = self._pager.start(request, call)
        wanted = request.filter
        if wanted.project_id and wanted == pb.CampaignFilter(project_id=wanted.project_id) and not request.order_by:
            known = await self._cache.read(call.scope, UUID(wanted.project_id))
            if known is not None:
                return _cut(known, page, request.read_mask)
        order = _ORDERS[request.order_by]
        rows, next_token = page.cut(
            await campaigns.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                after=page.after,
                after_key=page.after_key,
                order=order,
                client_id=optional_id(wanted.client_id),
                project_id=optional_id(wanted.project_id),
                platforms=convert.PLATFORMS.optional_words(wanted.platforms),
                statuses=convert.CAMPAIGN_STATUSES.optional_words(wanted.statuses),
                plan_lineage_id=optional_id(wanted.media_plan_lineage_id),
                plan_channel_id=optional_id(wanted.plan_channel_id),
                integration_id=optional_id(wanted.integration_id),
                external_id=wanted.external_id or None,
                name_contains=wanted.name_contains or None,
                updated_since=moment(wanted.updated_since) if wanted.HasField("updated_since") else None,
            ),
            order.key,
        )
        response = pb.ListCampaignsResponse(next_page_token=next_token)
        size = 0
        for index, row in enumerate(rows):
            campaign = masked(convert.campaign(row), request.read_mask)
            size += campaign.ByteSize()
            if size > MOST_BYTES and index:
                last = rows[index - 1]
                response.next_page_token = page.token(last.id, "" if order.key is None else order.key(last))
                break
            response.campaigns.append(campaign)
        return response

    async def UpdateCampaign(self, request: pb.UpdateCampaignRequest, call: Mutation) -> pb.UpdateCampaignResponse:
        """Changes a campaign that is not archived."""
        return pb.UpdateCampaignResponse(campaign=await batch.run_one(call, change(request, "")))


def change(request: pb.UpdateCampaignRequest | pb.CampaignChange, prefix: str) -> batch.Operation:
    """The step that changes fields of a campaign.

    Raises:
        InvalidRequest: It names no campaign.
    """
    wanted = request.campaign
    campaign_id = required_id(wanted.campaign_id, f"{prefix}campaign.campaign_id")
    return batch.Operation("update", campaign_id, wanted, wanted.etag, request.update_mask)


def _cut(known: CampaignList, page: Page, mask: FieldMask) -> pb.ListCampaignsResponse | bytes:
    parts, last = known.page(page.after, page.size)
    token = "" if last is None else page.token(last)
    # Messages that follow each other are one message.
    data = b"".join((*parts, pb.ListCampaignsResponse(next_page_token=token).SerializeToString()))
    if not mask.paths:
        return data
    listed = pb.ListCampaignsResponse.FromString(data)
    return pb.ListCampaignsResponse(
        campaigns=[masked(campaign, mask) for campaign in listed.campaigns], next_page_token=token
    )
