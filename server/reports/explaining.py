"""What an analytical note has beside the figures: what their change is made of, unusual days, and budgets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import date, datetime
from fractions import Fraction
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from server.jobs.handling import Stores
from server.pacing import states
from server.pacing.arithmetic import Instant
from server.pacing.policies import holding
from server.pacing.states import State
from server.reports import analysis
from server.reports import days as unusual_days
from server.reports.measures import summed
from storage.clickhouse.metrics import Figures, Run
from storage.postgres import budget_policies, budgets
from storage.postgres.reports import Report
from storage.scope import EVERYTHING

Key = tuple[str, UUID, str]
"""Currency, campaign and platform."""


def _order(instant: Instant) -> tuple[date, Fraction]:
    return instant.day, instant.elapsed


def explain(
    data: dict[str, Any],
    report: Report,
    by_start: Mapping[int, date],
    runs: Mapping[Key, Run],
    over: date,
    pacing: list[dict[str, Any]],
) -> None:
    """Adds to the kept figures of an analytical note what explains them.

    Args:
        data: The figures, to which it is added.
        report: The report.
        by_start: Days by their start in Unix seconds.
        runs: Figures by currency, campaign and platform.
        over: All days before this one are over.
        pacing: How budgets are being spent.
    """
    for kept in data["currencies"]:
        campaigns = {
            (campaign_id, platform): {by_start[start]: figures for start, figures in run.items()}
            for (currency, campaign_id, platform), run in runs.items()
            if currency == kept["currency_code"]
        }
        parts: defaultdict[date, list[Figures]] = defaultdict(list)
        for some in campaigns.values():
            for day, figures in some.items():
                parts[day].append(figures)
        days = {day: summed(each) for day, each in parts.items()}
        kept["running_days"] = max(0, (report.end - max(report.start, over)).days + 1)
        kept["analysis"] = analysis.analysed(kept)
        kept["unusual"] = unusual_days.looked_at(days, campaigns, report.start, over)
        kept["pacing"] = [each for each in pacing if each["currency_code"] == kept["currency_code"]]


async def pacing(stores: Stores, report: Report, at: datetime) -> list[dict[str, Any]]:
    """How the budgets of the project were being spent at the end of the report, or are now if it has not ended.

    Args:
        stores: Where budgets and figures are.
        report: The report.
        at: Up to when figures are complete.
    """
    database = stores.database
    now = min(Instant.of(at, ZoneInfo(report.time_zone)), Instant(report.end, Fraction(1)), key=_order)
    projects = await budgets.projects(database, EVERYTHING, project_id=report.project_id)
    found = await states.look(database, stores.clickhouse, EVERYTHING, projects, now)
    policies = await budget_policies.of_client(database, EVERYTHING, report.client_id)
    rows = []
    for state in found.states:
        if state.level == "channel" or not state.budget:
            continue
        policy = holding(policies, report.client_id, state.campaign_id, stores.settings.alerts)
        rows.append(
            {
                "level": state.level,
                "id": str(state.campaign_id or state.media_plan_id or state.project_id),
                "display_name": state.name,
                "currency_code": state.currency,
                "date": now.day.isoformat(),
                "end_date": state.flight.end.isoformat() if state.flight else None,
                "budget_micros": state.budget,
                "spent_micros": state.spent,
                "planned_micros": state.planned,
                "projected_micros": state.projection.total if state.projection else None,
                "exhaustion_date": state.projection.exhaustion.isoformat()
                if state.projection and state.projection.exhaustion
                else None,
                "verdict": _verdict(state, policy.pacing_low_percent, policy.pacing_high_percent),
            }
        )
    return rows


def _verdict(state: State, low: int, high: int) -> str:
    """How a budget is being spent, within the band that the client's alerts have."""
    assert state.budget is not None
    if state.spent > state.budget:
        return "over"
    if not state.planned:
        return "unplanned"
    percent = Fraction(state.spent * 100, state.planned)
    return "behind" if percent < low else "ahead" if percent > high else "on_plan"
