"""CampaignService: campaigns on advertising platforms."""

from dataclasses import replace
from typing import Final
from uuid import UUID

from mrm.campaigns.v1 import campaign_service_pb2 as pb
from server.campaigns import convert
from server.campaigns.plan_binding import Wanted, bind
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, NotFound
from server.rpc.paging import Pager
from server.rpc.validation import validate
from server.rpc.values import apply_mask, check_etag, optional_id, required_id
from storage.postgres import campaigns, outbox, projects
from storage.postgres.database import Database

WRITABLE: Final = frozenset(
    {
        "display_name",
        "daily_budget",
        "total_budget",
        "external_id",
        "configuration",
        "media_plan_lineage_id",
        "plan_channel_id",
    }
)
# What a media plan has a say in.
_PLANNED: Final = frozenset({"*", "total_budget", "media_plan_lineage_id", "plan_channel_id"})


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
        planned = bool(wanted.media_plan_lineage_id or wanted.plan_channel_id)
        read = projects.get_for_update if planned else projects.get
        project = await read(call.tx, call.scope, UUID(wanted.project_id))
        if project is None:
            raise NotFound.resource("project", wanted.project_id)
        if project.status in ("completed", "archived"):
            raise FailedPrecondition(
                f"a project that is {project.status} takes no campaigns",
                metadata={"state": project.status, "wanted": "active"},
            )
        currency = wanted.currency_code or project.budget_currency
        columns = convert.writable(wanted, currency)
        if planned:
            columns |= await bind(
                call,
                Wanted(
                    campaign_id=None,
                    project_id=project.id,
                    name=columns["name"],
                    currency=currency,
                    budget_total=columns["budget_total"],
                    lineage_id=optional_id(wanted.media_plan_lineage_id),
                    channel_id=optional_id(wanted.plan_channel_id),
                    version=None,
                ),
            )
        row = await campaigns.create(
            call.tx,
            client_id=project.client_id,
            project_id=project.id,
            platform=convert.PLATFORMS.word(wanted.platform),
            currency=currency,
            **columns,
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
        planned = any(path.partition(".")[0] in _PLANNED for path in request.update_mask.paths)
        if planned:
            # The project is locked before the campaign, as everywhere; a campaign never changes its project.
            seen = await campaigns.get(call.tx, call.scope, campaign_id)
            if seen is not None:
                await projects.get_for_update(call.tx, call.scope, seen.project_id)
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
        columns = convert.writable(after, row.currency)
        if planned:
            wanted = Wanted(
                campaign_id=row.id,
                project_id=row.project_id,
                name=columns["name"],
                currency=row.currency,
                budget_total=columns["budget_total"],
                lineage_id=optional_id(after.media_plan_lineage_id),
                channel_id=optional_id(after.plan_channel_id),
                version=None,
            )
            if (wanted.lineage_id, wanted.channel_id) == (row.plan_lineage_id, row.plan_channel_id):
                wanted = replace(wanted, version=row.plan_version)
            columns |= await bind(call, wanted)
        stored = await campaigns.update(call.tx, call.scope, replace(row, **columns))
        if stored is None:
            raise NotFound.resource("campaign", str(campaign_id))
        campaign = convert.campaign(stored)
        entry = AuditEntry("update", "campaign", stored.id, stored.client_id, stored.project_id, before, campaign)
        await call.record(entry)
        return pb.UpdateCampaignResponse(campaign=campaign)
