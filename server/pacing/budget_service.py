"""BudgetService: how budgets are being spent, and when people are told about it."""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from mrm.campaigns.v1 import budget_service_pb2 as pb
from server.pacing import convert
from server.pacing.policies import holding
from server.pacing.states import look
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import EtagMismatch, FailedPrecondition, InvalidRequest, NotFound
from server.rpc.values import apply_mask, check_etag, timestamp
from server.settings import AlertsSettings
from server.statistics.watermark import WatermarkReader
from storage.clickhouse.connect import ClickHouse
from storage.errors import Invalid, StaleRevision
from storage.postgres import budget_policies, budgets, campaigns, clients, media_plans
from storage.postgres.database import Database, Executor
from storage.scope import Scope

_WRITABLE: Final = frozenset(
    {"muted", "threshold_percents", "pacing_low_percent", "pacing_high_percent", "recipient_emails"}
)


class BudgetService:
    """Implements mrm.campaigns.v1.BudgetService.

    Args:
        database: Knows budgets and policies.
        clickhouse: Knows the figures.
        settings: Policies where nobody has written one.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse, settings: AlertsSettings) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._settings = settings
        self._watermark = WatermarkReader(database)

    async def GetBudgetStatus(self, request: pb.GetBudgetStatusRequest, call: Call) -> pb.GetBudgetStatusResponse:
        """Tells how budgets are being spent."""
        kind = request.WhichOneof("target")
        assert kind is not None
        target = UUID(getattr(request, kind))
        project_id = await self._project_of(kind, target, call.scope)
        projects = await budgets.projects(self._database, call.scope, project_id=project_id)
        if not projects:
            raise NotFound.resource(kind.removesuffix("_id"), str(target))
        # Read before the figures, which may be newer than it but never older.
        at = await self._watermark.instant() or datetime.now(UTC)
        found = await look(
            self._database,
            self._clickhouse,
            call.scope,
            projects,
            at,
            media_plan_id=target if kind == "media_plan_id" else None,
            campaign_id=target if kind == "campaign_id" else None,
        )
        return pb.GetBudgetStatusResponse(
            statuses=[convert.status(state) for state in found.states],
            time_zone=projects[0].time_zone,
            watermark_time=timestamp(at),
        )

    async def _project_of(self, kind: str, target: UUID, scope: Scope) -> UUID:
        if kind == "project_id":
            return target
        if kind == "campaign_id":
            campaign = await campaigns.get(self._database, scope, target)
            if campaign is None:
                raise NotFound.resource("campaign", str(target))
            return campaign.project_id
        plan = await media_plans.get(self._database, scope, target)
        if plan is None:
            raise NotFound.resource("media_plan", str(target))
        return plan.project_id

    async def GetBudgetAlertPolicy(
        self, request: pb.GetBudgetAlertPolicyRequest, call: Call
    ) -> pb.GetBudgetAlertPolicyResponse:
        """Reads the policy that holds."""
        client_id, _, campaign_id = await _whose(self._database, call.scope, request.client_id, request.campaign_id)
        rows = await budget_policies.of_client(self._database, call.scope, client_id, campaign_id)
        return pb.GetBudgetAlertPolicyResponse(
            policy=convert.policy(holding(rows, client_id, campaign_id, self._settings))
        )

    async def UpdateBudgetAlertPolicy(
        self, request: pb.UpdateBudgetAlertPolicyRequest, call: Mutation
    ) -> pb.UpdateBudgetAlertPolicyResponse:
        """Writes the policy of a client or a campaign."""
        wanted = request.policy
        if bool(wanted.client_id) == bool(wanted.campaign_id):
            raise InvalidRequest.field("policy", "TARGET_AMBIGUOUS", "names a client or a campaign, and not both")
        client_id, project_id, campaign_id = await _whose(call.tx, call.scope, wanted.client_id, wanted.campaign_id)
        rows = await budget_policies.of_client(call.tx, call.scope, client_id, campaign_id)
        present = next((row for row in rows if row.campaign_id == campaign_id), None)
        before = convert.policy(holding(rows, client_id, campaign_id, self._settings))
        check_etag(wanted.etag, 0 if present is None else present.revision)
        merged = apply_mask(before, wanted, request.update_mask, _WRITABLE, "policy")
        if merged.pacing_low_percent >= merged.pacing_high_percent:
            raise InvalidRequest.field("policy.pacing_low_percent", "BAND_EMPTY", "must be below pacing_high_percent")
        try:
            stored = await budget_policies.put_internal(
                call.tx,
                present,
                client_id=client_id,
                project_id=project_id,
                campaign_id=campaign_id,
                muted=merged.muted,
                threshold_percents=sorted(merged.threshold_percents),
                pacing_low_percent=merged.pacing_low_percent,
                pacing_high_percent=merged.pacing_high_percent,
                recipient_emails=list(merged.recipient_emails),
            )
        except StaleRevision:
            raise EtagMismatch from None
        except Invalid as error:
            if error.constraint == "client_archived":
                raise FailedPrecondition.archived("client") from None
            raise
        after = convert.policy(holding([stored], client_id, campaign_id, self._settings))
        was = None if present is None else before
        await call.record(AuditEntry("update", "budget_alert_policy", stored.id, client_id, project_id, was, after))
        return pb.UpdateBudgetAlertPolicyResponse(policy=after)


async def _whose(db: Executor, scope: Scope, client_id: str, campaign_id: str) -> tuple[UUID, UUID | None, UUID | None]:
    """Client, project and campaign that a policy is for.

    Raises:
        NotFound: There is no such client or campaign in scope.
    """
    if campaign_id:
        campaign = await campaigns.get(db, scope, UUID(campaign_id))
        if campaign is None:
            raise NotFound.resource("campaign", campaign_id)
        return campaign.client_id, campaign.project_id, campaign.id
    client = await clients.get(db, scope, UUID(client_id))
    if client is None:
        raise NotFound.resource("client", client_id)
    return client.id, None, None
