"""States of budgets and policies as messages."""

from mrm.campaigns.v1 import budget_pb2
from mrm.common.v1 import money_pb2, time_pb2
from server.pacing.arithmetic import Projection
from server.pacing.policies import Policy
from server.pacing.states import State
from server.rpc.values import EnumWords, etag
from server.statistics.figures import quotient

_LEVELS = EnumWords(budget_pb2.BudgetLevel, "BUDGET_LEVEL_")
_METHODS = EnumWords(budget_pb2.ProjectionMethod, "PROJECTION_METHOD_")
_SOURCES = EnumWords(budget_pb2.BudgetAlertPolicySource, "BUDGET_ALERT_POLICY_SOURCE_")


def status(state: State) -> budget_pb2.BudgetStatus:
    """A state."""

    def money(micros: int | None) -> money_pb2.Money | None:
        return None if micros is None else money_pb2.Money(currency_code=state.currency, micros=micros)

    flight = state.flight
    return budget_pb2.BudgetStatus(
        level=_LEVELS.number(state.level),
        project_id=str(state.project_id),
        media_plan_id=str(state.media_plan_id or ""),
        channel_id=str(state.channel_id or ""),
        campaign_id=str(state.campaign_id or ""),
        display_name=state.name,
        flight=None
        if flight is None
        else time_pb2.DateRange(start_date=flight.start.isoformat(), end_date=flight.end.isoformat()),
        budget=money(state.budget),
        spent=money(state.spent),
        planned_to_date=money(state.planned),
        pacing=None if state.planned is None else quotient(state.spent, state.planned),
        remaining=None if state.budget is None else money(state.budget - state.spent),
        spent_percent=None if state.budget is None else quotient(state.spent * 100, state.budget),
        projection=None if state.projection is None else _projection(state.projection, state.currency),
    )


def _projection(found: Projection, currency: str) -> budget_pb2.BudgetProjection:
    return budget_pb2.BudgetProjection(
        method=_METHODS.number(found.method),
        observed_days=found.observed_days,
        daily_average=money_pb2.Money(currency_code=currency, micros=found.daily_average),
        exhaustion_date="" if found.exhaustion is None else found.exhaustion.isoformat(),
        projected_total=None if found.total is None else money_pb2.Money(currency_code=currency, micros=found.total),
    )


def policy(found: Policy) -> budget_pb2.BudgetAlertPolicy:
    """A policy."""
    return budget_pb2.BudgetAlertPolicy(
        client_id="" if found.campaign_id else str(found.client_id),
        campaign_id=str(found.campaign_id or ""),
        etag=etag(found.revision),
        muted=found.muted,
        threshold_percents=found.threshold_percents,
        pacing_low_percent=found.pacing_low_percent,
        pacing_high_percent=found.pacing_high_percent,
        recipient_emails=found.recipient_emails,
        source=_SOURCES.number(found.source),
    )
