"""Typed settings as the fields that platforms document, and what of them arrives there."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from mrm.campaigns.v1 import campaign_pb2, platform_settings_pb2, sync_service_pb2
from server.jobs.handling import Stores
from server.platforms.interface import Refused
from server.sandbox.state import Campaign
from server.sync.mapping import written
from tests.campaigns.places import rub as roubles
from tests.campaigns.places import update
from tests.conftest import World
from tests.sync.desk import ENTITIES, PLATFORMS, Platform, office

D, V = "yandex_direct", "vk_ads"
OFF = {"BiddingStrategyType": "SERVING_OFF"}
AS_SEARCH = {"BiddingStrategyType": "NETWORK_DEFAULT", "NetworkDefault": {}}
BOTH = "YANDEX_DIRECT_PLACEMENT_SEARCH_AND_NETWORK"


def rub(units: int) -> dict[str, str]:
    return {"currency_code": "RUB", "micros": str(units * 10**6)}


def settings(platform: str, fields: dict[str, Any]) -> platform_settings_pb2.PlatformSettings:
    return ParseDict({platform: fields}, platform_settings_pb2.PlatformSettings())


def created(
    platform: str, fields: dict[str, Any], configuration: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    kept = MessageToDict(settings(platform, fields), preserving_proto_field_name=True, use_integers_for_enums=True)
    return written(kept, configuration or {}, more.get("daily"), more.get("parts"))


def search(strategy: str, **fields: Any) -> dict[str, Any]:
    return {"search_strategy": f"YANDEX_DIRECT_STRATEGY_{strategy}", **fields}


def bids(first: dict[str, Any], second: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"TextCampaign": {"BiddingStrategy": {"Search": first, "Network": second or OFF}}}


def named(word: str, name: str, **values: Any) -> dict[str, Any]:
    return {"BiddingStrategyType": word, name: values}


CPC = named("AVERAGE_CPC", "AverageCpc", AverageCpc=5_000_000)
SENT: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "nothing": (D, {}, {}, {}),
    "negative keywords": (
        D, {"negative_keywords": ["даром", "free"]}, {}, {"NegativeKeywords": {"Items": ["даром", "free"]}},
    ),
    "time zone": (D, {"time_zone": "Asia/Omsk"}, {}, {"TimeZone": "Asia/Omsk"}),
    "counters": (D, {"counter_ids": [2**40, 7]}, {}, {"TextCampaign": {"CounterIds": {"Items": [2**40, 7]}}}),
    "regions are kept here": (D, {"region_ids": [213, -1]}, {}, {}),
    "text": (D, {"campaign_type": "YANDEX_DIRECT_CAMPAIGN_TYPE_TEXT"}, {}, {}),
    "off": (D, search("SERVING_OFF"), {}, bids(OFF)),
    "by hand": (D, search("HIGHEST_POSITION"), {}, bids({"BiddingStrategyType": "HIGHEST_POSITION"})),
    "by hand, budget": (
        D, search("HIGHEST_POSITION", weekly_budget=rub(70)), {},
        bids(named("HIGHEST_POSITION", "HighestPosition", WeeklySpendLimit=70_000_000)),
    ),
    "by hand everywhere": (
        D, search("HIGHEST_POSITION", placement=BOTH), {},
        bids({"BiddingStrategyType": "HIGHEST_POSITION"}, {"BiddingStrategyType": "MAXIMUM_COVERAGE"}),
    ),
    "clicks": (
        D, search("MAXIMUM_CLICKS", weekly_budget=rub(700)), {},
        bids(named("WB_MAXIMUM_CLICKS", "WbMaximumClicks", WeeklySpendLimit=700_000_000)),
    ),
    "conversions": (
        D, search("MAXIMUM_CONVERSIONS", weekly_budget=rub(700), goal_ids=[4]), {},
        bids(named("WB_MAXIMUM_CONVERSION_RATE", "WbMaximumConversionRate", WeeklySpendLimit=700_000_000, GoalId=4)),
    ),
    "price of a click": (D, search("AVERAGE_CPC", target_price=rub(5)), {}, bids(CPC)),
    "price of a conversion": (
        D, search("AVERAGE_CPA", target_price=rub(5), goal_ids=[4]), {},
        bids(named("AVERAGE_CPA", "AverageCpa", AverageCpa=5_000_000, GoalId=4)),
    ),
    "paid conversions": (
        D, search("PAY_FOR_CONVERSION", target_price=rub(5), goal_ids=[4]), {},
        bids(named("PAY_FOR_CONVERSION", "PayForConversion", Cpa=5_000_000, GoalId=4)),
    ),
    "share of cost": (
        D, search("AVERAGE_CRR", goal_ids=[4]), bids({"AverageCrr": {"Crr": 10}}),
        bids(named("AVERAGE_CRR", "AverageCrr", Crr=10, GoalId=4)),
    ),
    "several goals": (
        D, search("AVERAGE_CPA", target_price=rub(5), goal_ids=[4, 5]),
        {"TextCampaign": {"PriorityGoals": {"Items": [1]}}},
        {"TextCampaign": {
            **bids(named("AVERAGE_CPA", "AverageCpa", AverageCpa=5_000_000, GoalId=13))["TextCampaign"],
            "PriorityGoals": {"Items": [1]},
        }},
    ),
    "network": (
        D, {"network_strategy": "YANDEX_DIRECT_STRATEGY_AVERAGE_CPC", "target_price": rub(5)}, {}, bids(OFF, CPC),
    ),
    "network by hand": (
        D, {"network_strategy": "YANDEX_DIRECT_STRATEGY_HIGHEST_POSITION"}, {},
        bids(OFF, {"BiddingStrategyType": "MAXIMUM_COVERAGE"}),
    ),
    "the same in both": (
        D, search("AVERAGE_CPC", network_strategy="YANDEX_DIRECT_STRATEGY_AVERAGE_CPC", target_price=rub(5)), {},
        bids(CPC, AS_SEARCH),
    ),
    "placed in both": (D, search("AVERAGE_CPC", placement=BOTH, target_price=rub(5)), {}, bids(CPC, AS_SEARCH)),
    "placed beside results": (
        D, search("AVERAGE_CPC", placement="YANDEX_DIRECT_PLACEMENT_SEARCH", target_price=rub(5)), {}, bids(CPC),
    ),
    "another strategy prevails whole": (
        D, search("AVERAGE_CPC", target_price=rub(5)),
        bids(named("WEEKLY_CLICK_PACKAGE", "WeeklyClickPackage", ClicksPerWeek=9)),
        bids(named("WEEKLY_CLICK_PACKAGE", "WeeklyClickPackage", ClicksPerWeek=9)),
    ),
    "a field prevails": (
        D, {"time_zone": "Asia/Omsk", "counter_ids": [7]}, {"TimeZone": "Asia/Tomsk", "TextCampaign": {"Settings": []}},
        {"TimeZone": "Asia/Tomsk", "TextCampaign": {"CounterIds": {"Items": [7]}, "Settings": []}},
    ),
    "another kind": (
        D, {"campaign_type": "YANDEX_DIRECT_CAMPAIGN_TYPE_SMART", "time_zone": "Asia/Omsk"},
        {"SmartCampaign": {"CounterId": 7}},
        {"TimeZone": "Asia/Omsk", "SmartCampaign": {"CounterId": 7}},
    ),
    "objective": (V, {"objective": "appinstalls"}, {}, {"objective": "appinstalls"}),
    "as the budget gives": (
        V, {"bidding": "VK_ADS_BIDDING_MAX_GOALS"}, {}, {"autobidding_mode": "max_goals", "max_price": "0"},
    ),
    "at most a price": (
        V, {"bidding": "VK_ADS_BIDDING_MAX_PRICE", "max_price": rub(5)}, {},
        {"autobidding_mode": "max_goals", "max_price": "5.00"},
    ),
    "a price": (V, {"max_price": rub(5)}, {}, {"max_price": "5.00"}),
    "no groups": (V, {"package_id": 3, "region_ids": [188], "utm": "a=b", "age_mark": "18+"}, {}, {}),
    "groups": (
        V, {"package_id": 3, "region_ids": [188], "utm": "a=b", "age_mark": "18+"},
        {"ad_groups": [{"name": "x", "targetings": {"sex": ["male"]}}, {"package_id": 4}]},
        {"ad_groups": [
            {"package_id": 3, "targetings": {"geo": {"regions": [188]}, "sex": ["male"]}, "enable_utm": True,
             "utm": "a=b", "age_restrictions": "18+", "name": "x"},
            {"package_id": 4, "targetings": {"geo": {"regions": [188]}}, "enable_utm": True, "utm": "a=b",
             "age_restrictions": "18+"},
        ]},
    ),
    "vk's word prevails": (V, {"objective": "appinstalls"}, {"objective": "traffic"}, {"objective": "traffic"}),
    "another source": ("other", {"source": "tracker"}, {"a": 1}, {"a": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", SENT)
def test_settings_become_the_platforms_own_fields(name: str) -> None:
    platform, fields, configuration, expected = SENT[name]
    assert created(platform, fields, configuration) == expected


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "budget without strategy": (D, {"weekly_budget": rub(1)}, "settings.weekly_budget"),
    "price without strategy": (D, {"target_price": rub(1)}, "settings.target_price"),
    "price that is not taken": (D, search("MAXIMUM_CLICKS", target_price=rub(1)), "settings.target_price"),
    "goals without strategy": (D, {"goal_ids": [1]}, "settings.goal_ids"),
    "goals of no worth": (D, search("AVERAGE_CPA", target_price=rub(1), goal_ids=[1, 2]), "PriorityGoals"),
    "placement alone": (D, {"placement": BOTH}, "settings.placement"),
    "placement of another strategy": (
        D, search("AVERAGE_CPC", placement="YANDEX_DIRECT_PLACEMENT_NETWORK"), "settings.placement",
    ),
    "two strategies": (
        D, search("AVERAGE_CPC", network_strategy="YANDEX_DIRECT_STRATEGY_HIGHEST_POSITION"),
        "settings.network_strategy",
    ),
    "no weekly budget": (D, search("MAXIMUM_CLICKS"), "WeeklySpendLimit"),
    "no price and goal": (D, search("AVERAGE_CPA"), "AverageCpa, GoalId"),
    "no share": (D, search("AVERAGE_CRR", goal_ids=[1]), "Crr"),
    "a kind without its part": (D, {"campaign_type": "YANDEX_DIRECT_CAMPAIGN_TYPE_UNIFIED"}, "UnifiedCampaign"),
    "a later kind": (D, {"campaign_type": 77}, "settings.campaign_type"),
    "a later strategy": (D, {"search_strategy": 77}, "settings.search_strategy"),
    "a later placement": (D, {"placement": 77}, "settings.placement"),
    "a price that bidding has not": (
        V, {"bidding": "VK_ADS_BIDDING_MAX_GOALS", "max_price": rub(1)}, "settings.max_price",
    ),
    "bidding without its price": (V, {"bidding": "VK_ADS_BIDDING_MAX_PRICE"}, "settings.bidding"),
    "a later bidding": (V, {"bidding": 77}, "settings.bidding"),
    "parts of a kopeck": (V, {"max_price": {"currency_code": "RUB", "micros": "1234567"}}, "kopeck"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_platform_cannot_be_told_is_refused_by_name(name: str) -> None:
    platform, fields, text = REFUSED[name]
    with pytest.raises(Refused, match=text):
        created(platform, fields)


def test_another_kind_takes_no_bidding_of_text_campaigns() -> None:
    with pytest.raises(Refused, match=r"settings\.counter_ids is sent for text .*SmartCampaign"):
        created(D, {"counter_ids": [1]}, {"SmartCampaign": {}})


def test_seven_daily_budgets_are_the_weekly_one() -> None:
    made = created(D, search("MAXIMUM_CLICKS", weekly_budget=rub(9)), daily=Decimal("1.5"))
    assert made == bids(named("WB_MAXIMUM_CLICKS", "WbMaximumClicks", WeeklySpendLimit=10_500_000))


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        (["name"], set()),
        (["settings"], {"TimeZone", "TextCampaign"}),
        (["configuration"], {"TextCampaign", "ClientInfo"}),
        (["configuration", "settings"], {"TimeZone", "TextCampaign", "ClientInfo"}),
    ],
    ids=["name", "settings", "configuration", "both"],
)
def test_only_what_changed_is_said_again(parts: list[str], names: set[str]) -> None:
    configuration = {"ClientInfo": "x", "TextCampaign": {"Settings": []}}
    made = created(D, {"time_zone": "Asia/Omsk", "counter_ids": [7]}, configuration, parts=parts)
    assert set(made) == names
    assert made.get("TextCampaign") in (None, {"CounterIds": {"Items": [7]}, "Settings": []})


THERE: dict[Platform, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "yandex_direct": (
        search("AVERAGE_CPC", target_price=rub(5), counter_ids=[7], negative_keywords=["free"], region_ids=[213]),
        {**bids(CPC), "NegativeKeywords": {"Items": ["free"]}},
        search("MAXIMUM_CLICKS", weekly_budget=rub(70), counter_ids=[7], negative_keywords=["даром"], region_ids=[213]),
        {
            **bids(named("WB_MAXIMUM_CLICKS", "WbMaximumClicks", WeeklySpendLimit=70_000_000)),
            "NegativeKeywords": {"Items": ["даром"]},
        },
    ),
    "vk_ads": (
        {"objective": "appinstalls", "bidding": "VK_ADS_BIDDING_MAX_PRICE", "max_price": rub(5), "package_id": 3},
        {"objective": "appinstalls", "autobidding_mode": "max_goals", "max_price": "5.00", "ad_groups": []},
        {"objective": "appinstalls", "bidding": "VK_ADS_BIDDING_MAX_GOALS", "package_id": 3},
        {"objective": "appinstalls", "autobidding_mode": "max_goals", "max_price": "0", "ad_groups": []},
    ),
}


@pytest.mark.bar_e
@pytest.mark.parametrize("platform", THERE)
async def test_settings_arrive_there_with_the_campaign_and_when_they_change(
    world: World, stores: Stores, platform: Platform
) -> None:
    first, made, second, changed = THERE[platform]
    if platform == "yandex_direct":
        made["TextCampaign"]["CounterIds"] = changed["TextCampaign"]["CounterIds"] = {"Items": [7]}
    desk = await office(world, stores, platform, campaigns=0)
    campaign = await world.campaign(desk.project_id, platform=PLATFORMS[platform], settings=settings(platform, first))
    request = sync_service_pb2.PublishCampaignRequest(
        campaign_id=campaign.campaign_id, integration_id=desk.integration_id
    )
    await desk.admin.syncs.PublishCampaign(request, metadata=desk.admin.auth)

    async def there() -> Campaign:
        await desk.sync(ENTITIES)
        found: campaign_pb2.Campaign = await desk.campaign(campaign.campaign_id)
        assert (await desk.status()).pushes == []
        return desk.sandbox.found(int(found.external_id))[1]

    assert (await there()).configuration == made
    await update(world.admin, campaign.campaign_id, settings=settings(platform, second))
    [waiting] = (await desk.status()).pushes
    assert list(waiting.parts) == ["settings"]
    assert (await there()).configuration == changed
    if platform == "yandex_direct":
        # A budget and a strategy that change together: neither takes the other's place.
        await update(world.admin, campaign.campaign_id, daily_budget=roubles(20), settings=settings(platform, first))
        kept: Any = (await there()).configuration["TextCampaign"]
        assert kept["BiddingStrategy"]["Search"] == named(
            "AVERAGE_CPC", "AverageCpc", AverageCpc=5_000_000, WeeklySpendLimit=140_000_000
        )
