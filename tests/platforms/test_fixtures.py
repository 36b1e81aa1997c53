"""The connectors pass what is documented of the platforms: they ask so, and read so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from server.platforms.interface import (
    Action,
    Amount,
    Attribution,
    AuthFailed,
    DesiredCampaign,
    Malformed,
    Moderation,
    NotReady,
    Payment,
    PlatformError,
    Refused,
    State,
    StatisticsQuery,
    Throttled,
)
from server.platforms.registry import Platforms
from tests.platforms.playing import Player, account, fixture, names, playing, strangers

D, V, M = "yandex_direct", "vk_ads", "yandex_metrika"
QUERY = StatisticsQuery(date(2026, 11, 1), date(2026, 11, 2), ("10002", "10007"), reading="1")
OUTCOMES = StatisticsQuery(date(2026, 11, 1), date(2026, 11, 2), goals=("20002",))


@pytest.fixture
async def player() -> AsyncIterator[Player]:
    async with playing() as made:
        yield made


@pytest.fixture
async def platforms(player: Player) -> AsyncIterator[Platforms]:
    made = Platforms.open(player.settings())
    yield made
    await made.close()


Ask = Callable[[Any, Any], Awaitable[Any]]


def roubles(value: str, vat: bool | None) -> Amount:
    return Amount(Decimal(value), "RUB", vat)


def _listed_direct(page: Any) -> None:
    first, second = page.campaigns
    assert page.next_page == "2"
    assert (first.external_id, first.name, first.state, first.moderation, first.payment) == (
        "10002", "Окна", State.RUNNING, Moderation.ACCEPTED, Payment.ALLOWED,
    )  # fmt: skip
    assert first.daily_budget == roubles("3000", None) and first.start_date == date(2026, 3, 1)
    assert (second.state, second.moderation, second.payment) == (
        State.SUSPENDED, Moderation.REJECTED, Payment.DISALLOWED,
    )  # fmt: skip
    assert "Отклонена модератором" in second.reasons and second.end_date == date(2026, 5, 1)
    assert second.daily_budget == roubles("500", None)


def _listed_vk(page: Any) -> None:
    first, second = page.campaigns
    assert page.next_page == "2"
    assert (first.state, first.moderation) == (State.RUNNING, Moderation.ACCEPTED)
    assert (first.daily_budget, first.total_budget) == (roubles("1000.50", False), roubles("5000", False))
    assert first.updated_at is not None and first.updated_at.utcoffset() == timedelta(hours=3)
    assert (second.state, second.moderation, second.daily_budget) == (State.SUSPENDED, Moderation.REJECTED, None)
    assert "BANNED" in second.reasons


def _report(found: Any) -> None:
    rows = [(each.external_id, each.date.day, each.impressions, each.clicks, each.cost.value) for each in found.rows]
    assert rows == [
        ("10002", 1, 1000, 21, Decimal("840.5")),
        ("10007", 1, 12, 13, Decimal(0)),
        ("10002", 2, 400, 8, Decimal("319.99")),
    ]
    assert {(each.cost.currency, each.cost.vat_included) for each in found.rows} == {("RUB", False)}
    assert {each.conversions for each in found.rows} == {None}


def _statistics_vk(found: Any) -> None:
    first, second = found.rows
    assert (first.impressions, first.clicks, first.cost) == (1000, 12, roubles("385.24", False))
    assert (second.date, second.impressions, second.cost) == (date(2026, 11, 2), 0, roubles("0", False))


def _outcomes(found: Any) -> None:
    assert [(each.external_id, each.date.day, each.conversions, each.revenue.value) for each in found.rows] == [
        ("10002", 1, Decimal(3), Decimal("4500.75")), ("10007", 2, Decimal(1), Decimal(0)),
    ]  # fmt: skip
    assert (found.goals, found.attribution) == (("20002",), Attribution.LAST_SIGNIFICANT_CLICK)


def _changes(found: Any) -> None:
    assert found.cursor == "2026-11-20T10:00:05Z" and not found.complete
    assert found.campaign_ids == ("10002",) and found.gone == ("4",)
    assert found.statistics_from == {"10007": date(2026, 11, 2)}


def _goals(found: Any) -> None:
    assert [(each.goal_id, each.name, each.value and each.value.value) for each in found] == [
        ("20002", "Заявка", None), ("20003", "Покупка", Decimal("1500.5")),
    ]  # fmt: skip


def _renewed(name: str, refresh: str = "refresh-2") -> Callable[[Any], None]:
    def check(found: Any) -> None:
        own = getattr(found, name)
        assert (own.refresh_token, found.expire_time.seconds > 0) == (refresh, True)
        assert "access-2" in (getattr(own, "access_token", ""), getattr(own, "oauth_token", ""))

    return check


NEW = DesiredCampaign(
    name="Новая", start_date=date(2099, 4, 1), daily_budget=Decimal("1000"), total_budget=Decimal(5000)
)
READS: dict[str, tuple[str, list[str], Ask, Callable[[Any], None]]] = {
    "direct check": (D, ["clients_get"], lambda c, a: c.check(a), lambda found: None),
    "direct list": (D, ["campaigns_get"], lambda c, a: c.list_campaigns(a), _listed_direct),
    "direct cursor": (D, ["changes_check_dictionaries"], lambda c, a: c.changes(a, ""), lambda found: _first(found)),
    "direct changes": (
        D, ["changes_check_campaigns", "changes_check"],
        lambda c, a: c.changes(a, "2026-11-19T10:00:00Z", campaign_ids=["10002", "10007", "4"]), _changes,
    ),
    "direct create": (
        D, ["campaigns_add"], lambda c, a: c.create_campaign(a, DesiredCampaign(name="Новая", daily_budget=Decimal(9))),
        lambda found: _is(found, "10010"),
    ),
    "direct update": (
        D, ["campaigns_update"], lambda c, a: c.update_campaign(a, "10002", DesiredCampaign(name="Окна и двери")),
        lambda found: None,
    ),
    "direct budget": (
        D, ["campaigns_get", "campaigns_update"],
        lambda c, a: c.update_campaign(a, "10002", DesiredCampaign(daily_budget=Decimal("100.50"))), lambda found: None,
    ),
    "direct suspend": (
        D, ["campaigns_suspend"], lambda c, a: c.act(a, Action.SUSPEND, ["10002", "4", "10007"]),
        lambda found: _is([(each.external_id, each.code) for each in found], [("4", "8800")]),
    ),
    "direct report": (D, ["clients_get", "report"], lambda c, a: c.statistics(a, QUERY), _report),
    "vk list": (V, ["ad_plans"], lambda c, a: c.list_campaigns(a), _listed_vk),
    "vk create": (V, ["ad_plans_create"], lambda c, a: c.create_campaign(a, NEW), lambda found: _is(found, "9826424")),
    "vk resume": (
        V, ["mass_action"], lambda c, a: c.act(a, Action.RESUME, ["6617841", "6711647"]), lambda found: _is(found, ()),
    ),
    "vk some unknown": (
        V, ["mass_action_unknown", "mass_action"], lambda c, a: c.act(a, Action.SUSPEND, ["144", "7", "42"]),
        lambda found: _is([each.external_id for each in found], ["144", "42"]),
    ),
    "vk statistics": (
        V, ["statistics_day"],
        lambda c, a: c.statistics(a, StatisticsQuery(date(2026, 11, 1), date(2026, 11, 2), ("6617841",))),
        _statistics_vk,
    ),
    "vk renewal": (V, ["oauth_token"], lambda c, a: c.refresh(a), _renewed("vk_ads", "refresh-1")),
    "direct renewal": (D, ["../yandex_oauth/token"], lambda c, a: c.refresh(a), _renewed("yandex_direct")),
    "metrika renewal": (M, ["../yandex_oauth/token"], lambda c, a: c.refresh(a), _renewed("yandex_metrika")),
    "metrika goals": (M, ["goals"], lambda c, a: c.goals(a), _goals),
    "metrika outcomes": (M, ["data"], lambda c, a: c.outcomes(a, OUTCOMES), _outcomes),
    "metrika sample": (
        M, ["data_sampled"], lambda c, a: c.outcomes(a, OUTCOMES), lambda found: _is(found.sampled, True),
    ),
}  # fmt: skip


def _is(found: object, wanted: object) -> None:
    assert found == wanted


def _first(found: Any) -> None:
    assert (found.cursor, found.complete) == ("2026-11-19T10:00:00Z", True)


@pytest.mark.parametrize("name", READS)
async def test_documented_answers_are_read_and_only_documented_fields_are_sent(
    name: str, player: Player, platforms: Platforms
) -> None:
    platform, played, ask, check = READS[name]
    player.queue = [fixture(f"{platform}/{each}".replace(f"{platform}/../", "")) for each in played]
    check(await ask(platforms.connector(platform), account(platform)))
    assert not player.strange and not player.queue


FAILS: dict[str, tuple[str, list[str], Ask, type[PlatformError], Callable[[Any], bool]]] = {
    "direct token": (
        D, ["error"], lambda c, a: c.check(a), AuthFailed, lambda error: error.renewable and error.code == 53,
    ),
    "direct item": (
        D, ["campaigns_add_refused"], lambda c, a: c.create_campaign(a, DesiredCampaign(name="Старая")), Refused,
        lambda error: [each.code for each in error.errors] == ["5005"],
    ),
    "direct queued": (
        D, ["clients_get", "report_queued"], lambda c, a: c.statistics(a, QUERY), NotReady,
        lambda error: error.retry_after == timedelta(seconds=40),
    ),
    "direct queue full": (
        D, ["clients_get", "report_queue_full"], lambda c, a: c.statistics(a, QUERY), Throttled,
        lambda error: error.code == 9000 and not isinstance(error, NotReady),
    ),
    "vk field": (
        V, ["ad_plans_invalid"], lambda c, a: c.create_campaign(a, DesiredCampaign()), Refused,
        lambda error: [each.code for each in error.errors] == ["validation_failed", "required"],
    ),
    "vk window": (
        V, ["statistics_refused"],
        lambda c, a: c.statistics(a, StatisticsQuery(date(2026, 1, 1), date(2026, 11, 2), ("6617841",))), Refused,
        lambda error: [each.code for each in error.errors] == ["ERR_LIMIT_EXCEEDED"],
    ),
    "vk limit": (
        V, ["limit_used_up"], lambda c, a: c.check(a), Throttled,
        lambda error: timedelta(0) < error.retry_after <= timedelta(hours=1),
    ),
    "vk token": (V, ["token_expired"], lambda c, a: c.check(a), AuthFailed, lambda error: error.renewable),
    "vk revoked": (V, ["token_revoked"], lambda c, a: c.check(a), AuthFailed, lambda error: not error.renewable),
    "refused renewal": (
        D, ["../yandex_oauth/refused"], lambda c, a: c.refresh(a), AuthFailed, lambda error: not error.renewable,
    ),
    "metrika token": (M, ["invalid_token"], lambda c, a: c.goals(a), AuthFailed, lambda error: error.renewable),
    "metrika right": (M, ["access_denied"], lambda c, a: c.goals(a), AuthFailed, lambda error: not error.renewable),
    "metrika quota": (
        M, ["quota"], lambda c, a: c.goals(a), Throttled, lambda error: error.retry_after == timedelta(seconds=1),
    ),
    "metrika day": (M, ["quota_of_the_day"], lambda c, a: c.goals(a), Throttled, lambda error: error.code == 420),
    "metrika parameter": (M, ["invalid_parameter"], lambda c, a: c.goals(a), Refused, lambda error: error.code == 400),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILS)
async def test_documented_errors_are_told_apart(name: str, player: Player, platforms: Platforms) -> None:
    platform, played, ask, error, holds = FAILS[name]
    player.queue = [fixture(f"{platform}/{each}".replace(f"{platform}/../", "")) for each in played]
    with pytest.raises(error) as caught:
        await ask(platforms.connector(platform), account(platform))
    assert holds(caught.value), caught.value
    assert not player.strange and not player.queue
    for text in ("сообщение", "OAuth token", "Access token", "token-1", "refresh-1", "expired", "too many dates"):
        assert text not in str(caught.value) and text not in repr(caught.value)


async def test_a_budget_of_a_period_is_not_replaced_by_a_weekly_one(player: Player, platforms: Platforms) -> None:
    found = fixture("yandex_direct/campaigns_get")
    search = found.response["body"]["result"]["Campaigns"][0]["TextCampaign"]["BiddingStrategy"]["Search"]
    period = {"SpendLimit": 9_000_000_000, "StartDate": "2026-11-01", "EndDate": "2026-11-30", "AutoContinue": "NO"}
    search["WbMaximumClicks"] |= {"WeeklySpendLimit": None, "CustomPeriodBudget": period}
    player.queue = [found, found]
    direct = platforms.campaigns(D)
    assert direct is not None
    (first, _) = (await direct.list_campaigns(account(D))).campaigns
    assert first.daily_budget is None
    with pytest.raises(Refused):
        await direct.update_campaign(account(D), "10002", DesiredCampaign(daily_budget=Decimal(100)))
    assert not player.strange and not player.queue


@pytest.mark.parametrize(
    "configuration",
    [{"TextCampaign": "x"}, {"TextCampaign": {"BiddingStrategy": {"Search": []}}}],
    ids=["campaign", "place"],
)
async def test_a_configuration_of_another_shape_is_refused_before_it_is_sent(
    configuration: dict[str, object], player: Player, platforms: Platforms
) -> None:
    direct = platforms.campaigns(D)
    assert direct is not None
    desired = DesiredCampaign(name="x", configuration=configuration)
    with pytest.raises(Refused, match="of the configuration"):
        await direct.create_campaign(account(D), desired)
    with pytest.raises(Refused, match="of the configuration"):
        await direct.update_campaign(account(D), "10002", desired)


@pytest.mark.parametrize("name", names())
def test_fixtures_hold_what_they_document(name: str) -> None:
    found = fixture(name)
    assert not strangers(found.response.get("body", {}), found.documented["response"])
    sent = found.request.get("body") or found.request.get("form") or found.request.get("query") or {}
    if "request" in found.documented:
        assert not strangers(sent, found.documented["request"])


COLUMNS = "Date\tCampaignId\tImpressions\tClicks\tCost\n"
DEFORMED = {
    "empty": "",
    "json": '{"result": {}}',
    "other columns": "Date\tCampaignId\tClicks\tCost\n",
    "too few values": f"{COLUMNS}2026-11-01\t10002\t1\t1\n",
    "another day": f"{COLUMNS}2026-11-09\t10002\t1\t1\t1\n",
    "negative": f"{COLUMNS}2026-11-01\t10002\t1\t-1\t1\n",
    "parts of a millionth": f"{COLUMNS}2026-11-01\t10002\t1\t1\t1.5\n",
    "twice": f"{COLUMNS}2026-11-01\t1\t1\t1\t1\n2026-11-01\t1\t1\t1\t1\n",
    "no campaign": f"{COLUMNS}2026-11-01\t--\t1\t1\t1\n",
}


@pytest.mark.parametrize("name", DEFORMED)
async def test_a_report_of_another_shape_is_malformed(name: str, player: Player, platforms: Platforms) -> None:
    report = fixture("yandex_direct/report")
    report.response["text"] = DEFORMED[name]  # type: ignore[index]
    player.queue = [fixture("yandex_direct/clients_get"), report]
    direct = platforms.campaigns(D)
    assert direct is not None
    with pytest.raises(Malformed):
        await direct.statistics(account(D), QUERY)
