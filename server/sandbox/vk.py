"""What stands in for VK Ads, API version 2."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from server.sandbox.figures import ZONE, Figures, daily
from server.sandbox.sandbox import Refusal, Sandbox
from server.sandbox.state import Account, Campaign

_STATUS = {"on": "active", "suspended": "blocked", "archived": "deleted"}
_STATES = {status: state for state, status in _STATUS.items()}
_VERDICTS = {"accepted": "ACTIVE", "rejected": "BANNED", "pending": "ON_MODERATION", "draft": "NEW_BANNERS"}
_READABLE = {
    "id", "name", "status", "vkads_status", "created", "updated", "budget_limit", "budget_limit_day", "date_start",
    "date_end", "objective", "autobidding_mode", "max_price",
}  # fmt: skip
_MOST_OBJECTS = 200
_MOST_DAYS = 92
_HISTORY_DAYS = 366


class Invalid(Refusal):
    """A field at fault."""

    def __init__(self, field: str, code: str) -> None:
        super().__init__("validation_failed", 400, "Validation failed")
        self.fields = {field: {"code": code, "message": f"about {field}"}}


def listed(account: Account, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of campaigns."""
    fields = query.get("fields", "id,name").split(",")
    unknown = [each for each in fields if each not in _READABLE]
    if unknown:
        raise Refusal("unknown_resource_fields", 400)
    size, offset = min(int(query.get("limit", "20")), 50), int(query.get("offset", "0"))
    ids = {int(each) for each in query["_id__in"].split(",")} if "_id__in" in query else None
    statuses = query["_status__in"].split(",") if "_status__in" in query else None
    found = [
        each
        for number, each in sorted(account.campaigns.items())
        if (ids is None or number in ids) and (statuses is None or _STATUS[each.state] in statuses)
    ]
    page = [{name: _shown(account, each)[name] for name in fields} for each in found[offset : offset + size]]
    return {"count": len(found), "offset": offset, "limit": size, "items": page}


def create(sandbox: Sandbox, account: Account, given: Mapping[str, Any]) -> dict[str, Any]:
    """Creates a campaign."""
    if not given.get("name"):
        raise Invalid("name", "required")
    if "ad_groups" not in given:
        raise Invalid("ad_groups", "required")
    made = sandbox.create(account, str(given["name"]))
    _write(made, given)
    sandbox.turn(made, _STATES[given.get("status", "active")])
    return {"id": made.campaign_id}


def change(sandbox: Sandbox, account: Account, campaign_id: int, given: Mapping[str, Any]) -> None:
    """Changes a campaign."""
    campaign = account.campaigns.get(campaign_id)
    if campaign is None:
        raise Refusal("not_found", 404)
    if campaign.state == "archived" and set(given) - {"status"}:
        raise Invalid(next(iter(set(given) - {"status"})), "read_only_field")
    _write(campaign, given)
    campaign.updated_at = sandbox.state.now()
    if "status" in given:
        sandbox.turn(campaign, _STATES[given["status"]])


def mass(sandbox: Sandbox, account: Account, given: object) -> None:
    """Changes many campaigns, or none."""
    if not isinstance(given, list) or not all(isinstance(each, dict) and "id" in each for each in given):
        raise Refusal("bad_items", 400)
    if len(given) > _MOST_OBJECTS:
        raise Refusal("limit_exceeded", 400, f"Too much items. Limit is {_MOST_OBJECTS}")
    unknown = [str(each["id"]) for each in given if each["id"] not in account.campaigns]
    if unknown:
        raise Refusal("unknown_ad_plans", 400, f"Unknown ad_plans: {', '.join(unknown)}")
    for each in given:
        change(sandbox, account, each["id"], {name: value for name, value in each.items() if name != "id"})


