"""AlertService: what needs attention, and who takes care of it."""

from uuid import UUID

from mrm.operations.v1 import alert_pb2
from mrm.operations.v1 import alert_service_pb2 as pb
from server.alerts import convert
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, NotFound
from server.rpc.paging import Pager
from server.rpc.values import check_etag, optional_id
from storage.postgres import alerts
from storage.postgres.alerts import Alert
from storage.postgres.database import Database


class AlertService:
    """Implements mrm.operations.v1.AlertService.

    Args:
        database: Where alerts live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def ListAlerts(self, request: pb.ListAlertsRequest, call: Call) -> pb.ListAlertsResponse:
        """Lists alerts, newest first."""
        page = self._pager.start(request, call)
        wanted = request.filter
        rows, next_token = page.cut(
            await alerts.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                before=page.after,
                client_id=optional_id(wanted.client_id),
                project_id=optional_id(wanted.project_id),
                campaign_id=optional_id(wanted.campaign_id),
                integration_id=optional_id(wanted.integration_id),
                kinds=convert.KINDS.optional_words(wanted.kinds),
                severities=convert.SEVERITIES.optional_words(wanted.severities),
                statuses=convert.STATUSES.optional_words(wanted.statuses),
            )
        )
        return pb.ListAlertsResponse(alerts=[convert.alert(row) for row in rows], next_page_token=next_token)

    async def GetAlert(self, request: pb.GetAlertRequest, call: Call) -> pb.GetAlertResponse:
        """Reads one alert."""
        row = await alerts.get(self._database, call.scope, UUID(request.alert_id))
        if row is None:
            raise NotFound.resource("alert", request.alert_id)
        return pb.GetAlertResponse(alert=convert.alert(row))

    async def AcknowledgeAlert(
        self, request: pb.AcknowledgeAlertRequest, call: Mutation
    ) -> pb.AcknowledgeAlertResponse:
        """Notes that somebody takes care of an alert."""
        before = await _locked(request, call)
        if before.status != "open":
            raise FailedPrecondition.transition("alert", before.status, "acknowledged")
        after = await alerts.acknowledge(call.tx, call.scope, before.id, _person(call), request.comment)
        return pb.AcknowledgeAlertResponse(alert=await _recorded(call, "acknowledge", before, after))

    async def ResolveAlert(self, request: pb.ResolveAlertRequest, call: Mutation) -> pb.ResolveAlertResponse:
        """Notes that somebody says an alert is over."""
        before = await _locked(request, call)
        if before.status == "resolved":
            raise FailedPrecondition.transition("alert", "resolved", "resolved")
        after = await alerts.resolve(call.tx, call.scope, before.id, _person(call), request.comment)
        return pb.ResolveAlertResponse(alert=await _recorded(call, "resolve", before, after))


async def _locked(request: pb.AcknowledgeAlertRequest | pb.ResolveAlertRequest, call: Mutation) -> Alert:
    row = await alerts.get_for_update(call.tx, call.scope, UUID(request.alert_id))
    if row is None:
        raise NotFound.resource("alert", request.alert_id)
    check_etag(request.etag, row.revision)
    return row


async def _recorded(call: Mutation, action: str, before: Alert, after: Alert | None) -> alert_pb2.Alert:
    if after is None:
        raise NotFound.resource("alert", str(before.id))
    message = convert.alert(after)
    await call.record(
        AuditEntry(action, "alert", after.id, after.client_id, after.project_id, convert.alert(before), message)
    )
    return message


def _person(call: Mutation) -> UUID | None:
    return call.principal.principal_id if call.principal.kind == "user" else None
