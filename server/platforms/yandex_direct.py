"""Yandex Direct, API version 5: https://yandex.com/dev/direct/doc/en/

What is peculiar to it: errors come with HTTP 200; requests cost points, of which each advertiser has a daily budget
that refills by the hour; reports are made online or wait in a queue of five; Changes says how far back figures changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from mrm.accounts.v1.integration_pb2 import IntegrationCredentials, YandexDirectCredentials
from server.platforms import oauth, reading
from server.platforms.http import Answer, Gates, PlatformHttp, Request, creating, seconds, whole
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
    NotReady,
    Payment,
    PlatformCampaign,
    PlatformStatistics,
    Refused,
    State,
    Statistics,
    StatisticsQuery,
    Throttled,
    Unavailable,
    to_micros,
)
from server.settings import PlatformsSettings

# https://yandex.com/dev/direct/doc/en/concepts/errors-list
_TOKEN_REFUSED = frozenset({53})
_RIGHTS_REFUSED = frozenset({54, 58, 513, 3000, 3001})
_OUTAGES = frozenset({52, 1000, 1001, 1002, 1020})
_NO_POINTS = 152
# Too many requests of a method, too many connections, too many reports in the queue.
_LATER = {56: 10, 506: 10, 9000: 60}

_STATES = {
    "ON": State.RUNNING,
    "OFF": State.OFF,
    "SUSPENDED": State.SUSPENDED,
    "ENDED": State.ENDED,
    "ARCHIVED": State.ARCHIVED,
    # Of the time before real currencies: it lives on as another campaign.
    "CONVERTED": State.ARCHIVED,
}
_MODERATION = {
    "DRAFT": Moderation.DRAFT,
    "MODERATION": Moderation.PENDING,
    "ACCEPTED": Moderation.ACCEPTED,
    "REJECTED": Moderation.REJECTED,
}
_PAYMENT = {"ALLOWED": Payment.ALLOWED, "DISALLOWED": Payment.DISALLOWED}
_FIELDS = [
    "Id", "Name", "Type", "State", "Status", "StatusPayment", "StatusClarification", "StartDate", "EndDate", "Currency",
    "DailyBudget", "TimeZone",
]  # fmt: skip
_ACTIONS = {
    Action.SUSPEND: "SuspendResults",
    Action.RESUME: "ResumeResults",
    Action.ARCHIVE: "ArchiveResults",
    Action.UNARCHIVE: "UnarchiveResults",
}
_REPORT_FIELDS = ["Date", "CampaignId", "Impressions", "Clicks", "Cost"]
_REPORT_BYTES = 64 * 2**20
_REPORT_QUEUE = 5
_PLAIN_STRATEGY = {
    "Search": {"BiddingStrategyType": "HIGHEST_POSITION"},
    "Network": {"BiddingStrategyType": "SERVING_OFF"},
}
_CHECKED_AT_ONCE = 3_000
# Reading stops while so much of the points is left, so that campaigns can still be halted.
_RESERVE = 20
_MOST_ACCOUNTS = 10_000
_MOST_QUEUED = 100


class YandexDirect:
    """The connector.

    Args:
        http: The way out.
        settings: Where the platform is.
    """

    platform = "yandex_direct"
    capabilities = Capabilities(
        money=MoneyUnit.MICROS,
        vat=False,
        delivery=True,
        outcomes=False,
        campaigns=True,
        total_budgets=False,
        moderation=True,
        restates=True,
        settle_days=3,
        changes=True,
        hourly=False,
        pushes=False,
        refreshes=True,
        max_days=92,
        max_campaigns=1_000,
        history_days=3 * 365,
        page_size=1_000,
        action_size=1_000,
    )

    def __init__(self, http: PlatformHttp, settings: PlatformsSettings) -> None:
        self._http = http
        self._url = settings.yandex_direct_url
        self._vat = settings.include_vat
        self.capabilities = replace(type(self).capabilities, vat=self._vat)
        self._report_seconds = settings.report_timeout
        self._application = oauth.Application(
            settings.yandex_oauth_url,
            "/token",
            settings.yandex_client_id,
            settings.yandex_client_secret.get_secret_value(),
        )
        self._gates = Gates(5)
        self._queues = Gates(_REPORT_QUEUE)
        self._queued: dict[str, set[str]] = {}
        # It never changes for an account.
        self._currencies: dict[str, str] = {}

    async def check(self, account: Account) -> None:
        """Asks whose the token is."""
        params = {"FieldNames": ["ClientId", "Login"]}
        result = await self._call(account, "clients", "get", params, most_bytes=256 * 1024)
        if "Clients" not in result:
            raise Malformed("Yandex Direct names no client")

    async def refresh(self, account: Account) -> IntegrationCredentials | None:
        """Renews the OAuth token, which may come back unchanged."""
        own = account.credentials.yandex_direct
        if not own.refresh_token or not self._application.client_id:
            return None
        tokens = await oauth.renew(self._http, self._application, own.refresh_token)
        renewed = YandexDirectCredentials(
            oauth_token=tokens.access, refresh_token=tokens.refresh, client_login=own.client_login
        )
        return IntegrationCredentials(yandex_direct=renewed, expire_time=tokens.expire_time)

    async def list_campaigns(self, account: Account, *, ids: Sequence[str] = (), page: str = "") -> CampaignPage:
        """A page of campaigns."""
        params = {
            "SelectionCriteria": {"Ids": [int(each) for each in ids]} if ids else {},
            "FieldNames": _FIELDS,
            "TextCampaignFieldNames": ["BiddingStrategy"],
            "Page": {"Limit": self.capabilities.page_size, "Offset": int(page or 0)},
        }
        result = await self._call(account, "campaigns", "get", params)
        campaigns = tuple(
            sorted(map(_campaign, reading.items(result, "Campaigns")), key=lambda each: int(each.external_id))
        )
        further = whole(result.get("LimitedBy"))
        return CampaignPage(campaigns, str(further) if further is not None else "")

    async def changes(self, account: Account, cursor: str, *, campaign_ids: Sequence[str] = ()) -> Changes:
        """Which campaigns changed, and from which day on their figures did."""
        if not cursor:
            # Only the server's own clock leaves no gap before the next question.
            result = await self._call(account, "changes", "checkDictionaries", {})
            return Changes(_cursor(result), complete=True)
        result = await self._call(account, "changes", "checkCampaigns", {"Timestamp": cursor})
        oldest = [_cursor(result)]
        changed = {
            reading.identity(each, "CampaignId")
            for each in reading.items(result, "Campaigns")
            if set(_words(each.get("ChangesIn"))) & {"SELF", "CHILDREN"}
        }
        since: dict[str, date] = {}
        gone: set[str] = set()
        left = sorted({int(each) for each in campaign_ids})
        while left:
            asked, left = left[:_CHECKED_AT_ONCE], left[_CHECKED_AT_ONCE:]
            params = {"CampaignIds": asked, "Timestamp": cursor, "FieldNames": ["CampaignIds", "CampaignsStat"]}
            result = await self._call(account, "changes", "check", params)
            oldest.append(_cursor(result))
            modified = reading.part(result, "Modified")
            changed |= set(_ids(modified))
            for each in reading.items(modified, "CampaignsStat"):
                since[reading.identity(each, "CampaignId")] = reading.day(each.get("BorderDate"), "BorderDate")
            gone |= set(_ids(reading.part(result, "NotFound")))
            again = [int(each) for each in _ids(reading.part(result, "Unprocessed"))]
            if len(again) >= len(asked):
                raise Unavailable("Yandex Direct checks no campaign for now")
            left = [*again, *left]
        return Changes(min(oldest), False, tuple(sorted(changed, key=int)), since, tuple(sorted(gone, key=int)))

    async def create_campaign(self, account: Account, desired: DesiredCampaign) -> str:
        """Creates a campaign, of text and images unless its configuration says otherwise. It is a draft until it has
        advertisements and is moderated."""
        campaign = _written(desired)
        campaign.setdefault("StartDate", datetime.now(UTC).date().isoformat())
        if not any(name.endswith("Campaign") and name != "TextCampaign" for name in campaign):
            campaign["TextCampaign"] = {"BiddingStrategy": _PLAIN_STRATEGY, **reading.part(campaign, "TextCampaign")}
        if desired.daily_budget is not None:
            _set_weekly(campaign, campaign, desired.daily_budget)
        with creating():
            result = await self._call(account, "campaigns", "add", {"Campaigns": [campaign]}, repeatable=False)
            errors = _failed(result, "AddResults", [""])
            if errors:
                raise Refused("Yandex Direct does not take the campaign", errors=errors)
            return reading.identity(reading.items(result, "AddResults")[0], "Id")

    async def update_campaign(self, account: Account, external_id: str, desired: DesiredCampaign) -> None:
        """Changes a campaign. A daily budget becomes a seventh of its strategy's weekly one."""
        campaign = {**_written(desired), "Id": int(external_id)}
        if desired.daily_budget is not None and "BiddingStrategy" in reading.part(campaign, "TextCampaign"):
            _set_weekly(campaign, campaign, desired.daily_budget)
        elif desired.daily_budget is not None:
            params = {
                "SelectionCriteria": {"Ids": [int(external_id)]},
                "FieldNames": ["Id", "Type"],
                "TextCampaignFieldNames": ["BiddingStrategy"],
            }
            found = reading.items(await self._call(account, "campaigns", "get", params), "Campaigns")
            if not found:
                gone = ItemError(external_id, "8800", "there is no such campaign, or the token may not see it")
                raise Refused("the campaign is not there", errors=[gone])
            _set_weekly(campaign, found[0], desired.daily_budget)
        result = await self._call(account, "campaigns", "update", {"Campaigns": [campaign]})
        errors = _failed(result, "UpdateResults", [external_id])
        if errors:
            raise Refused("Yandex Direct does not take the change", errors=errors)

    async def act(self, account: Account, action: Action, ids: Sequence[str]) -> tuple[ItemError, ...]:
        """Suspends, resumes, archives or brings back."""
        params = {"SelectionCriteria": {"Ids": [int(each) for each in ids]}}
        result = await self._call(account, "campaigns", action.value, params, frugal=False)
        return _failed(result, _ACTIONS[action], ids)

    async def statistics(self, account: Account, query: StatisticsQuery) -> Statistics:
        """Impressions, clicks and cost by campaign and day."""
        if query.hourly:
            raise ValueError("Yandex Direct has no figures by the hour")
        currency = await self._currency(account)
        criteria: dict[str, Any] = {"DateFrom": query.first.isoformat(), "DateTo": query.last.isoformat()}
        if query.campaign_ids:
            criteria["Filter"] = [{"Field": "CampaignId", "Operator": "IN", "Values": list(query.campaign_ids)}]
        params: dict[str, Any] = {
            "SelectionCriteria": criteria,
            "FieldNames": _REPORT_FIELDS,
            "ReportType": "CAMPAIGN_PERFORMANCE_REPORT",
            "DateRangeType": "CUSTOM_DATE",
            "Format": "TSV",
            "IncludeVAT": "YES" if self._vat else "NO",
            "IncludeDiscount": "NO",
        }
        # The platform finds the report by its name: the same question finds the same one, another reading none.
        digest = hashlib.sha256(json.dumps([params, query.reading], sort_keys=True).encode()).hexdigest()
        params["ReportName"] = f"mrm-{digest[:32]}"
        answer = await self._report(account, params)
        rows = tuple(_rows(answer.raw, query, currency, self._vat))
        return Statistics(rows, time_zone="Europe/Moscow")

    async def _currency(self, account: Account) -> str:
        known = self._currencies.get(account.key)
        if known is None:
            result = await self._call(account, "clients", "get", {"FieldNames": ["Currency"]})
            clients = reading.items(result, "Clients")
            known = reading.text(clients[0], "Currency") if clients else ""
            if len(known) != 3:
                raise Malformed("Yandex Direct names no currency")
            if len(self._currencies) >= _MOST_ACCOUNTS:
                self._currencies.clear()
            self._currencies[account.key] = known
        return known

    async def _report(self, account: Account, params: Mapping[str, Any]) -> Answer:
        own = account.credentials.yandex_direct
        owner, name = _owner(own), params["ReportName"]
        queued = self._queued.get(owner, set())
        if name not in queued:
            self._queues.check(owner)
        headers = {
            **_headers(own),
            "processingMode": "auto",
            "skipReportHeader": "true",
            "skipReportSummary": "true",
            "accept": "*/*",
        }
        async with AsyncExitStack() as stack:
            await self._gates.enter(stack, owner)
            self._gates.check(owner)
            answer = await self._http.ask(
                Request(
                    "POST",
                    self._url,
                    "/json/v5/reports",
                    headers,
                    body={"params": params},
                    most_bytes=_REPORT_BYTES,
                    seconds=self._report_seconds,
                )
            )
            self._remember_points(owner, answer)
        if answer.status in (201, 202):
            wait = seconds(answer.number("retryin") or 10)
            # A full queue takes no further report, but answers about those it holds.
            self._queued[owner] = {*queued, name} if len(queued) < _MOST_QUEUED else {name}
            if (answer.number("reportsinqueue") or 0) >= _REPORT_QUEUE:
                self._queues.pause(owner, wait)
            raise NotReady("Yandex Direct is making the report", retry_after=wait, code=answer.status)
        queued.discard(name)
        if not queued:
            self._queued.pop(owner, None)
        if answer.status != 200 or answer.raw.lstrip()[:1] == b"{":
            _raise(answer)
            raise Malformed(f"Yandex Direct answers HTTP {answer.status} for a report", code=answer.status)
        return answer

    async def _call(
        self,
        account: Account,
        service: str,
        method: str,
        params: Mapping[str, Any],
        *,
        repeatable: bool = True,
        frugal: bool = True,
        most_bytes: int = 16 * 2**20,
    ) -> Mapping[str, Any]:
        """Calls a method and returns its result."""
        own = account.credentials.yandex_direct
        owner = _owner(own)
        async with AsyncExitStack() as stack:
            await self._gates.enter(stack, owner)
            if frugal:
                self._gates.check(owner)
            answer = await self._http.ask(
                Request(
                    "POST",
                    self._url,
                    f"/json/v5/{service}",
                    _headers(own),
                    body={"method": method, "params": params},
                    repeatable=repeatable,
                    most_bytes=most_bytes,
                )
            )
            self._remember_points(owner, answer)
        _raise(answer, uncertain=not repeatable)
        result = answer.object().get("result")
        if answer.status != 200 or not isinstance(result, dict):
            raise Malformed(f"Yandex Direct answers HTTP {answer.status} without a result", code=answer.status)
        return result

    def _remember_points(self, owner: str, answer: Answer) -> None:
        """Units: spent/left/daily limit."""
        parts = answer.headers.get("units", "").split("/")
        left, limit = (whole(parts[1]), whole(parts[2])) if len(parts) == 3 else (None, None)
        if left is not None and limit is not None and left * _RESERVE < limit:
            self._gates.pause(owner, _until_next_hour())


