"""The sandbox answers as documented, and the connectors live with everything that it does."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.platforms.interface import (
    Account,
    Action,
    Attribution,
    AuthFailed,
    DesiredCampaign,
    Malformed,
    Moderation,
    NotReady,
    PlatformError,
    Refused,
    State,
    StatisticsQuery,
    Throttled,
    Unavailable,
    split,
)
from server.platforms.registry import Platforms
from server.sandbox.figures import ZONE
from server.sandbox.sandbox import Sandbox
from server.sandbox.serving import serving
from tests.platforms.playing import account, fixture, strangers

D, V, M = "yandex_direct", "vk_ads", "yandex_metrika"
COUNTER = "44147844"
TODAY = datetime.now(ZONE).date()
WEEK = StatisticsQuery(TODAY - timedelta(days=7), TODAY - timedelta(days=1))


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with serving(Sandbox(moderation=timedelta(0), report=timedelta(seconds=0.2))) as made:
        yield made


@pytest.fixture
async def platforms(sandbox: Sandbox) -> AsyncIterator[Platforms]:
    made = Platforms.open(sandbox.settings(timeout=2))
    yield made
    await made.close()


def opened(sandbox: Sandbox, platform: Any, campaigns: int = 2, **more: Any) -> tuple[Account, list[str]]:
    """An account of the sandbox, as a connector knows it, and its campaigns."""
    name = COUNTER if platform == M else "agrom"
    made = sandbox.open(platform, name, campaigns=campaigns, **more)
    found = account(platform, made["access_token"], made["refresh_token"], key=platform)
    return found, [str(each) for each in made["campaign_ids"]]


# Documented requests, with the ids that they name replaced by ones that the sandbox has.
CONTRACT = [
    "yandex_direct/clients_get", "yandex_direct/campaigns_get", "yandex_direct/campaigns_add",
    "yandex_direct/campaigns_add_refused", "yandex_direct/campaigns_update", "yandex_direct/campaigns_suspend",
    "yandex_direct/changes_check_dictionaries", "yandex_direct/changes_check_campaigns", "yandex_direct/changes_check",
    "yandex_direct/report", "vk_ads/ad_plans", "vk_ads/ad_plans_create", "vk_ads/ad_plans_invalid",
    "vk_ads/mass_action",
    "vk_ads/mass_action_unknown", "vk_ads/statistics_day", "vk_ads/statistics_refused", "vk_ads/oauth_token",
    "yandex_oauth/token", "yandex_metrika/goals", "yandex_metrika/data",
]  # fmt: skip


@pytest.mark.parametrize("name", CONTRACT)
async def test_the_sandbox_takes_documented_requests_and_answers_documented_fields(sandbox: Sandbox, name: str) -> None:
    direct = sandbox.open("yandex_direct", "agrom", campaigns=2)
    vk = sandbox.open("vk_ads", "7", campaigns=2)
    counter = sandbox.open("yandex_metrika", COUNTER, sources=["yandex_direct:agrom"])
    sandbox.restate(direct["campaign_ids"][0], (TODAY - timedelta(days=3)).isoformat(), thousandths=900)
    goal = sandbox.state.accounts[f"yandex_metrika:{COUNTER}"].goals[0].goal_id
    found = fixture(name)
    text = json.dumps(found.request)
    for old, new in (
        ("10002", direct["campaign_ids"][0]), ("10007", direct["campaign_ids"][1]), ("6617841", vk["campaign_ids"][0]),
        ("6711647", vk["campaign_ids"][1]), ("20002", goal), ("2026-11-01", TODAY - timedelta(days=3)),
        ("2026-11-02", TODAY - timedelta(days=2)), ("2026-11-19T10:00:00Z", "2026-01-01T00:00:00Z"),
        ("refresh-1", (direct if name.startswith("yandex_oauth") else vk)["refresh_token"]),
    ):  # fmt: skip
        text = text.replace(old, str(new))
    request = json.loads(text)
    token = {"yandex_direct": direct, "vk_ads": vk, "yandex_metrika": counter, "yandex_oauth": direct}[
        name.split("/")[0]
    ]
    scheme = "OAuth" if name.startswith(M) else "Bearer"
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            request["method"], sandbox.url + request["path"], params=request.get("query"), json=request.get("body"),
            data=request.get("form"),
            headers={"Authorization": f"{scheme} {token['access_token']}", "skipReportHeader": "true",
                     "skipReportSummary": "true"},
        ) as response,
    ):  # fmt: skip
        body = await response.text()
        assert response.status == found.response["status"], body
    if "body" in found.response:
        answer = json.loads(body)
        assert set(answer) >= set(found.response["body"]), body
        assert not strangers(answer, found.documented["response"]), body
    elif found.response["text"]:
        assert body.splitlines()[0] == found.response["text"].splitlines()[0]


async def test_campaigns_live_on_both_platforms(sandbox: Sandbox, platforms: Platforms) -> None:
    for platform in (D, V):
        connector = platforms.campaigns(platform)
        assert connector is not None
        owner, ids = opened(sandbox, platform)
        made = await connector.create_campaign(owner, DesiredCampaign(name="Новая", daily_budget=Decimal("150.50")))
        (campaign,) = (await connector.list_campaigns(owner, ids=[made])).campaigns
        assert (campaign.name, campaign.state is State.RUNNING) == ("Новая", False)
        assert campaign.daily_budget is not None and campaign.daily_budget.value == Decimal("150.50")
        assert await connector.act(owner, Action.RESUME, [made]) == ()
        (campaign,) = (await connector.list_campaigns(owner, ids=[made])).campaigns
        assert (campaign.state, campaign.moderation) == (State.RUNNING, Moderation.ACCEPTED)
        sandbox.moderate(int(made), "rejected", "ALL_CAPS")
        (campaign,) = (await connector.list_campaigns(owner, ids=[made])).campaigns
        assert campaign.moderation is Moderation.REJECTED and campaign.reasons
        await connector.update_campaign(owner, made, DesiredCampaign(name="Другая", daily_budget=Decimal(7)))
        errors = await connector.act(owner, Action.SUSPEND, [made, "999"])
        assert [each.external_id for each in errors] == ["999"]
        assert await connector.act(owner, Action.ARCHIVE, [made]) == ()
        (campaign,) = (await connector.list_campaigns(owner, ids=[made])).campaigns
        assert (campaign.name, campaign.state) == ("Другая", State.ARCHIVED)
        everything = await connector.list_campaigns(owner)
        assert [each.external_id for each in everything.campaigns] == [*ids, made] and everything.next_page == ""
        with pytest.raises(Refused):
            await connector.update_campaign(owner, made, DesiredCampaign(name="Поздно"))
        with pytest.raises(Refused):
            await connector.create_campaign(owner, DesiredCampaign(start_date=date(2020, 1, 1)))


async def test_pages_hold_every_campaign_once(sandbox: Sandbox, platforms: Platforms) -> None:
    vk = platforms.campaigns(V)
    assert vk is not None
    owner, ids = opened(sandbox, V, campaigns=103)
    seen, page, pages = [], "", 0
    while pages == 0 or page:
        found = await vk.list_campaigns(owner, page=page)
        seen += [each.external_id for each in found.campaigns]
        page, pages = found.next_page, pages + 1
    assert (seen, pages) == (ids, 3)


async def test_figures_are_the_same_until_they_are_restated(sandbox: Sandbox, platforms: Platforms) -> None:
    for platform in (D, V):
        connector = platforms.campaigns(platform)
        assert connector is not None
        owner, ids = opened(sandbox, platform)
        query = replace(WEEK, campaign_ids=tuple(ids))
        first = await connector.statistics(owner, replace(query, reading="1"))
        assert (await connector.statistics(owner, replace(query, reading="2"))).rows == first.rows
        assert len(first.rows) == 14 and all(each.impressions and each.cost and each.cost.value for each in first.rows)
        changes = await connector.changes(owner, "")
        target = next(each for each in first.rows if each.external_id == ids[0])
        assert target.clicks is not None
        sandbox.restate(int(ids[0]), target.date.isoformat(), clicks=target.clicks - 5)
        later = await connector.statistics(owner, replace(query, reading="3"))
        assert {each for each in first.rows if each not in later.rows} == {target}
        (restated,) = [each for each in later.rows if each not in first.rows]
        assert restated.clicks == target.clicks - 5 and restated.cost and target.cost
        assert restated.cost.value < target.cost.value
        told = await connector.changes(owner, changes.cursor, campaign_ids=ids)
        assert told.complete or told.statistics_from == {ids[0]: target.date}


async def test_recent_days_settle_downwards(sandbox: Sandbox, platforms: Platforms) -> None:
    direct = platforms.campaigns(D)
    assert direct is not None
    owner, ids = opened(sandbox, D, campaigns=1)
    yesterday = TODAY - timedelta(days=1)
    query = StatisticsQuery(yesterday, yesterday, (ids[0],))
    counts = []
    for days in range(4):
        (row,) = (await direct.statistics(owner, replace(query, reading=str(days)))).rows
        counts.append(row.clicks)
        sandbox.advance(86_400)
    assert counts[0] > counts[1] > counts[2] == counts[3]


async def test_counters_give_conversions_by_campaign_model_and_hour(sandbox: Sandbox, platforms: Platforms) -> None:
    metrika = platforms.analytics(M)
    assert metrika is not None
    _, direct = opened(sandbox, D)
    _, vk = opened(sandbox, V)
    owner, _ = opened(sandbox, M, campaigns=0, sources=["yandex_direct:agrom", "vk_ads:agrom"])
    goals = [each.goal_id for each in await metrika.goals(owner)]
    found = await metrika.outcomes(owner, WEEK)
    assert {each.external_id for each in found.rows} == set(direct)
    assert set(found.goals) == set(goals) and found.attribution is Attribution.LAST_SIGNIFICANT_CLICK
    assert not found.sampled and sum(each.conversions or 0 for each in found.rows) > 0
    hourly = await metrika.outcomes(owner, replace(WEEK, hourly=True))
    assert _total(hourly) == _total(found) and {each.hour for each in hourly.rows} <= set(range(24))
    first = await metrika.outcomes(owner, replace(WEEK, attribution=Attribution.FIRST_CLICK))
    assert _total(first) < _total(found)
    tagged = await metrika.outcomes(owner, replace(WEEK, tagged=True))
    assert {each.external_id for each in tagged.rows} == {*direct, *vk}
    some = await metrika.outcomes(owner, replace(WEEK, tagged=True, campaign_ids=(direct[0], vk[1])))
    assert some.rows == tuple(each for each in tagged.rows if each.external_id in (direct[0], vk[1]))
    assert sandbox.asked[-1].query["filters"].endswith(f"UTMCampaign=.('{direct[0]}','{vk[1]}')")
    one = await metrika.outcomes(owner, replace(WEEK, goals=(goals[1],), campaign_ids=(direct[0],)))
    assert {each.external_id for each in one.rows} == {direct[0]} and one.goals == (goals[1],)


def _total(found: Any) -> Decimal:
    return sum((each.conversions for each in found.rows), Decimal(0))


async def test_long_reports_wait_in_a_queue_of_five(sandbox: Sandbox, platforms: Platforms) -> None:
    sandbox.report = timedelta(seconds=1)
    direct = platforms.campaigns(D)
    assert direct is not None
    owner, ids = opened(sandbox, D, campaigns=1)
    long = StatisticsQuery(TODAY - timedelta(days=50), TODAY - timedelta(days=1), (ids[0],))
    for number in range(5):
        with pytest.raises(NotReady):
            await direct.statistics(owner, replace(long, reading=str(number)))
    reports = len([each for each in sandbox.asked if each.path.endswith("reports")])
    with pytest.raises(Throttled) as caught:
        await direct.statistics(owner, replace(long, reading="too many"))
    # The sixth was not even asked for.
    assert not isinstance(caught.value, NotReady)
    assert len([each for each in sandbox.asked if each.path.endswith("reports")]) == reports
    sandbox.advance(2)
    for number in range(5):
        assert len((await direct.statistics(owner, replace(long, reading=str(number)))).rows) == 50


async def test_points_are_kept_for_halting_campaigns(sandbox: Sandbox, platforms: Platforms) -> None:
    direct = platforms.campaigns(D)
    assert direct is not None
    owner, ids = opened(sandbox, D)
    sandbox.limit("yandex_direct:agrom", points=3_000)
    await direct.list_campaigns(owner)
    asked = len(sandbox.asked)
    with pytest.raises(Throttled) as caught:
        await direct.list_campaigns(owner)
    assert len(sandbox.asked) == asked and timedelta(0) < caught.value.retry_after <= timedelta(hours=1)
    assert await direct.act(owner, Action.SUSPEND, ids) == ()
    sandbox.limit("yandex_direct:agrom", points=0)
    with pytest.raises(Throttled) as caught:
        await direct.act(owner, Action.RESUME, ids)
    assert caught.value.code == 152
    sandbox.advance(3_600)
    assert await direct.act(owner, Action.RESUME, ids) == ()


async def test_requests_of_vk_run_out(sandbox: Sandbox, platforms: Platforms) -> None:
    vk = platforms.campaigns(V)
    assert vk is not None
    owner, _ = opened(sandbox, V)
    sandbox.limit("vk_ads:agrom", requests=1)
    await vk.check(owner)
    asked = len(sandbox.asked)
    with pytest.raises(Throttled):
        await vk.check(owner)
    assert len(sandbox.asked) == asked
    with pytest.raises(Throttled) as caught:
        await vk.check(replace(owner, key="another process"))
    assert caught.value.code == 429


async def test_an_ended_token_can_be_renewed_once(sandbox: Sandbox, platforms: Platforms) -> None:
    opened(sandbox, D)
    for platform in (D, V, M):
        connector = platforms.connector(platform)
        owner, _ = opened(sandbox, platform, campaigns=0)
        name = f"{platform}:{COUNTER if platform == M else 'agrom'}"
        sandbox.expire(name)
        with pytest.raises(AuthFailed) as caught:
            await connector.check(owner)
        assert caught.value.renewable
        renewed = await connector.refresh(owner)
        assert renewed is not None
        assert renewed.WhichOneof("credentials") == platform and renewed.expire_time.seconds > 0
        await connector.check(Account("renewed", renewed))
        # The old pair is dead, also for a second renewal.
        with pytest.raises(AuthFailed):
            await connector.refresh(owner)
        sandbox.revoke(name)
        with pytest.raises(AuthFailed):
            await connector.refresh(Account("revoked", renewed))


MISDEEDS: list[tuple[str, type[PlatformError]]] = [
    ("cut", Unavailable), ("length", Malformed), ("huge", Malformed), ("garbage", Malformed), ("redirect", Malformed),
    ("500", Unavailable), ("503", Unavailable),
]  # fmt: skip


@pytest.mark.parametrize("platform", [D, V, M])
async def test_each_way_to_break_has_its_error(sandbox: Sandbox, platforms: Platforms, platform: str) -> None:
    connector = platforms.connector(platform)
    owner, _ = opened(sandbox, platform, campaigns=0)
    for how, error in MISDEEDS:
        sandbox.misbehave(how, platform=platform, times=-1)
        with pytest.raises(PlatformError) as caught:
            await connector.check(owner)
        assert type(caught.value) is error, (how, caught.value)
        sandbox.misbehave(how, platform=platform, times=0)
    await connector.check(owner)
    assert not [each for each in sandbox.asked if each.path == "/elsewhere"]


DIRECT_ERRORS: list[tuple[int, type[PlatformError]]] = [
    (52, Unavailable), (53, AuthFailed), (54, AuthFailed), (56, Throttled), (58, AuthFailed), (152, Throttled),
    (506, Throttled), (1000, Unavailable), (1001, Unavailable), (1002, Unavailable), (8000, Refused), (9000, Throttled),
]  # fmt: skip


async def test_errors_of_direct_come_with_status_200(sandbox: Sandbox, platforms: Platforms) -> None:
    connector = platforms.connector(D)
    owner, _ = opened(sandbox, D)
    for code, error in DIRECT_ERRORS:
        sandbox.misbehave(f"error {code}")
        with pytest.raises(PlatformError) as caught:
            await connector.check(owner)
        assert (type(caught.value), caught.value.code) == (error, code)


async def test_only_what_does_no_harm_is_asked_again(sandbox: Sandbox, platforms: Platforms) -> None:
    for repeats, platform in enumerate((V, D), 1):
        connector = platforms.campaigns(platform)
        assert connector is not None
        owner, _ = opened(sandbox, platform)
        sandbox.asked.clear()
        sandbox.misbehave("cut")
        await connector.list_campaigns(owner)
        assert len(sandbox.asked) == 2 and platforms.http.repeated[sandbox.url] == repeats
        for how in ("cut", "503", "length", "garbage", *(["error 1000"] if platform == D else [])):
            sandbox.asked.clear()
            sandbox.misbehave(how)
            with pytest.raises(Unavailable) as caught:
                await connector.create_campaign(owner, DesiredCampaign(name="Одна"))
            assert caught.value.uncertain and len(sandbox.asked) == 1
    owner, _ = opened(sandbox, V)
    gone = Platforms.open(sandbox.settings().model_copy(update={"vk_ads_url": "http://127.0.0.1:9"}))
    try:
        with pytest.raises(Unavailable) as caught:
            await gone.campaigns(V).create_campaign(owner, DesiredCampaign(name="x"))  # type: ignore[union-attr]
        assert not caught.value.uncertain
    finally:
        await gone.close()


async def test_a_slow_platform_costs_bounded_time(sandbox: Sandbox) -> None:
    platforms = Platforms.open(sandbox.settings(timeout=0.2))
    owner, _ = opened(sandbox, V)
    try:
        sandbox.misbehave("slow", times=-1)
        async with asyncio.timeout(2):
            with pytest.raises(Unavailable):
                await platforms.connector(V).check(owner)
    finally:
        await platforms.close()


async def test_an_account_is_asked_five_times_at_once_at_most(sandbox: Sandbox, platforms: Platforms) -> None:
    owner, _ = opened(sandbox, D)
    under_way = most = 0
    ask = platforms.http.ask

    async def counted(request: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        answer = await ask(request)
        under_way -= 1
        return answer

    platforms.http.ask = counted  # type: ignore[method-assign]
    await asyncio.gather(*(platforms.connector(D).check(owner) for _ in range(12)))
    assert most == 5


async def test_no_secret_is_shown_or_logged(
    sandbox: Sandbox, platforms: Platforms, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = []
    for platform in (D, V, M):
        connector = platforms.connector(platform)
        owner = account(platform, "secret-access", "secret-refresh")
        texts += [repr(owner), str(owner)]
        for ask in (connector.check, connector.refresh):
            with pytest.raises(PlatformError) as caught:
                await ask(owner)
            texts += [str(caught.value), repr(caught.value), repr(caught.value.__context__)]
    assert [each for each in sandbox.asked if "secret-access" in each.headers.get("Authorization", "")]
    for text in [*texts, caplog.text]:
        assert "secret-" not in text


async def test_the_control_api_and_the_kept_state(tmp_path: Path) -> None:
    path = tmp_path / "sandbox.json"
    async with serving(Sandbox(path=path)) as sandbox, aiohttp.ClientSession() as session:

        async def control(what: str, **arguments: Any) -> tuple[int, Any]:
            async with session.post(f"{sandbox.url}/sandbox/{what}", json=arguments) as response:
                return response.status, await response.json()

        status, made = await control("open", platform="vk_ads", name="7", campaigns=2)
        assert status == 200
        number = made["campaign_ids"][0]
        assert await control("restate", campaign_id=number, day="2026-11-01", thousandths=940) == (200, {})
        _, moderated = await control("moderate", campaign_id=number, verdict="rejected", reason="x")
        assert moderated == {"verdict": "rejected"}
        assert (await control("advance", seconds=60))[0] == 200
        for what, wrong in (
            ("restate", {"campaign_id": 1, "day": "2026-11-01"}), ("restate", {"campaign_id": number, "day": "x"}),
            ("misbehave", {"how": "x"}), ("save", {}), ("open", {"nothing": 1}),
        ):  # fmt: skip
            status, answer = await control(what, **wrong)
            assert status == 400 and answer["error"]
        async with session.get(f"{sandbox.url}/sandbox/state") as response:
            shown = await response.text()
        assert made["access_token"] not in shown and str(number) in shown
    assert path.stat().st_mode & 0o777 == 0o600
    again = Sandbox(path=path)
    assert again.state == sandbox.state and made["access_token"] in again.state.tokens


async def test_questions_are_cut_to_what_a_platform_takes(platforms: Platforms) -> None:
    vk = platforms.connector(V).capabilities
    ids = tuple(str(number) for number in range(450))
    whole = StatisticsQuery(date(2026, 1, 1), date(2026, 7, 20), ids, reading="r")
    parts = list(split(vk, whole))
    assert len(parts) == 9
    assert all(len(each.campaign_ids) <= 200 and (each.last - each.first).days < 92 for each in parts)
    days = {
        each.first + timedelta(days=number) for each in parts for number in range((each.last - each.first).days + 1)
    }
    assert len(days) == 201 and {one for each in parts for one in each.campaign_ids} == set(ids)
    assert sum((each.last - each.first).days + 1 for each in parts) == 201 * 3
    assert [each.first for each in parts] == sorted(each.first for each in parts)
    assert list(split(vk, replace(whole, campaign_ids=(), last=whole.first))) == [
        replace(whole, campaign_ids=(), last=whole.first)
    ]


async def test_every_platform_is_what_it_says(platforms: Platforms) -> None:
    assert platforms.words == (D, V, M)
    for word in platforms.words:
        able = platforms.connector(word).capabilities
        assert able.campaigns == able.delivery == (platforms.campaigns(word) is not None)
        assert able.outcomes == (platforms.analytics(word) is not None)
