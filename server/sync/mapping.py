"""A campaign's typed settings and its open configuration as the fields that its platform documents.

Yandex Direct: https://yandex.com/dev/direct/doc/en/campaigns/add-text-campaign, VK Ads:
https://ads.vk.com/en/doc/api/object/AdPlan. What the configuration says prevails, field by field. What is not set is
not sent, so the platform keeps what it has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from mrm.campaigns.v1 import platform_settings_pb2 as pb
from server.campaigns import platform_settings
from server.platforms.interface import Refused, from_micros, to_micros
from server.platforms.vk_ads import money

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Strategy:
    """An automatic strategy of Yandex Direct: its word, its settings' name, and what of ours these take."""

    word: str
    name: str
    price: str = ""
    goal: bool = False
    needs: tuple[str, ...] = ()


_OFF: Final = pb.YANDEX_DIRECT_STRATEGY_SERVING_OFF
_BY_HAND: Final = pb.YANDEX_DIRECT_STRATEGY_HIGHEST_POSITION
_AUTOMATIC: Final[Mapping[int, _Strategy]] = {
    pb.YANDEX_DIRECT_STRATEGY_MAXIMUM_CLICKS: _Strategy(
        "WB_MAXIMUM_CLICKS", "WbMaximumClicks", needs=("WeeklySpendLimit",)
    ),
    pb.YANDEX_DIRECT_STRATEGY_MAXIMUM_CONVERSIONS: _Strategy(
        "WB_MAXIMUM_CONVERSION_RATE", "WbMaximumConversionRate", goal=True, needs=("WeeklySpendLimit", "GoalId")
    ),
    pb.YANDEX_DIRECT_STRATEGY_AVERAGE_CPC: _Strategy("AVERAGE_CPC", "AverageCpc", "AverageCpc", needs=("AverageCpc",)),
    pb.YANDEX_DIRECT_STRATEGY_AVERAGE_CPA: _Strategy(
        "AVERAGE_CPA", "AverageCpa", "AverageCpa", goal=True, needs=("AverageCpa", "GoalId")
    ),
    pb.YANDEX_DIRECT_STRATEGY_PAY_FOR_CONVERSION: _Strategy(
        "PAY_FOR_CONVERSION", "PayForConversion", "Cpa", goal=True, needs=("Cpa", "GoalId")
    ),
    pb.YANDEX_DIRECT_STRATEGY_AVERAGE_CRR: _Strategy(
        "AVERAGE_CRR", "AverageCrr", goal=True, needs=("Crr", "GoalId")
    ),
}  # fmt: skip
# Several goals at once: those that PriorityGoals names.
_ALL_GOALS: Final = 13
_KINDS: Final[Mapping[int, str]] = {
    pb.YANDEX_DIRECT_CAMPAIGN_TYPE_TEXT: "TextCampaign",
    pb.YANDEX_DIRECT_CAMPAIGN_TYPE_UNIFIED: "UnifiedCampaign",
    pb.YANDEX_DIRECT_CAMPAIGN_TYPE_MOBILE_APP: "MobileAppCampaign",
    pb.YANDEX_DIRECT_CAMPAIGN_TYPE_DYNAMIC_TEXT: "DynamicTextCampaign",
    pb.YANDEX_DIRECT_CAMPAIGN_TYPE_CPM_BANNER: "CpmBannerCampaign",
    pb.YANDEX_DIRECT_CAMPAIGN_TYPE_SMART: "SmartCampaign",
}
_BIDDING: Final = (
    "search_strategy", "network_strategy", "placement", "weekly_budget", "target_price", "goal_ids",
)  # fmt: skip


def written(
    settings: Mapping[str, Any],
    configuration: Mapping[str, Any],
    daily_budget: Decimal | None,
    parts: Collection[str] | None,
) -> Fields:
    """The platform's fields that a campaign is to have.

    Args:
        settings: As stored.
        configuration: The platform's own fields.
        daily_budget: The campaign's: seven of it are Yandex Direct's weekly budget, whatever the settings say.
        parts: Which of ``settings`` and ``configuration`` changed; None for a campaign that is to be created.

    Raises:
        Refused: The platform cannot be told so.
    """
    if parts is not None and not {"settings", "configuration"} & set(parts):
        return {}
    message, creates = platform_settings.message(settings), parts is None
    match message.WhichOneof("platform"):
        case "yandex_direct":
            fields, whole = _direct(message.yandex_direct, configuration, daily_budget, creates)
        case "vk_ads":
            fields, whole = _vk(message.vk_ads, configuration, creates)
        case _:
            fields, whole = {}, dict(configuration)
    if parts is None:
        return whole
    # What neither changed nor stands in the same field need not be said again: it may have been changed there.
    told = (set(fields) if "settings" in parts else set()) | (set(configuration) if "configuration" in parts else set())
    return {name: value for name, value in whole.items() if name in told}


