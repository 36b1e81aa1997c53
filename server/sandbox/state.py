"""What the sandbox remembers: accounts, their tokens and campaigns, and what was restated."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

POINTS = 64_000
"""Points of a day."""

Platform = Literal["yandex_direct", "vk_ads", "yandex_metrika"]


class Model(BaseModel):
    """A part of the state."""

    model_config = ConfigDict(extra="forbid")


class Token(Model):
    """A token and what it is good for.

    Attributes:
        account: Name of the account.
        expires_at: When it ends; None if it does not.
        refreshes: It renews others, and opens nothing itself.
    """

    account: str
    expires_at: datetime | None = None
    refreshes: bool = False


class Run(Model):
    """A time in which a campaign ran.

    Attributes:
        since: From when.
        until: Until when; None if it still does.
    """

    since: datetime
    until: datetime | None = None


class Campaign(Model):
    """A campaign, in no platform's own words.

    Attributes:
        campaign_id: Its number, one of all platforms.
        name: Its name.
        state: Whether its owner lets it run.
        verdict: What moderation says.
        moderated_at: When moderation ends; None if nothing is submitted.
        rejection: Why it was, or will be, rejected; empty if it passes.
        daily_micros: Daily budget; 0 if there is none.
        total_micros: Total budget; 0 if there is none.
        start: First day.
        end: Last day.
        created_at: When it was made.
        updated_at: When it last changed.
        runs: When it ran.
        configuration: What else it was given, as it came.
    """

    campaign_id: int
    name: str
    state: Literal["on", "suspended", "archived"] = "suspended"
    verdict: Literal["draft", "pending", "accepted", "rejected"] = "draft"
    moderated_at: datetime | None = None
    rejection: str = ""
    daily_micros: int = 0
    total_micros: int = 0
    start: date | None = None
    end: date | None = None
    created_at: datetime
    updated_at: datetime
    runs: list[Run] = Field(default_factory=list)
    configuration: dict[str, object] = Field(default_factory=dict)


class Goal(Model):
    """A goal of a counter: so many of a hundred thousand clicks reach it, and each is worth so much."""

    goal_id: int
    name: str
    kind: str = "action"
    of_100_000: int
    value_micros: int


class Account(Model):
    """An account on a platform.

    Attributes:
        platform: Where.
        name: Login, user or number of the counter.
        currency: Of all amounts.
        campaigns: By number.
        goals: Of a counter.
        sources: Names of the accounts whose campaigns lead to a counter's site.
        points: Left of Yandex Direct's points, which refill by the hour.
        points_at: When they were last used.
        requests: Left of VK Ads' requests in this hour; None if there is no limit.
        funds: There is money to run on.
    """

    platform: Platform
    name: str
    currency: str = "RUB"
    campaigns: dict[int, Campaign] = Field(default_factory=dict)
    goals: list[Goal] = Field(default_factory=list)
    sources: list[str] = Field(default_factory=list)
    points: int = POINTS
    points_at: datetime | None = None
    requests: int | None = None
    funds: bool = True


class Restatement(Model):
    """Figures of a day as they were restated: instead of what the story has, in thousandths of it or outright.

    Attributes:
        campaign_id: The campaign.
        day: The day.
        at: When.
        thousandths: Of what it was.
        clicks: What it now has; the rest follows in proportion.
    """

    campaign_id: int
    day: date
    at: datetime
    thousandths: int = 1000
    clicks: int | None = None


class Report(Model):
    """A report of Yandex Direct: its text, and when it is ready."""

    account: str
    ready_at: datetime
    text: str


class State(Model):
    """Everything.

    Attributes:
        seed: What the figures follow from.
        offset: How far the sandbox's clock is ahead.
        last_id: The last number given.
        accounts: By platform and name.
        tokens: By token.
        restatements: In their order.
        reports: By account and name.
    """

    seed: int = 1
    offset: timedelta = timedelta(0)
    last_id: int = 10_000_000
    accounts: dict[str, Account] = Field(default_factory=dict)
    tokens: dict[str, Token] = Field(default_factory=dict)
    restatements: list[Restatement] = Field(default_factory=list)
    reports: dict[str, Report] = Field(default_factory=dict)

    def now(self) -> datetime:
        """The sandbox's time."""
        return datetime.now(UTC) + self.offset

    def next_id(self) -> int:
        """A number that nothing has."""
        self.last_id += 1
        return self.last_id

    def campaigns(self) -> Iterator[tuple[Account, Campaign]]:
        """All campaigns."""
        for account in self.accounts.values():
            for campaign in account.campaigns.values():
                yield account, campaign
