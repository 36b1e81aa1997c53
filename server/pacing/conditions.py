"""When the spending of a budget needs attention, as a pure rule."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final
from uuid import UUID

from mrm.common.v1 import money_pb2
from mrm.operations.v1 import alert_pb2
from server.alerts.convert import stored_details
from server.pacing.arithmetic import Instant
from server.pacing.policies import Policy
from server.pacing.states import State
from server.statistics.figures import quotient
from storage.postgres.alerts import AlertKind, Severity, Sighting

KINDS: Final[tuple[AlertKind, ...]] = (
    "budget_threshold",
    "budget_exhaustion",
    "overspend",
    "overpacing",
    "underpacing",
)
"""What budgets are told of; whatever of it is not seen any more is over."""

# What ended longer ago is history: restatements and backfills of it wake nobody.
_AFTERWARDS: Final = timedelta(days=7)
_WARNING_PERCENT: Final = 80


def sightings(state: State, policy: Policy, client_id: UUID, now: Instant) -> Iterator[Sighting]:
    """What of a state needs attention.

    Of the thresholds reached only the highest is told: whoever hears of 80 % knows about 50. Spending more than the
    budget is told instead of all thresholds up to 100. Pacing is looked at from the second day of a flight to its last.

    Args:
        state: Of a project or a campaign.
        policy: What is to be told.
        client_id: The client.
        now: When the state was read.
    """
    budget, flight, spent = state.budget, state.flight, state.spent
    if policy.muted or not budget or state.status == "archived":
        return
    if flight is not None and (now.day < flight.start or now.day > flight.end + _AFTERWARDS):
        return
    about = f"{state.level}:{state.campaign_id or state.project_id}:{'ever' if flight is None else flight.start}"

    def seen(kind: AlertKind, severity: Severity, summary: str, threshold: int = 0) -> Sighting:
        return Sighting(
            client_id=client_id,
            project_id=state.project_id,
            campaign_id=state.campaign_id,
            kind=kind,
            severity=severity,
            dedupe_key=f"{kind}:{about}:{threshold}" if threshold else f"{kind}:{about}",
            summary=f"{state.name}: {summary}",
            details=_details(state, threshold),
        )

    over = spent > budget
    if over:
        yield seen("overspend", "critical", "more is spent than the budget")
    reached = [
        each for each in policy.threshold_percents if spent * 100 >= budget * each and not (over and each <= 100)
    ]
    if reached:
        top = max(reached)
        severity: Severity = "warning" if top >= _WARNING_PERCENT else "info"
        yield seen("budget_threshold", severity, f"{top} % of the budget is spent", top)
    if flight is None or now.day > flight.end:
        return
    exhaustion = None if state.projection is None else state.projection.exhaustion
    if exhaustion is not None and exhaustion < flight.end and spent < budget:
        yield seen("budget_exhaustion", "warning", f"the budget is likely to be used up on {exhaustion}")
    if not state.planned or now.day == flight.start:
        return
    if spent * 100 > state.planned * policy.pacing_high_percent and not over:
        yield seen("overpacing", "warning", "spending runs ahead of the plan")
    if spent * 100 < state.planned * policy.pacing_low_percent:
        yield seen("underpacing", "warning", "spending stays behind the plan")


def _details(state: State, threshold: int) -> dict[str, object]:
    def money(micros: int | None) -> money_pb2.Money | None:
        return None if micros is None else money_pb2.Money(currency_code=state.currency, micros=micros)

    exhaustion = None if state.projection is None else state.projection.exhaustion
    details = alert_pb2.BudgetAlertDetails(
        display_name=state.name,
        budget=money(state.budget),
        spent=money(state.spent),
        threshold_percent=threshold,
        planned_to_date=money(state.planned),
        pacing=None if state.planned is None else quotient(state.spent, state.planned),
        exhaustion_date="" if exhaustion is None else exhaustion.isoformat(),
        end_date="" if state.flight is None else state.flight.end.isoformat(),
    )
    return dict(stored_details(alert_pb2.AlertDetails(budget=details)))