def _merged(ours: Mapping[str, Any], prevails: Mapping[str, Any]) -> Fields:
    """Both, field by field. Another strategy takes the place of ours whole: platforms refuse the settings of two."""
    word = "BiddingStrategyType"
    if word in ours and ours[word] != prevails.get(word, ours[word]):
        return dict(prevails)
    result = dict(ours)
    for name, value in prevails.items():
        mine = ours.get(name)
        result[name] = _merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return result


def _no(field: str, text: str) -> Refused:
    return Refused(f"settings.{field} {text}")


def _direct(
    own: pb.YandexDirectSettings, configuration: Mapping[str, Any], daily: Decimal | None, creates: bool
) -> tuple[Fields, Fields]:
    kind = _kind(own, configuration, creates)
    fields: Fields = {}
    if own.negative_keywords:
        fields["NegativeKeywords"] = {"Items": list(own.negative_keywords)}
    if own.time_zone:
        fields["TimeZone"] = own.time_zone
    text: Fields = {}
    if own.counter_ids:
        text["CounterIds"] = {"Items": list(own.counter_ids)}
    bidding, strategy = _bidding(own, daily)
    if bidding:
        text["BiddingStrategy"] = bidding
    if kind != "TextCampaign":
        for name in (*_BIDDING, "counter_ids"):
            if any(field.name == name for field, _ in own.ListFields()):
                raise _no(name, f"is sent for text campaigns only: say it in {kind} of the configuration")
    elif text:
        fields["TextCampaign"] = text
    whole = _merged(fields, configuration)
    if strategy is not None:
        _check(whole, strategy, creates)
    return fields, whole


def _kind(own: pb.YandexDirectSettings, configuration: Mapping[str, Any], creates: bool) -> str:
    """The name of the part of a campaign that is its kind's own."""
    said = [name for name in _KINDS.values() if name in configuration]
    if not own.campaign_type:
        return said[0] if said else "TextCampaign"
    kind = _KINDS.get(own.campaign_type)
    if kind is None:
        raise _no("campaign_type", "is of a later version")
    if creates and kind != "TextCampaign" and kind not in said:
        raise _no("campaign_type", f"wants {kind} in the configuration")
    return kind


def _bidding(own: pb.YandexDirectSettings, daily: Decimal | None) -> tuple[Fields, _Strategy | None]:
    """The strategies of both places, and the automatic one of them."""
    search, network = _places(own)
    shown = next((each for each in (search, network) if each and each != _OFF), None)
    strategy = None if shown is None else _AUTOMATIC.get(shown)
    weekly = to_micros(daily) * 7 if daily is not None else own.weekly_budget.micros
    values: Fields = {"WeeklySpendLimit": weekly} if weekly else {}
    # By hand there is a budget beside search results only.
    if own.HasField("weekly_budget") and strategy is None and search != _BY_HAND:
        raise _no("weekly_budget", "is part of a strategy, and none is set that takes it")
    if own.HasField("target_price"):
        if strategy is None or not strategy.price:
            raise _no("target_price", "is part of a strategy, and none is set that takes it")
        values[strategy.price] = own.target_price.micros
    if own.goal_ids:
        if strategy is None or not strategy.goal:
            raise _no("goal_ids", "are part of a strategy, and none is set that takes them")
        values["GoalId"] = own.goal_ids[0] if len(own.goal_ids) == 1 else _ALL_GOALS
    if not search:
        return {}, None
    if strategy is not None:
        first: Fields = {"BiddingStrategyType": strategy.word, strategy.name: values}
        second: Fields = {"BiddingStrategyType": "NETWORK_DEFAULT", "NetworkDefault": {}}
        second = first if search == _OFF else second
    else:
        first = {"BiddingStrategyType": "HIGHEST_POSITION", **({"HighestPosition": values} if values else {})}
        second = {"BiddingStrategyType": "MAXIMUM_COVERAGE"}
    off = {"BiddingStrategyType": "SERVING_OFF"}
    return {"Search": off if search == _OFF else first, "Network": off if network == _OFF else second}, strategy


