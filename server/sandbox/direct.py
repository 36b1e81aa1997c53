"""What stands in for Yandex Direct, API version 5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from server.sandbox.figures import ZONE, daily
from server.sandbox.sandbox import Refusal, Sandbox
from server.sandbox.state import Account, Campaign, Report

_STATUS = {"draft": "DRAFT", "pending": "MODERATION", "accepted": "ACCEPTED", "rejected": "REJECTED"}
_TURNS = {"suspend": "suspended", "resume": "on", "archive": "archived", "unarchive": "suspended"}
# What it warns of if the campaign is so already.
_ALREADY = {
    "suspend": (10020, "Object is already suspended"),
    "resume": (10021, "Object is not suspended"),
    "archive": (10022, "Object is already archived"),
    "unarchive": (10023, "Object is not archived"),
}
_KEPT = ("NegativeKeywords", "TimeZone")
_STAMP = "%Y-%m-%dT%H:%M:%SZ"
_QUEUE = 5
_METRICS = {
    "Impressions": lambda figures: figures.impressions,
    "Clicks": lambda figures: figures.clicks,
    "Cost": lambda figures: figures.cost_micros,
}


def call(sandbox: Sandbox, account: Account, service: str, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a method.

    Raises:
        Refusal: It cannot be done.
    """
    for campaign in account.campaigns.values():
        sandbox.settle(campaign)
    match service, method:
        case "clients", "get":
            all_fields = {"ClientId": 1, "Login": account.name, "Currency": account.currency}
            return {"Clients": [_chosen(all_fields, params)]}
        case "campaigns", "get":
            return _get(account, params)
        case "campaigns", "add":
            return {"AddResults": [_add(sandbox, account, each) for each in params.get("Campaigns", [])]}
        case "campaigns", "update":
            return {"UpdateResults": [_update(sandbox, account, each) for each in params.get("Campaigns", [])]}
        case "campaigns", ("suspend" | "resume" | "archive" | "unarchive"):
            ids = params.get("SelectionCriteria", {}).get("Ids", [])
            name = f"{method.capitalize()}Results"
            return {name: [_turn(sandbox, account.campaigns.get(each), method) for each in ids]}
        case "changes", "checkDictionaries":
            return _check_dictionaries(sandbox, params)
        case "changes", "checkCampaigns":
            return _check_campaigns(sandbox, account, _since(params))
        case "changes", "check":
            return _check(sandbox, account, params, _since(params))
        case _:
            raise Refusal("55", 200)