def _headers(own: YandexDirectCredentials) -> dict[str, str]:
    headers = {"authorization": f"Bearer {own.oauth_token}", "accept-language": "en"}
    if own.client_login:
        headers["client-login"] = own.client_login
    return headers


def _owner(own: YandexDirectCredentials) -> str:
    """Whose limits a request uses: the advertiser's, or those of whomever the token belongs to."""
    return own.client_login or hashlib.sha256(own.oauth_token.encode()).hexdigest()


def _raise(answer: Answer, *, uncertain: bool = False) -> None:
    """Raises the error of an answer, if it is one. Errors come with HTTP 200, and their code as number or text."""
    error = answer.object().get("error")
    if not isinstance(error, dict):
        return
    code = whole(error.get("error_code")) or 0
    message = f"Yandex Direct answers error {code}"
    if code in _TOKEN_REFUSED | _RIGHTS_REFUSED:
        raise AuthFailed(message, code=code, renewable=code in _TOKEN_REFUSED)
    if code in _OUTAGES or answer.status >= 500:
        raise Unavailable(message, code=code, uncertain=uncertain)
    if code == _NO_POINTS:
        raise Throttled(message, code=code, retry_after=_until_next_hour())
    if code in _LATER:
        raise Throttled(message, code=code, retry_after=seconds(_LATER[code]))
    if not code:
        raise Malformed("Yandex Direct answers an error without a code", code=answer.status)
    raise Refused(message, code=code)


