"""Yandex Metrika: https://yandex.com/dev/metrika/en/

What is peculiar to it: it measures what visits brought, not what was paid; who caused a conversion depends on the
attribution that is asked for; large reports may be extrapolated from a sample, and say so; quotas last long or short.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from mrm.accounts.v1.integration_pb2 import IntegrationCredentials, YandexMetrikaCredentials
from server.platforms import oauth, reading
from server.platforms.http import Answer, Gates, PlatformHttp, Request, seconds
from server.platforms.interface import (
    Account,
    Amount,
    Attribution,
    AuthFailed,
    Capabilities,
    Goal,
    Malformed,
    MoneyUnit,
    PlatformStatistics,
    Refused,
    Statistics,
    StatisticsQuery,
    Throttled,
)
from server.settings import PlatformsSettings

# https://yandex.com/dev/metrika/en/stat/param
_ATTRIBUTIONS = {
    Attribution.FIRST_CLICK: "first",
    Attribution.LAST_CLICK: "last",
    Attribution.LAST_SIGNIFICANT_CLICK: "lastsign",
    Attribution.LAST_PLATFORM_CLICK: "last_yandex_direct_click",
    Attribution.AUTO: "automatic",
}
# Twenty metrics in a request, two of each goal.
_GOALS_AT_ONCE = 10
_PAGE = 10_000
_MOST_PAGES = 50
_HOUR = re.compile(r"[0-9]{1,2}")


class YandexMetrika:
    """The connector.

    Args:
        http: The way out.
        settings: Where the platform is.
    """

    platform = "yandex_metrika"
    capabilities = Capabilities(
        money=MoneyUnit.DECIMAL,
        vat=None,
        delivery=False,
        outcomes=True,
        campaigns=False,
        total_budgets=False,
        moderation=False,
        restates=True,
        settle_days=3,
        changes=False,
        hourly=True,
        pushes=False,
        refreshes=True,
        max_days=31,
        max_campaigns=100,
        history_days=0,
        page_size=0,
        action_size=0,
    )

    def __init__(self, http: PlatformHttp, settings: PlatformsSettings) -> None:
        self._http = http
        self._url = settings.yandex_metrika_url
        self._report_seconds = settings.report_timeout
        self._application = oauth.Application(
            settings.yandex_oauth_url,
            "/token",
            settings.yandex_client_id,
            settings.yandex_client_secret.get_secret_value(),
        )
        self._gates = Gates(3)

    async def check(self, account: Account) -> None:
        """Asks for the counter, which a token sees that has rights on it."""
        counter = account.credentials.yandex_metrika.counter_id
        found = await self._get(account, f"/management/v1/counter/{counter}", most_bytes=256 * 1024)
        if "counter" not in found:
            raise Malformed("Yandex Metrika names no counter")

    async def refresh(self, account: Account) -> IntegrationCredentials | None:
        """Renews the OAuth token, which may come back unchanged."""
        own = account.credentials.yandex_metrika
        if not own.refresh_token or not self._application.client_id:
            return None
        tokens = await oauth.renew(self._http, self._application, own.refresh_token)
        renewed = YandexMetrikaCredentials(
            oauth_token=tokens.access, refresh_token=tokens.refresh, counter_id=own.counter_id
        )
        return IntegrationCredentials(yandex_metrika=renewed, expire_time=tokens.expire_time)

    async def goals(self, account: Account) -> tuple[Goal, ...]:
        """The goals of the counter. What one is worth is in the currency of the counter, which is not told."""
        counter = account.credentials.yandex_metrika.counter_id
        found = await self._get(account, f"/management/v1/counter/{counter}/goals")
        if "goals" not in found:
            raise Malformed("Yandex Metrika names no goals")
        return tuple(
            Goal(
                reading.identity(each, "id"),
                reading.text(each, "name"),
                reading.text(each, "type"),
                _price(each.get("default_price")),
            )
            for each in reading.items(found, "goals")
        )

    async def outcomes(self, account: Account, query: StatisticsQuery) -> Statistics:
        """Conversions and revenue by campaign and day or hour, added up over the goals."""
        goals = query.goals or tuple(each.goal_id for each in await self.goals(account))
        wanted = set(query.campaign_ids)
        sums: dict[tuple[str, date, int | None], tuple[Decimal, Decimal]] = {}
        sampled = False
        for start in range(0, len(goals), _GOALS_AT_ONCE):
            part = replace(query, goals=goals[start : start + _GOALS_AT_ONCE])
            offset = 1
            for _ in range(_MOST_PAGES):
                found = await self._page(account, part, offset)
                sampled = sampled or found.get("sampled") is not False
                rows = reading.items(found, "data")
                for row in rows:
                    key, conversions, revenue = _row(row, part)
                    if key is not None and (not wanted or key[0] in wanted):
                        before = sums.get(key, (Decimal(0), Decimal(0)))
                        sums[key] = (before[0] + conversions, before[1] + revenue)
                offset += len(rows)
                if not rows or offset > reading.count(found.get("total_rows"), "total_rows"):
                    break
            else:
                raise Malformed("Yandex Metrika has no end of rows")
        order = sorted(sums, key=lambda each: (each[0], each[1], -1 if each[2] is None else each[2]))
        return Statistics(
            tuple(
                PlatformStatistics(
                    external_id,
                    at,
                    hour,
                    conversions=sums[external_id, at, hour][0],
                    revenue=Amount(sums[external_id, at, hour][1], query.currency, None),
                )
                for external_id, at, hour in order
            ),
            sampled=sampled,
            goals=tuple(goals),
            attribution=query.attribution,
        )

    async def _page(self, account: Account, query: StatisticsQuery, offset: int) -> Mapping[str, Any]:
        model = _ATTRIBUTIONS[query.attribution]
        campaign = f"ym:s:{model}UTMCampaign" if query.tagged else f"ym:s:{model}DirectClickOrder"
        metrics = [
            name
            for goal in query.goals
            for name in (f"ym:s:goal{int(goal)}reaches", f"ym:s:goal{int(goal)}converted{query.currency}Revenue")
        ]
        when = ["ym:s:date", "ym:s:hour"] if query.hourly else ["ym:s:date"]
        parameters = {
            "ids": str(account.credentials.yandex_metrika.counter_id),
            "date1": query.first.isoformat(),
            "date2": query.last.isoformat(),
            "dimensions": ",".join([campaign, *when]),
            "metrics": ",".join(metrics),
            "accuracy": "full",
            "limit": str(_PAGE),
            "offset": str(offset),
            "lang": "en",
        }
        if query.campaign_ids and all(each.isascii() and each.isdigit() for each in query.campaign_ids):
            # Tags are whatever visitors bring: without a filter anybody could make the table endless.
            values = ",".join(f"'{each}'" if query.tagged else each for each in query.campaign_ids)
            parameters["filters"] = f"{campaign}=.({values})"
        found = await self._get(account, "/stat/v1/data", parameters, wait=self._report_seconds)
        if "data" not in found:
            raise Malformed("Yandex Metrika answers no data")
        return found

    async def _get(
        self,
        account: Account,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        most_bytes: int = 16 * 2**20,
        wait: float | None = None,
    ) -> Mapping[str, Any]:
        token = account.credentials.yandex_metrika.oauth_token
        async with AsyncExitStack() as stack:
            await self._gates.enter(stack, account.key)
            self._gates.check(account.key)
            answer = await self._http.ask(
                Request(
                    "GET",
                    self._url,
                    path,
                    {"authorization": f"OAuth {token}"},
                    query or {},
                    most_bytes=most_bytes,
                    seconds=wait,
                )
            )
        message = f"Yandex Metrika answers HTTP {answer.status}"
        quota = _quota(answer)
        if quota is not None:
            self._gates.pause(account.key, quota)
            raise Throttled(message, code=answer.status, retry_after=quota)
        # A counter that is not there is none that the token may see.
        if answer.status in (401, 403, 404):
            raise AuthFailed(message, code=answer.status, renewable=_token_refused(answer))
        if 400 <= answer.status < 500:
            raise Refused(message, code=answer.status)
        found = answer.json()
        if answer.status != 200 or not isinstance(found, dict):
            raise Malformed(message, code=answer.status)
        return found


def _kinds(answer: Answer) -> list[str]:
    return [reading.text(each, "error_type") for each in reading.items(answer.object(), "errors")]


def _token_refused(answer: Answer) -> bool:
    return answer.status == 401 or "invalid_token" in _kinds(answer)


def _quota(answer: Answer) -> timedelta | None:
    """How long a quota is used up, after https://yandex.com/dev/metrika/en/intro/quotas; None if none is.

    The documentation has both 429 and 420 for it, and older answers were 403.
    """
    kinds = [each for each in _kinds(answer) if each.startswith("quota")] if answer.status in (403, 420, 429) else []
    if not kinds and answer.status not in (420, 429):
        return None
    if "quota_requests_by_uid" in kinds:
        now = datetime.now(UTC)
        return seconds(86_400 - now.hour * 3600 - now.minute * 60 - now.second)
    if {"quota_requests_by_ip", "quota_parallel_requests"} & set(kinds):
        return seconds(1)
    return seconds(300)


def _price(value: object) -> Amount | None:
    price = None if value is None else reading.decimal(value, "default_price")
    return None if not price else Amount(price, "", None)


def _row(
    row: Mapping[str, Any], query: StatisticsQuery
) -> tuple[tuple[str, date, int | None] | None, Decimal, Decimal]:
    """A row's campaign and time, conversions, revenue; no key if the visits came from no campaign."""
    dimensions, metrics = reading.items(row, "dimensions"), row.get("metrics")
    if len(dimensions) != 2 + query.hourly or not isinstance(metrics, list) or len(metrics) != 2 * len(query.goals):
        raise Malformed("Yandex Metrika answers a row of another shape than was asked for")
    # Numbers of Direct come as such or as N-12345 under a name of their own; tags are the name itself.
    direct = reading.text(dimensions[0], "direct_id").removeprefix("N-") or dimensions[0].get("id")
    external_id = dimensions[0].get("name") if query.tagged else direct
    if external_id is None or external_id == "":
        return None, Decimal(0), Decimal(0)
    at = reading.day(dimensions[1].get("name"), "date")
    if not query.first <= at <= query.last:
        raise Malformed("Yandex Metrika answers a day that was not asked for")
    hour = None
    if query.hourly:
        # As "14:00", beside or instead of a plain number.
        found = _HOUR.match(str(dimensions[2].get("id") or dimensions[2].get("name")))
        hour = int(found[0]) if found else 24
        if hour > 23:
            raise Malformed("Yandex Metrika answers no hour of the day")
    numbers = [Decimal(0) if each is None else reading.decimal(each, "metric") for each in metrics]
    if any(each < 0 for each in numbers):
        raise Malformed("Yandex Metrika answers a negative figure")
    return (str(external_id), at, hour), sum(numbers[::2], Decimal(0)), sum(numbers[1::2], Decimal(0))