def statistics(sandbox: Sandbox, account: Account, query: Mapping[str, str]) -> dict[str, Any]:
    """Figures by day."""
    try:
        ids = [int(each) for each in query["id"].split(",")]
        first, last = date.fromisoformat(query["date_from"]), date.fromisoformat(query["date_to"])
    except (KeyError, ValueError):
        raise Refusal("ERR_WRONG_PARAMETER", 400) from None
    today = sandbox.state.now().astimezone(ZONE).date()
    if first > last or first < today - timedelta(days=_HISTORY_DAYS):
        raise Refusal("ERR_WRONG_DATE", 400)
    if len(ids) > _MOST_OBJECTS or (last - first).days >= _MOST_DAYS:
        raise Refusal("ERR_LIMIT_EXCEEDED", 400)
    if any(each not in account.campaigns for each in ids):
        raise Refusal("ERR_WRONG_ADPLANS", 400)
    items, whole = [], Figures()
    for number in ids:
        rows, total = [], Figures()
        for offset in range((last - first).days + 1):
            day = first + timedelta(days=offset)
            figures = daily(sandbox.state, account.campaigns[number], day)
            total = _plus(total, figures)
            rows.append({"date": day.isoformat(), "base": _base(figures)})
        whole = _plus(whole, total)
        items.append({"id": number, "rows": rows, "total": {"base": _base(total)}})
    return {"items": items, "total": {"base": _base(whole)}}


def _plus(one: Figures, other: Figures) -> Figures:
    return Figures(one.impressions + other.impressions, one.clicks + other.clicks, one.cost_micros + other.cost_micros)


def _base(figures: Figures) -> dict[str, Any]:
    return {
        "shows": figures.impressions,
        "clicks": figures.clicks,
        "goals": 0,
        "spent": _roubles(figures.cost_micros),
        "cpm": _roubles(figures.cost_micros * 1_000 // figures.impressions) if figures.impressions else "0",
        "cpc": _roubles(figures.cost_micros // figures.clicks) if figures.clicks else "0",
        "cpa": "0",
        "ctr": round(figures.clicks * 100 / figures.impressions, 6) if figures.impressions else 0,
        "cr": 0,
        "vk": {"goals": 0, "cpa": "0", "cr": 0},
    }


def _roubles(micros: int) -> str:
    return f"{Decimal(micros).scaleb(-6).quantize(Decimal('0.01')):f}"


def _time(at: datetime) -> str:
    return at.astimezone(ZONE).strftime("%Y-%m-%d %H:%M:%S")


def _shown(account: Account, campaign: Campaign) -> dict[str, Any]:
    word = _VERDICTS[campaign.verdict] if account.funds else "NO_MONEY"
    return {
        "id": campaign.campaign_id,
        "name": campaign.name,
        "status": _STATUS[campaign.state],
        "vkads_status": {"status": _STATUS[campaign.state].upper(), "major_status": word, "codes": [word]},
        "created": _time(campaign.created_at.astimezone(UTC)),
        "updated": _time(campaign.updated_at),
        "budget_limit": _roubles(campaign.total_micros) if campaign.total_micros else None,
        "budget_limit_day": _roubles(campaign.daily_micros) if campaign.daily_micros else None,
        "date_start": campaign.start.isoformat() if campaign.start else None,
        "date_end": campaign.end.isoformat() if campaign.end else None,
        "objective": campaign.configuration.get("objective", "traffic"),
        "autobidding_mode": campaign.configuration.get("autobidding_mode"),
        "max_price": campaign.configuration.get("max_price"),
    }


def _write(campaign: Campaign, given: Mapping[str, Any]) -> None:
    for name, field in (("budget_limit_day", "daily_micros"), ("budget_limit", "total_micros")):
        if given.get(name) is not None:
            try:
                amount = Decimal(str(given[name]))
            except InvalidOperation:
                raise Invalid(name, "bad_value") from None
            if amount < -1:
                raise Invalid(name, "min_value")
            setattr(campaign, field, max(0, int(amount.scaleb(6))))
    campaign.name = str(given.get("name", campaign.name))
    for name, field in (("date_start", "start"), ("date_end", "end")):
        if given.get(name):
            setattr(campaign, field, date.fromisoformat(str(given[name])[:10]))
    for name in ("objective", "autobidding_mode", "max_price", "ad_groups"):
        if name in given:
            campaign.configuration[name] = given[name]