def _until_next_hour() -> timedelta:
    now = datetime.now(UTC)
    return seconds(3600 - now.minute * 60 - now.second)


def _cursor(result: Mapping[str, Any]) -> str:
    stamp = reading.text(result, "Timestamp")
    if reading.moment(stamp) is None:
        raise Malformed("Yandex Direct names no time")
    return stamp


def _ids(holder: Mapping[str, Any]) -> list[str]:
    found = holder.get("CampaignIds") or []
    if not isinstance(found, list):
        raise Malformed("CampaignIds is no list")
    return [reading.identity({"Id": each}, "Id") for each in found]


def _words(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _campaign(found: Mapping[str, Any]) -> PlatformCampaign:
    state, status, payment = (reading.text(found, name) for name in ("State", "Status", "StatusPayment"))
    currency = reading.text(found, "Currency")
    words = (
        f"State {state}",
        f"Status {status}",
        f"StatusPayment {payment}",
        reading.text(found, "StatusClarification"),
    )
    known = {"Id", "Name", "State", "Status", "StatusPayment", "StatusClarification", "StartDate", "EndDate"}
    return PlatformCampaign(
        external_id=reading.identity(found, "Id"),
        name=reading.text(found, "Name"),
        state=_STATES.get(state, State.UNKNOWN),
        moderation=_MODERATION.get(status, Moderation.UNKNOWN),
        payment=_PAYMENT.get(payment, Payment.UNKNOWN),
        reasons=tuple(word for word in words if word and not word.endswith(" ")),
        daily_budget=_daily_budget(found, currency),
        total_budget=None,
        start_date=reading.optional_day(found.get("StartDate")),
        end_date=reading.optional_day(found.get("EndDate")),
        updated_at=None,
        configuration={name: value for name, value in found.items() if name not in known},
    )


def _strategies(campaign: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Where a text campaign's strategies stand: place, name of the settings, the settings."""
    bidding = reading.part(reading.part(campaign, "TextCampaign"), "BiddingStrategy")
    found = []
    for place in ("Search", "Network"):
        strategy = reading.part(bidding, place)
        name = "".join(word.capitalize() for word in reading.text(strategy, "BiddingStrategyType").split("_"))
        found.append((place, name, reading.part(strategy, name)))
    return found


def _daily_budget(found: Mapping[str, Any], currency: str) -> Amount | None:
    budget = reading.part(found, "DailyBudget")
    if budget:
        return reading.money_micros(budget.get("Amount"), "DailyBudget", currency, None)
    for _, _, settings in _strategies(found):
        weekly = whole(settings.get("WeeklySpendLimit"))
        if weekly is not None:
            return reading.money_micros(weekly // 7, "WeeklySpendLimit", currency, None)
    return None


def _set_weekly(campaign: dict[str, Any], found: Mapping[str, Any], daily: Decimal) -> None:
    """Writes seven daily budgets as the weekly one of the strategy that the campaign has: daily ones are no more.

    Raises:
        Refused: The strategy has none, or one of a period, which a weekly one would put an end to.
    """
    for place, name, settings in _strategies(found):
        if settings.get("CustomPeriodBudget"):
            raise Refused("the campaign's strategy has a budget of a period")
        if "WeeklySpendLimit" in settings or name == "HighestPosition":
            bidding = dict(found["TextCampaign"]["BiddingStrategy"])
            bidding[place] = {**bidding[place], name: {**settings, "WeeklySpendLimit": to_micros(daily) * 7}}
            campaign["TextCampaign"] = {**campaign.get("TextCampaign", {}), "BiddingStrategy": bidding}
            return
    raise Refused("the campaign's strategy has no budget of its own")


def _written(desired: DesiredCampaign) -> dict[str, Any]:
    if desired.total_budget is not None:
        raise Refused("Yandex Direct has no total budget of a campaign")
    campaign = dict(desired.configuration)
    try:
        _strategies(campaign)
    except Malformed as error:
        # It is what we were told to say that is so, not an answer.
        raise Refused(f"of the configuration {error}") from None
    for name, value in (("StartDate", desired.start_date), ("EndDate", desired.end_date)):
        if value is not None:
            campaign[name] = value.isoformat()
    if desired.name is not None:
        campaign["Name"] = desired.name
    return campaign


def _failed(result: Mapping[str, Any], name: str, ids: Sequence[str]) -> tuple[ItemError, ...]:
    """What failed; results stand in the order of what was asked for."""
    results = reading.items(result, name)
    if len(results) != len(ids):
        raise Malformed(f"Yandex Direct answers {len(results)} results for {len(ids)} campaigns")
    errors = []
    for external_id, each in zip(ids, results, strict=True):
        found = reading.items(each, "Errors")
        if found:
            code = whole(found[0].get("Code")) or 0
            errors.append(ItemError(external_id, str(code), f"Yandex Direct answers error {code} for this campaign"))
    return tuple(errors)


def _rows(raw: bytes, query: StatisticsQuery, currency: str, vat: bool) -> list[PlatformStatistics]:
    """The rows of a report: values separated by tabs, under the names of the columns."""
    try:
        lines = raw.decode().splitlines()
    except UnicodeDecodeError:
        raise Malformed("the report is no text") from None
    if not lines or lines[0].split("\t") != _REPORT_FIELDS:
        raise Malformed("the report has other columns than were asked for")
    rows, seen = [], set()
    for line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != len(_REPORT_FIELDS):
            raise Malformed("a row of the report has too few or too many values")
        at, external_id = reading.day(cells[0], "Date"), reading.identity({"Id": cells[1]}, "Id")
        if not query.first <= at <= query.last or (at, external_id) in seen:
            raise Malformed("the report has a row that was not asked for")
        seen.add((at, external_id))
        rows.append(
            PlatformStatistics(
                external_id,
                at,
                impressions=reading.count(cells[2], "Impressions"),
                clicks=reading.count(cells[3], "Clicks"),
                cost=reading.money_micros(cells[4], "Cost", currency, vat),
            )
        )
    return rows
