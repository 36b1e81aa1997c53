"""VK Ads, API version 2: https://ads.vk.com/en/doc/api

What is peculiar to it: access tokens live for a day and are renewed; limits count calendar seconds, hours and days, and
what is left of them comes with every answer; amounts are decimals without value-added tax; nothing tells what changed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from mrm.accounts.v1.integration_pb2 import IntegrationCredentials, VkAdsCredentials
from server.platforms import oauth, reading
from server.platforms.http import Answer, Gates, PlatformHttp, Request, creating, seconds
from server.platforms.interface import (
    Account,
    Action,
    Amount,
    AuthFailed,
    CampaignPage,
    Capabilities,
    Changes,
    DesiredCampaign,
    ItemError,
    Malformed,
    Moderation,
    MoneyUnit,
    Payment,
    PlatformCampaign,
    PlatformStatistics,
    Refused,
    State,
    Statistics,
    StatisticsQuery,
    Throttled,
)
from server.settings import PlatformsSettings

# "Datetime ... time zone Europe/Moscow unless another is specified"; days of limits and statistics are Moscow's, too.
_ZONE = ZoneInfo("Europe/Moscow")
_FIELDS = "id,name,status,vkads_status,created,updated,budget_limit,budget_limit_day,date_start,date_end,objective"
_STATUSES = {
    Action.SUSPEND: "blocked",
    Action.RESUME: "active",
    Action.ARCHIVE: "deleted",
    Action.UNARCHIVE: "blocked",
}
_STATES = {"active": State.RUNNING, "blocked": State.SUSPENDED, "deleted": State.ARCHIVED}
# The user took the access back, is blocked, or we are: a renewal changes nothing, and the platform asks to stop.
_GONE = frozenset({"revoked_token", "invalid_user", "invalid_client"})
_IDS = re.compile(r"\d{1,19}")
# Every account of VK Ads that this platform bills in Russia; the API names no other.
_CURRENCY = "RUB"


class VkAds:
    """The connector.

    Args:
        http: The way out.
        settings: Where the platform is.
    """

    platform = "vk_ads"
    capabilities = Capabilities(
        money=MoneyUnit.DECIMAL,
        vat=False,
        delivery=True,
        outcomes=False,
        campaigns=True,
        total_budgets=True,
        moderation=True,
        restates=True,
        settle_days=3,
        changes=False,
        hourly=False,
        pushes=False,
        refreshes=True,
        max_days=92,
        max_campaigns=200,
        history_days=366,
        page_size=50,
        action_size=200,
    )

    def __init__(self, http: PlatformHttp, settings: PlatformsSettings) -> None:
        self._http = http
        self._url = settings.vk_ads_url
        self._report_seconds = settings.report_timeout
        self._application = oauth.Application(
            settings.vk_ads_url,
            "/api/v2/oauth2/token.json",
            settings.vk_ads_client_id,
            settings.vk_ads_client_secret.get_secret_value(),
        )
        self._gates = Gates(3)

    async def check(self, account: Account) -> None:
        """Asks whose the token is."""
        answer = await self._call(account, "GET", "user.json", most_bytes=256 * 1024)
        if "id" not in answer.object():
            raise Malformed("VK Ads names no user")

    async def refresh(self, account: Account) -> IntegrationCredentials | None:
        """Renews the access token, which lives for a day."""
        own = account.credentials.vk_ads
        if not own.refresh_token or not self._application.client_id:
            return None
        tokens = await oauth.renew(self._http, self._application, own.refresh_token)
        renewed = VkAdsCredentials(access_token=tokens.access, refresh_token=tokens.refresh)
        return IntegrationCredentials(vk_ads=renewed, expire_time=tokens.expire_time)

    async def list_campaigns(self, account: Account, *, ids: Sequence[str] = (), page: str = "") -> CampaignPage:
        """A page of campaigns (ad plans)."""
        size, offset = self.capabilities.page_size, int(page or 0)
        query = {"fields": _FIELDS, "limit": str(size), "offset": str(offset), "sorting": "id"}
        if ids:
            query["_id__in"] = ",".join(ids)
        else:
            query["_status__in"] = "active,blocked,deleted"
        found = (await self._call(account, "GET", "ad_plans.json", query)).object()
        total = reading.count(found.get("count"), "count")
        items = reading.items(found, "items")
        end = offset + len(items)
        return CampaignPage(tuple(map(_campaign, items)), str(end) if items and end < total else "")

    async def changes(self, account: Account, cursor: str, *, campaign_ids: Sequence[str] = ()) -> Changes:
        """VK Ads cannot tell: everything must be taken for changed."""
        return Changes(datetime.now(UTC).isoformat(timespec="seconds"), complete=True)

    async def create_campaign(self, account: Account, desired: DesiredCampaign) -> str:
        """Creates a campaign, halted. What groups it has stands in its configuration."""
        plan = {"ad_groups": [], **_written(desired), "status": "blocked"}
        with creating():
            answer = await self._call(account, "POST", "ad_plans.json", body=plan, repeatable=False)
            return reading.identity(answer.object(), "id")

    async def update_campaign(self, account: Account, external_id: str, desired: DesiredCampaign) -> None:
        """Changes a campaign."""
        await self._call(account, "POST", f"ad_plans/{int(external_id)}.json", body=_written(desired))

    async def act(self, account: Account, action: Action, ids: Sequence[str]) -> tuple[ItemError, ...]:
        """Sets the status of many campaigns. The platform does it for all or none, so it is asked again without those
        that it does not know."""
        left, errors = list(ids), []
        while left:
            body = [{"id": int(each), "status": _STATUSES[action]} for each in left]
            answer = await self._call(
                account, "POST", "ad_plans/mass_action.json", body=body, frugal=False, passing=(400, 404)
            )
            if answer.status in (200, 204):
                break
            code, message = _error(answer)
            unknown = set(_IDS.findall(message)) & set(left) if code == "unknown_ad_plans" else set()
            if not unknown:
                raise _refused(answer)
            errors += [ItemError(each, code, "there is no such campaign") for each in left if each in unknown]
            left = [each for each in left if each not in unknown]
        return tuple(errors)

    async def statistics(self, account: Account, query: StatisticsQuery) -> Statistics:
        """Impressions, clicks and cost by campaign and day."""
        if query.hourly or not query.campaign_ids:
            raise ValueError("VK Ads has figures of named campaigns by the day")
        parameters = {
            "id": ",".join(query.campaign_ids),
            "date_from": query.first.isoformat(),
            "date_to": query.last.isoformat(),
            "metrics": "base",
        }
        answer = await self._call(
            account, "GET", "statistics/ad_plans/day.json", parameters, seconds_=self._report_seconds
        )
        body = answer.object()
        if "items" not in body:
            raise Malformed("VK Ads answers no statistics")
        return Statistics(tuple(_rows(body, query)), time_zone="Europe/Moscow")

    async def _call(
        self,
        account: Account,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: object | None = None,
        repeatable: bool = True,
        frugal: bool = True,
        passing: tuple[int, ...] = (),
        most_bytes: int = 16 * 2**20,
        seconds_: float | None = None,
    ) -> Answer:
        """Asks, and returns a good answer or one whose status is in `passing`."""
        token = account.credentials.vk_ads.access_token
        owner = account.key or hashlib.sha256(token.encode()).hexdigest()
        async with AsyncExitStack() as stack:
            await self._gates.enter(stack, owner)
            if frugal:
                self._gates.check(owner)
            answer = await self._http.ask(
                Request(
                    method,
                    self._url,
                    f"/api/v2/{path}",
                    {"authorization": f"Bearer {token}"},
                    query or {},
                    body=body,
                    repeatable=repeatable,
                    most_bytes=most_bytes,
                    seconds=seconds_,
                )
            )
            rest = _rest(answer)
            if rest is not None:
                self._gates.pause(owner, rest)
        if answer.status in (200, 204) or answer.status in passing:
            return answer
        if answer.status == 429:
            raise Throttled("VK Ads answers HTTP 429", code=429, retry_after=rest or seconds(60))
        if answer.status in (401, 403):
            message = f"VK Ads answers HTTP {answer.status}"
            gone = reading.text(answer.object(), "code") in _GONE
            raise AuthFailed(message, code=answer.status, renewable=answer.status == 401 and not gone)
        if 400 <= answer.status < 500:
            raise _refused(answer)
        raise Malformed(f"VK Ads answers HTTP {answer.status}", code=answer.status)


def _rest(answer: Answer) -> timedelta | None:
    """How long to rest, after what is left of the limits; None if there is some of each."""
    now = datetime.now(_ZONE)
    if answer.number("x-ratelimit-daily-remaining") == 0:
        midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return seconds((midnight - now).total_seconds())
    if answer.number("x-ratelimit-hourly-remaining") == 0:
        return seconds(3600 - now.minute * 60 - now.second)
    if answer.number("x-ratelimit-rps-remaining") == 0:
        return seconds(1)
    return None


def _error(answer: Answer) -> tuple[str, str]:
    """Code and text of an error. The text stays in here."""
    error = answer.object().get("error")
    if not isinstance(error, dict):
        return "", ""
    return reading.text(error, "code"), reading.text(error, "message")


_CODES = frozenset(
    {
        "bad_items", "bad_value", "duplicate_value", "limit_exceeded", "max_value", "min_value", "permission_required",
        "pricelist_not_found", "read_only_field", "required", "required_one_of_value", "required_value",
        "unallowed_field", "unallowed_value", "unknown_ad_plans", "validation_failed", "ERR_LIMIT_EXCEEDED",
        "ERR_WRONG_ADPLANS", "ERR_WRONG_DATE", "ERR_WRONG_IDS", "ERR_WRONG_PARAMETER",
    }
)  # fmt: skip


def _refused(answer: Answer) -> Refused:
    """What is at fault, by the codes that are documented; others are not passed on."""
    code, _ = _error(answer)
    fields = reading.part(reading.part(answer.object(), "error"), "fields")
    found = [code, *(reading.text(each, "code") for each in fields.values() if isinstance(each, dict))]
    errors = [ItemError("", each, f"VK Ads answers {each}") for each in dict.fromkeys(found) if each in _CODES]
    return Refused(f"VK Ads answers HTTP {answer.status}", code=answer.status, errors=errors)


def _campaign(found: Mapping[str, Any]) -> PlatformCampaign:
    status, delivery = reading.text(found, "status"), reading.part(found, "vkads_status")
    codes = [each for each in delivery.get("codes") or [] if isinstance(each, str)]
    major = reading.text(delivery, "major_status")
    state = _STATES.get(status, State.UNKNOWN)
    words = {f"status {status}": status, f"major_status {major}": major, **{each: each for each in codes}}
    known = {
        "id",
        "name",
        "status",
        "vkads_status",
        "budget_limit",
        "budget_limit_day",
        "date_start",
        "date_end",
        "updated",
    }
    return PlatformCampaign(
        external_id=reading.identity(found, "id"),
        name=reading.text(found, "name"),
        state=state,
        moderation=_moderation({major, *codes}),
        payment=Payment.DISALLOWED if "NO_MONEY" in codes else Payment.UNKNOWN,
        reasons=tuple(name for name, word in words.items() if word),
        daily_budget=_budget(found.get("budget_limit_day"), "budget_limit_day"),
        total_budget=_budget(found.get("budget_limit"), "budget_limit"),
        start_date=reading.optional_day(found.get("date_start")),
        end_date=reading.optional_day(found.get("date_end")),
        updated_at=reading.moment(found.get("updated"), _ZONE),
        configuration={name: value for name, value in found.items() if name not in known},
    )


def _moderation(words: set[str]) -> Moderation:
    if words & {"BANNED", "MODERATION_REJECTED"}:
        return Moderation.REJECTED
    if words & {"ON_MODERATION", "NEW_BANNERS"}:
        return Moderation.PENDING
    # Campaigns themselves are not moderated, their advertisements are: silence is consent.
    return Moderation.ACCEPTED if words & {"ACTIVE", "ALLOWED", "DELIVERING"} else Moderation.UNKNOWN


def _budget(value: object, name: str) -> Amount | None:
    """A budget; 0 and -1 mean none."""
    if value is None:
        return None
    amount = reading.money_decimal(value, name, _CURRENCY, False)
    return amount if amount.value > 0 else None


def _written(desired: DesiredCampaign) -> dict[str, Any]:
    plan = dict(desired.configuration)
    for name, budget in (("budget_limit_day", desired.daily_budget), ("budget_limit", desired.total_budget)):
        if budget is not None:
            plan[name] = money(budget)
    for name, value in (("date_start", desired.start_date), ("date_end", desired.end_date)):
        if value is not None:
            plan[name] = value.isoformat()
    if desired.name is not None:
        plan["name"] = desired.name
    return plan


def money(amount: Decimal) -> str:
    """An amount to the kopeck, which is as fine as the platform takes it.

    Raises:
        Refused: It is finer.
    """
    cut = amount.quantize(Decimal("0.01"))
    if cut != amount:
        raise Refused("VK Ads takes no parts of a kopeck")
    return f"{cut:f}"


def _rows(body: Mapping[str, Any], query: StatisticsQuery) -> list[PlatformStatistics]:
    wanted, seen, rows = set(query.campaign_ids), set(), []
    for item in reading.items(body, "items"):
        external_id = reading.identity(item, "id")
        for row in reading.items(item, "rows"):
            at, base = reading.day(row.get("date"), "date"), reading.part(row, "base")
            unasked = external_id not in wanted or not query.first <= at <= query.last
            if unasked or (external_id, at) in seen:
                raise Malformed("VK Ads answers a row that was not asked for")
            seen.add((external_id, at))
            rows.append(
                PlatformStatistics(
                    external_id,
                    at,
                    impressions=reading.count(base.get("shows"), "shows"),
                    clicks=reading.count(base.get("clicks"), "clicks"),
                    cost=reading.money_decimal(base.get("spent"), "spent", _CURRENCY, False),
                )
            )
    return rows
