"""Who is told of an alert by e-mail, and what is said."""

from datetime import UTC
from uuid import UUID

from server.alerts import convert
from server.mail.letters import Amount, BudgetAlert, IntegrationAlert, Letter, ServiceAlert
from server.mail.post import tell
from storage.postgres import budget_policies, emails
from storage.postgres.alerts import Alert
from storage.postgres.database import Transaction
from storage.postgres.emails import Recipient
from storage.scope import EVERYTHING


async def tell_of_alert(tx: Transaction, alert: Alert, *, reminder: bool) -> int:
    """Has those told who can do something about an alert, each once for each time it is told.

    These are the Accountable and the Responsible of its project, or the project and account managers who are members
    of the client where no project has any, and the recipients that the client's policy names.

    Args:
        tx: The transaction in which it was seen.
        alert: The alert.
        reminder: Whether it was told before.

    Returns:
        How many are told.
    """
    client = None if alert.client_id is None else await emails.client_internal(tx, alert.client_id)
    if client is None or alert.client_id is None:
        # About the service itself: administrators see it in their list, and operators in the metrics.
        return 0
    name, language = client
    project = "" if alert.project_id is None else await emails.project_name_internal(tx, alert.project_id)
    return await tell(
        tx,
        _letter(alert, name, project, reminder),
        await _recipients(tx, alert.client_id, alert.project_id, alert.campaign_id),
        event_id=f"alert:{alert.id}:{alert.notified_at.astimezone(UTC):%Y%m%dT%H%M%S.%f}",
        language=language,
        client_id=alert.client_id,
    )


async def _recipients(
    tx: Transaction, client_id: UUID, project_id: UUID | None, campaign_id: UUID | None
) -> list[Recipient]:
    people = [] if project_id is None else await emails.team_internal(tx, project_id, "AR")
    people = people or await emails.keepers_internal(tx, client_id)
    policies = await budget_policies.of_client(tx, EVERYTHING, client_id, campaign_id)
    holding = [policy for policy in policies if policy.campaign_id in (None, campaign_id)][-1:]
    known = {each.address.lower() for each in people}
    named = {address.lower() for policy in holding for address in policy.recipient_emails}
    return people + [Recipient(address) for address in sorted(named - known)]


def _letter(alert: Alert, client: str, project: str, reminder: bool) -> Letter:
    details = convert.details(alert.details)
    match alert.kind:
        case "budget_threshold" | "budget_exhaustion" | "overspend" | "overpacing" | "underpacing":
            budget = details.budget
            return BudgetAlert(
                kind=alert.kind,
                reminder=reminder,
                client=client,
                project=project,
                name=budget.display_name,
                budget=Amount.of(budget.budget),
                spent=Amount.of(budget.spent),
                threshold_percent=budget.threshold_percent,
                planned=Amount.of(budget.planned_to_date) if budget.HasField("planned_to_date") else None,
                pacing=budget.pacing,
                exhaustion_date=budget.exhaustion_date,
                end_date=budget.end_date,
            )
        case "integration_error":
            found = details.integration
            return IntegrationAlert(
                reminder=reminder,
                client=client,
                platform=found.platform,
                account=found.platform_account_id,
                reason=found.reason,
            )
        case _:
            return ServiceAlert(
                kind=alert.kind,
                reminder=reminder,
                client=client,
                subject_line=alert.summary,
            )
