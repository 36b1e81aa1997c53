"""CampaignService: campaigns on advertising platforms."""

from dataclasses import replace
from typing import Final
from uuid import UUID

from mrm.campaigns.v1 import campaign_service_pb2 as pb
from server.campaigns import convert
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, NotFound
from server.rpc.paging import Pager
from server.rpc.validation import validate
from server.rpc.values import apply_mask, check_etag, optional_id, required_id
from storage.postgres import campaigns, outbox, projects
from storage.postgres.database import Database

WRITABLE: Final = frozenset({"display_name", "daily_budget", "total_budget", "external_id", "configuration"})


class CampaignService:
    """Implements mrm.campaigns.v1.CampaignService.

    Args:
        database: Where campaigns live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def CreateCampaign(self, request: pb.CreateCampaignRequest, call: Mutation) -> pb.CreateCampaignResponse:
        """Makes a campaign in state draft; the outbox carries it to ClickHouse."""
        wanted = request.campaign
        project = await projects.get(call.tx, call.scope, UUID(wanted.project_id))
        if project is None:
            raise NotFound.resource("project", wanted.project_id)
        if project.status in ("completed", "archived"):
            raise FailedPrecondition(
                f"a project that is {project.status} takes no campaigns",
                metadata={"state": project.status, "wanted": "active"},
            )
        currency = wanted.currency_code or project.budget_currency
        row = await campaigns.create(
            call.tx,
            client_id=project.client_id,
            project_id=project.id,
            platform=convert.PLATFORMS.word(wanted.platform),
            currency=currency,
            **convert.writable(wanted, currency),
        )
        await outbox.append(call.tx, "campaign", str(row.id))
        campaign = convert.campaign(row)
        await call.record(AuditEntry("create", "campaign", row.id, row.client_id, row.project_id, None, campaign))
        return pb.CreateCampaignResponse(campaign=campaign)

    async def GetCampaign(self, request: pb.GetCampaignRequest, call: Call) -> pb.GetCampaignResponse:
        """Reads one campaign."""
        row = await campaigns.get(self._database, call.scope, UUID(request.campaign_id))
        if row is None:
            raise NotFound.resource("campaign", request.campaign_id)
        return pb.GetCampaignResponse(campaign=convert.campaign(row))

    async def ListCampaigns(self, request: pb.ListCampaignsRequest, call: Call) -> pb.ListCampaignsResponse:
        """Lists visible campaigns."""
        page = self._pager.start(request, call)
        wanted = request.filter
        rows, next_token = page.cut(
            await campaigns.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                after=page.after,
                client_id=optional_id(wanted.client_id),
                project_id=optional_id(wanted.project_id),
                platforms=convert.PLATFORMS.optional_words(wanted.platforms),
                statuses=convert.CAMPAIGN_STATUSES.optional_words(wanted.statuses),
            )
        )
        return pb.ListCampaignsResponse(campaigns=[convert.campaign(row) for row in rows], next_page_token=next_token)

    async def UpdateCampaign(self, request: pb.UpdateCampaignRequest, call: Mutation) -> pb.UpdateCampaignResponse:
        """Changes a campaign that is not archived."""
        campaign_id = required_id(request.campaign.campaign_id, "campaign.campaign_id")
        row = await campaigns.get_for_update(call.tx, call.scope, campaign_id)
        if row is None:
            raise NotFound.resource("campaign", str(campaign_id))
        check_etag(request.campaign.etag, row.revision)
        if row.status == "archived":
            raise FailedPrecondition(
                "an archived campaign is read only", metadata={"state": "archived", "wanted": "update"}
            )
        before = convert.campaign(row)
        after = apply_mask(before, request.campaign, request.update_mask, WRITABLE, "campaign")
        validate(after, "campaign")
        stored = await campaigns.update(call.tx, call.scope, replace(row, **convert.writable(after, row.currency)))
        if stored is None:
            raise NotFound.resource("campaign", str(campaign_id))
        campaign = convert.campaign(stored)
        entry = AuditEntry("update", "campaign", stored.id, stored.client_id, stored.project_id, before, campaign)
        await call.record(entry)
        return pb.UpdateCampaignResponse(campaign=campaign)