def report(sandbox: Sandbox, account: Account, params: Mapping[str, Any], mode: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of a report.

    Raises:
        Refusal: It cannot be made.
    """
    criteria = params.get("SelectionCriteria", {})
    if params.get("Format") != "TSV" or params.get("DateRangeType") != "CUSTOM_DATE" or not params.get("ReportName"):
        raise Refusal("8000", 400)
    first, last = (date.fromisoformat(criteria[name]) for name in ("DateFrom", "DateTo"))
    now, reports = sandbox.state.now(), sandbox.state.reports
    key = f"{account.name}/{params['ReportName']}"
    known = reports.get(key)
    queued = sum(each.account == account.name and each.ready_at > now for each in reports.values())
    headers = {"retryIn": str(max(1, round(sandbox.report.total_seconds()))), "reportsInQueue": str(queued)}
    if known is not None:
        return (200, {}, known.text) if known.ready_at <= now else (202, headers, "")
    text = _text(sandbox, account, params, first, last)
    if mode == "online" or (mode == "auto" and (last - first).days < sandbox.online_days):
        return 200, {}, text
    if queued >= _QUEUE:
        raise Refusal("9000", 400)
    reports[key] = Report(account=account.name, ready_at=now + sandbox.report, text=text)
    return 201, {**headers, "reportsInQueue": str(queued + 1)}, ""


def _text(sandbox: Sandbox, account: Account, params: Mapping[str, Any], first: date, last: date) -> str:
    fields: list[str] = params["FieldNames"]
    wanted = {
        int(value)
        for each in params["SelectionCriteria"].get("Filter", [])
        if each["Field"] == "CampaignId" and each["Operator"] == "IN"
        for value in each["Values"]
    }
    lines = ["\t".join(fields)]
    for campaign in account.campaigns.values():
        if wanted and campaign.campaign_id not in wanted:
            continue
        for offset in range((last - first).days + 1):
            day = first + timedelta(days=offset)
            figures = daily(sandbox.state, campaign, day)
            if not (figures.impressions or figures.clicks):
                continue
            known = {"Date": day.isoformat(), "CampaignId": str(campaign.campaign_id), "CampaignName": campaign.name}
            if any(name not in known and name not in _METRICS for name in fields):
                raise Refusal("8000", 400)
            vat = 120 if params.get("IncludeVAT") == "YES" else 100
            cells = [known[name] if name in known else str(_METRICS[name](figures)) for name in fields]
            if "Cost" in fields:
                cells[fields.index("Cost")] = str(figures.cost_micros * vat // 100)
            lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def _chosen(fields: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in params.get("FieldNames", []) if name in fields}


def _get(account: Account, params: Mapping[str, Any]) -> dict[str, Any]:
    if not params.get("FieldNames"):
        raise Refusal("8000", 200)
    ids = set(params.get("SelectionCriteria", {}).get("Ids", account.campaigns))
    page = params.get("Page", {})
    start, size = page.get("Offset", 0), page.get("Limit", 10_000)
    found = [each for number, each in sorted(account.campaigns.items()) if number in ids]
    result: dict[str, Any] = {}
    chosen = [_shown(account, each, params) for each in found[start : start + size]]
    # An empty array is left out, as the documentation of get says.
    if chosen:
        result["Campaigns"] = chosen
    if len(found) > start + size:
        result["LimitedBy"] = start + size
    return result


def _shown(account: Account, campaign: Campaign, params: Mapping[str, Any]) -> dict[str, Any]:
    runs = campaign.state == "on" and campaign.verdict == "accepted" and account.funds
    state = {"suspended": "SUSPENDED", "archived": "ARCHIVED"}.get(campaign.state, "ON" if runs else "OFF")
    if campaign.verdict == "draft" and campaign.state == "suspended":
        state = "OFF"
    fields = {
        "Id": campaign.campaign_id,
        "Name": campaign.name,
        "Type": "TEXT_CAMPAIGN",
        "State": state,
        "Status": _STATUS[campaign.verdict],
        "StatusPayment": "ALLOWED" if account.funds else "DISALLOWED",
        "StatusClarification": campaign.rejection if campaign.verdict == "rejected" else "",
        "StartDate": campaign.start.isoformat() if campaign.start else "",
        "EndDate": campaign.end.isoformat() if campaign.end else None,
        "Currency": account.currency,
        "DailyBudget": None,
        "TimeZone": "Europe/Moscow",
    }
    fields |= {name: campaign.configuration[name] for name in _KEPT if name in campaign.configuration}
    shown = _chosen(fields, params)
    if "BiddingStrategy" in params.get("TextCampaignFieldNames", []):
        search: dict[str, Any] = {"BiddingStrategyType": "HIGHEST_POSITION"}
        if campaign.daily_micros:
            search["HighestPosition"] = {"WeeklySpendLimit": campaign.daily_micros * 7}
        network = {"BiddingStrategyType": "SERVING_OFF"}
        text: Any = campaign.configuration.get("TextCampaign", {})
        bidding = text.get("BiddingStrategy", {"Search": search, "Network": network})
        shown["TextCampaign"] = {"BiddingStrategy": bidding}
    return shown


def _add(sandbox: Sandbox, account: Account, given: Mapping[str, Any]) -> dict[str, Any]:
    if not given.get("Name") or "StartDate" not in given:
        raise Refusal("8000", 200)
    if date.fromisoformat(given["StartDate"]) < sandbox.state.now().astimezone(ZONE).date() - timedelta(days=1):
        return _errors("5005", "Field set incorrectly")
    made = sandbox.create(account, given["Name"])
    _write(made, given)
    return {"Id": made.campaign_id}


def _update(sandbox: Sandbox, account: Account, given: Mapping[str, Any]) -> dict[str, Any]:
    campaign = account.campaigns.get(given.get("Id", 0))
    if campaign is None:
        return _errors("8800", "Object not found")
    if campaign.state == "archived":
        return _errors("8300", "Invalid object status")
    _write(campaign, given)
    campaign.updated_at = sandbox.state.now()
    return {"Id": campaign.campaign_id}


def _write(campaign: Campaign, given: Mapping[str, Any]) -> None:
    campaign.name = given.get("Name", campaign.name)
    if given.get("StartDate"):
        campaign.start = date.fromisoformat(given["StartDate"])
    if given.get("EndDate"):
        campaign.end = date.fromisoformat(given["EndDate"])
    campaign.configuration |= {name: given[name] for name in _KEPT if name in given}
    text = given.get("TextCampaign", {})
    if text:
        before: Any = campaign.configuration.get("TextCampaign", {})
        campaign.configuration["TextCampaign"] = {**before, **text}
    for place in text.get("BiddingStrategy", {}).values():
        for values in place.values():
            weekly = values.get("WeeklySpendLimit") if isinstance(values, dict) else None
            if weekly is not None:
                campaign.daily_micros = weekly // 7


def _turn(sandbox: Sandbox, campaign: Campaign | None, method: str) -> dict[str, Any]:
    if campaign is None:
        return _errors("8800", "Object not found")
    wanted = _TURNS[method]
    if campaign.state == "archived" and method in ("suspend", "resume"):
        return _errors("8300", "Invalid object status")
    if method == "archive" and campaign.state == "on":
        return _errors("8303", "Object cannot be archived")
    if campaign.state == wanted or (method == "unarchive" and campaign.state != "archived"):
        code, message = _ALREADY[method]
        return {"Id": campaign.campaign_id, "Warnings": [{"Code": code, "Message": message, "Details": ""}]}
    sandbox.turn(campaign, wanted)
    return {"Id": campaign.campaign_id}


def _errors(code: str, message: str) -> dict[str, Any]:
    return {"Errors": [{"Code": int(code), "Message": message, "Details": ""}]}


def _now(sandbox: Sandbox) -> str:
    return sandbox.state.now().strftime(_STAMP)


def _since(params: Mapping[str, Any]) -> datetime:
    stamp = params.get("Timestamp")
    if not isinstance(stamp, str):
        raise Refusal("8000", 200)
    try:
        return datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
    except ValueError:
        raise Refusal("4000", 200) from None


def _border(sandbox: Sandbox, campaign: Campaign, since: datetime) -> date | None:
    """The first day whose figures were corrected since then."""
    days = [
        each.day
        for each in sandbox.state.restatements
        if each.campaign_id == campaign.campaign_id and each.at.replace(microsecond=0) >= since
    ]
    return min(days, default=None)


def _changed(campaign: Campaign, since: datetime) -> bool:
    return campaign.updated_at.replace(microsecond=0) >= since


def _check_dictionaries(sandbox: Sandbox, params: Mapping[str, Any]) -> dict[str, Any]:
    result = {"Timestamp": _now(sandbox)}
    if "Timestamp" in params:
        _since(params)
        result |= dict.fromkeys(("TimeZonesChanged", "RegionsChanged", "InterestsChanged"), "NO")
    return result


def _check_campaigns(sandbox: Sandbox, account: Account, since: datetime) -> dict[str, Any]:
    result: dict[str, Any] = {"Timestamp": _now(sandbox)}
    changes = []
    for campaign in account.campaigns.values():
        kinds = ["SELF"] if _changed(campaign, since) else []
        kinds += ["STAT"] if _border(sandbox, campaign, since) else []
        if kinds:
            changes.append({"CampaignId": campaign.campaign_id, "ChangesIn": kinds})
    if changes:
        result["Campaigns"] = changes
    return result


def _check(sandbox: Sandbox, account: Account, params: Mapping[str, Any], since: datetime) -> dict[str, Any]:
    wanted: Iterable[int] = params.get("CampaignIds", [])
    fields = params.get("FieldNames", [])
    result: dict[str, Any] = {"Timestamp": _now(sandbox), "Modified": {}}
    there = [account.campaigns[each] for each in wanted if each in account.campaigns]
    missing = [each for each in wanted if each not in account.campaigns]
    if "CampaignIds" in fields:
        changed = [each.campaign_id for each in there if _changed(each, since)]
        if changed:
            result["Modified"]["CampaignIds"] = changed
    if "CampaignsStat" in fields:
        borders = [(each.campaign_id, _border(sandbox, each, since)) for each in there]
        stat = [{"CampaignId": number, "BorderDate": day.isoformat()} for number, day in borders if day]
        if stat:
            result["Modified"]["CampaignsStat"] = stat
    if missing:
        result["NotFound"] = {"CampaignIds": missing}
    return result