def _places(own: pb.YandexDirectSettings) -> tuple[int, int]:
    """What is done in both places; zeros if nothing is said."""
    search, network = int(own.search_strategy), int(own.network_strategy)
    for name, said in (("search_strategy", search), ("network_strategy", network)):
        if said and said not in (_OFF, _BY_HAND, *_AUTOMATIC):
            raise _no(name, "is of a later version")
    wants: Mapping[int, tuple[bool, bool]] = {
        pb.YANDEX_DIRECT_PLACEMENT_SEARCH: (True, False),
        pb.YANDEX_DIRECT_PLACEMENT_NETWORK: (False, True),
        pb.YANDEX_DIRECT_PLACEMENT_SEARCH_AND_NETWORK: (True, True),
    }
    if own.placement:
        if own.placement not in wants:
            raise _no("placement", "is of a later version")
        in_search, in_network = wants[own.placement]
        search = (search or (network if in_network else 0)) if in_search else (search or _OFF)
        network = (network or (search if in_search else 0)) if in_network else (network or _OFF)
        if (bool(search) and search != _OFF, bool(network) and network != _OFF) != (in_search, in_network):
            raise _no("placement", "goes with strategies of just those places")
    elif search or network:
        search, network = search or _OFF, network or _OFF
    if search != network and _OFF not in (search, network):
        raise _no("network_strategy", "can be that of search or nothing: say two strategies in the configuration")
    return search, network


def _check(whole: Fields, strategy: _Strategy, creates: bool) -> None:
    """Refuses what the platform would, where the configuration does not make up for it."""
    text = _inner(whole, "TextCampaign")
    bidding = _inner(text, "BiddingStrategy")
    for place in (_inner(bidding, "Search"), _inner(bidding, "Network")):
        if place.get("BiddingStrategyType") != strategy.word:
            continue
        values = _inner(place, strategy.name)
        if values.get("GoalId") == _ALL_GOALS and not text.get("PriorityGoals"):
            raise _no("goal_ids", "are taken with their values only: say PriorityGoals in the configuration")
        missing = [name for name in strategy.needs if values.get(name) is None]
        if creates and missing:
            raise Refused(f"the strategy {strategy.word} wants {', '.join(missing)}")


def _inner(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside another; empty if the configuration has something else there, which the connector refuses."""
    found = holder.get(name)
    return found if isinstance(found, dict) else {}


def _vk(own: pb.VkAdsSettings, configuration: Mapping[str, Any], creates: bool) -> tuple[Fields, Fields]:
    fields: Fields = {}
    if own.objective:
        fields["objective"] = own.objective
    fields |= _vk_bidding(own)
    whole = _merged(fields, configuration)
    groups = whole.get("ad_groups")
    if creates and isinstance(groups, list):
        group = _vk_group(own)
        whole["ad_groups"] = [_merged(group, each) if isinstance(each, dict) else each for each in groups]
    return fields, whole


def _vk_bidding(own: pb.VkAdsSettings) -> Fields:
    price = money(from_micros(own.max_price.micros)) if own.HasField("max_price") else None
    match own.bidding:
        case pb.VK_ADS_BIDDING_UNSPECIFIED:
            return {} if price is None else {"max_price": price}
        case pb.VK_ADS_BIDDING_MAX_GOALS:
            if price is not None:
                raise _no("max_price", "does not go with a bidding that has none")
            return {"autobidding_mode": "max_goals", "max_price": "0"}
        case pb.VK_ADS_BIDDING_MAX_PRICE:
            if price is None:
                raise _no("bidding", "wants max_price")
            return {"autobidding_mode": "max_goals", "max_price": price}
        case _:
            raise _no("bidding", "is of a later version")


def _vk_group(own: pb.VkAdsSettings) -> Fields:
    """What groups are made with; a campaign itself has none of it."""
    group: Fields = {}
    if own.package_id:
        group["package_id"] = own.package_id
    if own.region_ids:
        group["targetings"] = {"geo": {"regions": list(own.region_ids)}}
    if own.utm:
        group |= {"enable_utm": True, "utm": own.utm}
    if own.age_mark:
        group["age_restrictions"] = own.age_mark
    return group
