"""When a budget needs attention: the rule, as a table."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID

import pytest

from server.pacing.arithmetic import Flight, Instant, Projection
from server.pacing.conditions import sightings
from server.pacing.policies import Policy, holding
from server.pacing.states import State
from server.settings import AlertsSettings
from storage.postgres.budget_policies import BudgetPolicy

pytestmark = pytest.mark.bar_e

CLIENT, PROJECT, CAMPAIGN = UUID(int=1), UUID(int=2), UUID(int=3)
START, END = date(2026, 6, 1), date(2026, 6, 30)
POLICY = holding((), CLIENT, CAMPAIGN, AlertsSettings())


def state(spent: int, planned: int | None = 50, exhaustion: date | None = None, **fields: Any) -> State:
    values = {
        "level": "campaign", "project_id": PROJECT, "media_plan_id": None, "channel_id": None, "campaign_id": CAMPAIGN,
        "name": "Brand", "status": "active", "currency": "RUB", "flight": Flight(START, END), "budget": 100,
        "spent": spent, "planned": planned, "projection": Projection("run_rate_7_days", 7, 1, exhaustion, None),
        **fields,
    }  # fmt: skip
    return State(**values)


def found(state: State, policy: Policy = POLICY, day: int = 15) -> list[str]:
    now = Instant(START + timedelta(days=day - 1), Fraction(1, 2))
    return [
        f"{each.severity} {each.kind}" + (f" {each.dedupe_key.rsplit(':', 1)[1]}" if "threshold" in each.kind else "")
        for each in sightings(state, policy, CLIENT, now)
    ]


@pytest.mark.parametrize(
    ("spent", "expected"),
    [
        (0, ["warning underpacing"]),
        (34, ["warning underpacing"]),
        (35, []),
        (49, []),
        (50, ["info budget_threshold 50"]),
        (65, ["info budget_threshold 50"]),
        (66, ["info budget_threshold 50", "warning overpacing"]),
        (80, ["warning budget_threshold 80", "warning overpacing"]),
        (100, ["warning budget_threshold 100", "warning overpacing"]),
        (101, ["critical overspend"]),
    ],
)
def test_as_spending_rises(spent: int, expected: list[str]) -> None:
    assert found(state(spent)) == expected


@pytest.mark.parametrize(
    ("changes", "day", "expected"),
    [
        pytest.param({"budget": None}, 15, [], id="no-budget"),
        pytest.param({"budget": 0}, 15, [], id="budget-of-nothing"),
        pytest.param({"status": "archived"}, 15, [], id="archived"),
        pytest.param({}, 0, [], id="before-the-flight"),
        pytest.param({}, 1, ["critical overspend"], id="first-day"),
        pytest.param({}, 37, ["critical overspend"], id="settling-afterwards"),
        pytest.param({}, 38, [], id="history"),
        pytest.param({"flight": None, "planned": None}, 15, ["critical overspend"], id="no-dates"),
    ],
)
def test_when_it_matters(changes: dict[str, Any], day: int, expected: list[str]) -> None:
    assert found(state(150, **changes), day=day) == expected


@pytest.mark.parametrize(
    ("exhaustion", "expected"),
    [(END - timedelta(days=1), ["warning budget_exhaustion"]), (END, []), (None, [])],
    ids=["before-the-end", "on-the-last-day", "never"],
)
def test_a_budget_that_does_not_last(exhaustion: date | None, expected: list[str]) -> None:
    assert found(state(49, exhaustion=exhaustion)) == expected


def test_pacing_is_not_judged_on_the_first_day_nor_after_the_last() -> None:
    assert found(state(0), day=1) == []
    assert found(state(0), day=31) == []
    assert found(state(0), day=2) == ["warning underpacing"]


def test_thresholds_above_the_budget_are_told_beside_overspending() -> None:
    policy = replace(POLICY, threshold_percents=(50, 100, 120, 150))
    assert found(state(125), policy) == ["critical overspend", "warning budget_threshold 120"]


def test_whoever_is_muted_hears_nothing() -> None:
    assert found(state(150), replace(POLICY, muted=True)) == []


def test_a_sighting_carries_its_figures() -> None:
    now = Instant(START + timedelta(days=14), Fraction(1, 2))
    [seen] = sightings(state(52, exhaustion=END), POLICY, CLIENT, now)
    assert seen.dedupe_key == f"budget_threshold:campaign:{CAMPAIGN}:2026-06-01:50"
    assert seen.details["budget"] == {
        "display_name": "Brand",
        "budget": {"currency_code": "RUB", "micros": "100"},
        "spent": {"currency_code": "RUB", "micros": "52"},
        "threshold_percent": 50,
        "planned_to_date": {"currency_code": "RUB", "micros": "50"},
        "pacing": "1.04",
        "exhaustion_date": "2026-06-30",
        "end_date": "2026-06-30",
    }


def test_the_nearest_policy_holds() -> None:
    def row(campaign_id: UUID | None, percent: int) -> BudgetPolicy:
        return BudgetPolicy(
            CLIENT, CLIENT, None, campaign_id, False, [percent], 1, 2, [], 3, None, None,  # type: ignore[arg-type]
        )  # fmt: skip

    clients, own = row(None, 10), row(CAMPAIGN, 20)
    cases = [((), "default", 0), ((clients,), "client", 0), ((clients, own), "campaign", 3), ((own,), "campaign", 3)]
    for rows, source, revision in cases:
        policy = holding(rows, CLIENT, CAMPAIGN, AlertsSettings())
        assert (policy.source, policy.revision) == (source, revision)
    assert holding((clients, own), CLIENT, None, AlertsSettings()).threshold_percents == (10,)
