"""The sandbox itself: its state, what can be done to it from outside, and how it misbehaves."""

from __future__ import annotations

import json
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.sandbox.figures import ZONE
from server.sandbox.state import Account, Campaign, Goal, Platform, Restatement, Run, State, Token

if TYPE_CHECKING:
    from server.settings import PlatformsSettings

MISDEEDS = frozenset({"slow", "cut", "length", "huge", "garbage", "redirect"})
_KEPT_REQUESTS = 1_000


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came in.

    Attributes:
        method: HTTP method.
        path: Without what follows the question mark.
        headers: All of them.
        query: The parameters.
        body: As it came.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class _Fault:
    how: str
    platform: str
    path: str
    method: str
    times: int


class Refusal(Exception):
    """A platform's error.

    Attributes:
        code: The platform's own word or number.
        status: HTTP status.
    """

    def __init__(self, code: str, status: int, text: str = "error") -> None:
        super().__init__(text)
        self.code = code
        self.status = status


class Sandbox:
    """The stand-in for all platforms, behind one address.

    Every method without an underscore may be called over `POST /sandbox/<name>`, too, if it is in `CONTROLS`.

    Args:
        state: What to begin with.
        path: File that the state is kept in; only in memory if None.
        moderation: How long moderation takes.
        report: How long a report waits in the queue.
        online_days: Reports of more days than this wait in the queue.
        token_life: How long a renewed VK Ads token lives.
        told: Told of each answered request: method, path, status.

    Attributes:
        url: Where it is, once it serves.
        behaviour: Token to what is answered to it: ``ok``, an error code or HTTP status, or a misdeed. A token that
            stands here needs no account.
        asked: The last requests, in their order.
    """

    def __init__(
        self,
        state: State | None = None,
        *,
        path: Path | None = None,
        moderation: timedelta = timedelta(seconds=5),
        report: timedelta = timedelta(seconds=2),
        online_days: int = 31,
        token_life: timedelta = timedelta(days=1),
        told: Callable[[str, str, int], None] | None = None,
    ) -> None:
        self._path = path
        stored = path.read_bytes() if path is not None and path.exists() else None
        self.state = State.model_validate_json(stored) if stored else state or State()
        self.moderation = moderation
        self.report = report
        self.online_days = online_days
        self.token_life = token_life
        self.told = told
        self.url = ""
        self.behaviour: dict[str, str] = {}
        self.asked: deque[Asked] = deque(maxlen=_KEPT_REQUESTS)
        self._faults: list[_Fault] = []

    def settings(self, timeout: float = 10.0) -> PlatformsSettings:
        """Settings of a server that takes this for the platforms."""
        from server.settings import PlatformsSettings

        names = ("yandex_direct_url", "vk_ads_url", "yandex_metrika_url", "yandex_oauth_url")
        clients = {"yandex_client_id": "sandbox", "vk_ads_client_id": "sandbox"}
        return PlatformsSettings.model_validate({**dict.fromkeys(names, self.url), **clients, "timeout": timeout})

    def save(self) -> None:
        """Keeps the state, if there is a file for it: whole or not at all, and for its owner only."""
        if self._path is None:
            return
        beside = self._path.with_name(self._path.name + ".new")
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(self.state.model_dump_json().encode())
        beside.replace(self._path)

    def open(
        self,
        platform: Platform,
        name: str,
        *,
        campaigns: int = 0,
        days: int = 60,
        sources: Iterable[str] = (),
        currency: str = "RUB",
        life_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Opens an account with running campaigns, or gives new tokens for one there is.

        Args:
            platform: Where.
            name: Login, user or number of the counter.
            campaigns: How many it shall have at least.
            days: For how long they have been running.
            sources: Of a counter: accounts whose campaigns lead to it, as `platform:name`.
            currency: Of all amounts.
            life_seconds: How long the token lives; for ever if None.

        Returns:
            Access and refresh token and the numbers of the campaigns.
        """
        key = f"{platform}:{name}"
        account = self.state.accounts.get(key)
        if account is None:
            account = self.state.accounts[key] = Account(platform=platform, name=name, currency=currency)
            if platform == "yandex_metrika":
                account.goals = [
                    Goal(goal_id=self.state.next_id(), name="Заявка", of_100_000=3_100, value_micros=0),
                    Goal(goal_id=self.state.next_id(), name="Покупка", of_100_000=1_200, value_micros=4_900_000_000),
                ]
        account.sources = list(dict.fromkeys([*account.sources, *sources]))
        since = self.state.now() - timedelta(days=days)
        for number in range(len(account.campaigns) + 1, campaigns + 1):
            made = self.create(account, f"Кампания {number}", since)
            made.state, made.verdict, made.moderated_at = "on", "accepted", since
            made.runs = [Run(since=since)]
        access, refresh = self.tokens(account, None if life_seconds is None else timedelta(seconds=life_seconds))
        self.save()
        return {"access_token": access, "refresh_token": refresh, "campaign_ids": list(account.campaigns)}

    def tokens(self, account: Account, life: timedelta | None) -> tuple[str, str]:
        """A new pair of tokens of an account."""
        key = f"{account.platform}:{account.name}"
        access, refresh = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        ends = None if life is None else self.state.now() + life
        self.state.tokens[access] = Token(account=key, expires_at=ends)
        self.state.tokens[refresh] = Token(account=key, refreshes=True)
        return access, refresh

    def create(self, account: Account, name: str, at: datetime | None = None) -> Campaign:
        """A new campaign, halted and not moderated."""
        now = at or self.state.now()
        made = Campaign(
            campaign_id=self.state.next_id(),
            name=name,
            created_at=now,
            updated_at=now,
            start=now.astimezone(ZONE).date(),
        )
        account.campaigns[made.campaign_id] = made
        return made

    def submit(self, campaign: Campaign) -> None:
        """Gives a campaign to moderation. A name with a cross in it will be rejected."""
        campaign.verdict = "pending"
        campaign.moderated_at = self.state.now() + self.moderation
        campaign.rejection = campaign.rejection or ("не соответствует правилам" if "✗" in campaign.name else "")

    def turn(self, campaign: Campaign, state: str) -> None:
        """Lets a campaign run, halts it or puts it away."""
        now = self.state.now()
        campaign.state = "on" if state == "on" else "suspended" if state == "suspended" else "archived"
        campaign.updated_at = now
        if state == "on" and campaign.verdict == "draft":
            self.submit(campaign)
        if state != "on" and campaign.runs and campaign.runs[-1].until is None:
            campaign.runs[-1].until = now
        self.settle(campaign)

    def settle(self, campaign: Campaign) -> None:
        """Brings a campaign to the present: moderation that is over, and its runs."""
        now = self.state.now()
        if campaign.verdict == "pending" and campaign.moderated_at is not None and campaign.moderated_at <= now:
            campaign.verdict = "rejected" if campaign.rejection else "accepted"
            campaign.updated_at = campaign.moderated_at
        runs = campaign.state == "on" and campaign.verdict == "accepted"
        if runs and (not campaign.runs or campaign.runs[-1].until is not None):
            campaign.runs.append(Run(since=max(campaign.updated_at, campaign.moderated_at or campaign.updated_at)))

    def found(self, campaign_id: int) -> tuple[Account, Campaign]:
        """A campaign and its account.

        Raises:
            KeyError: There is none.
        """
        for account, campaign in self.state.campaigns():
            if campaign.campaign_id == campaign_id:
                return account, campaign
        raise KeyError(f"there is no campaign {campaign_id}")

    def restate(
        self, campaign_id: int, day: str, *, clicks: int | None = None, thousandths: int = 1_000
    ) -> dict[str, Any]:
        """Restates a day of a campaign: to so many clicks, or to so many thousandths of what it has."""
        self.found(campaign_id)
        self.state.restatements.append(
            Restatement(
                campaign_id=campaign_id,
                day=date.fromisoformat(day),
                at=self.state.now(),
                thousandths=thousandths,
                clicks=clicks,
            )
        )
        self.save()
        return {}

    def moderate(self, campaign_id: int, verdict: str, reason: str = "") -> dict[str, Any]:
        """Has moderation decide at once: `accepted` or `rejected`."""
        _, campaign = self.found(campaign_id)
        campaign.rejection = (reason or "rejected") if verdict == "rejected" else ""
        campaign.verdict, campaign.moderated_at = "pending", self.state.now()
        self.settle(campaign)
        self.save()
        return {"verdict": campaign.verdict}

    def expire(self, account: str) -> dict[str, Any]:
        """Ends all access tokens of an account (`platform:name`); they can be renewed."""
        ended = [each for each in self.state.tokens.values() if each.account == account and not each.refreshes]
        for each in ended:
            each.expires_at = self.state.now()
        self.save()
        return {"expired": len(ended)}

    def revoke(self, account: str) -> dict[str, Any]:
        """Takes all tokens of an account away, for good."""
        gone = [token for token, each in self.state.tokens.items() if each.account == account]
        for token in gone:
            del self.state.tokens[token]
        self.save()
        return {"revoked": len(gone)}

    def limit(self, account: str, *, points: int | None = None, requests: int | None = None) -> dict[str, Any]:
        """Sets what is left of an account's limits: points of Yandex Direct, requests of VK Ads."""
        found = self.state.accounts[account]
        if points is not None:
            found.points = points
        found.requests = requests if requests is None or requests >= 0 else None
        self.save()
        return {}

    def advance(self, seconds: float) -> dict[str, Any]:
        """Moves the sandbox's clock on."""
        self.state.offset += timedelta(seconds=seconds)
        self.save()
        return {"now": self.state.now().isoformat()}

    def misbehave(
        self, how: str, *, platform: str = "", path: str = "", method: str = "", times: int = 1
    ) -> dict[str, Any]:
        """Spoils the next answers.

        Args:
            how: A misdeed (`slow`, `cut`, `length`, `huge`, `garbage`, `redirect`), an HTTP status from 400, an error
                of Yandex Direct as `error 152`, or `lost`: what is asked is done, and the answer never comes.
            platform: Of this platform only.
            path: Of requests whose path contains this only.
            method: Of requests with this HTTP method only.
            times: So many; for ever if negative, no more if 0.
        """
        if how not in MISDEEDS | {"lost"} and not how.startswith("error ") and not how.isdigit():
            raise ValueError(f"unknown misdeed {how}")
        made = _Fault(how, platform, path, method, times)
        self._faults = [each for each in self._faults if replace(each, times=times) != made]
        if times:
            self._faults.append(made)
        return {}

    def fault(self, platform: str, path: str, method: str) -> str:
        """What is to be done to this request; empty if nothing."""
        for each in self._faults:
            if each.platform in ("", platform) and each.path in path and each.method in ("", method) and each.times:
                each.times -= 1
                self._faults = [one for one in self._faults if one.times]
                return each.how
        return ""

    def summary(self) -> dict[str, Any]:
        """What there is, without any token."""
        accounts = {
            key: {
                "currency": each.currency,
                "points": each.points,
                "campaigns": [
                    {"id": one.campaign_id, "name": one.name, "state": one.state, "verdict": one.verdict}
                    for one in each.campaigns.values()
                ],
                "goals": [{"id": one.goal_id, "name": one.name} for one in each.goals],
            }
            for key, each in self.state.accounts.items()
        }
        return {"now": self.state.now().isoformat(), "accounts": accounts, "requests": len(self.asked)}

    def control(self, name: str, body: bytes) -> dict[str, Any]:
        """Does what `POST /sandbox/<name>` asks for.

        Raises:
            KeyError: There is no such control, account or campaign.
            ValueError: An argument is wrong.
        """
        given = json.loads(body or b"{}")
        if name not in CONTROLS or not isinstance(given, dict):
            raise KeyError(f"there is no control {name}")
        try:
            answer: dict[str, Any] = getattr(self, name)(**given)
        except TypeError as error:
            raise ValueError(str(error)) from None
        return answer


CONTROLS = frozenset({"open", "restate", "moderate", "expire", "revoke", "limit", "advance", "misbehave"})
"""The methods that `POST /sandbox/<name>` calls."""
