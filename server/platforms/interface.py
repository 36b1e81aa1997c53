"""What a platform can be asked, whichever it is: what connectors implement and synchronisation is built on.

What comes back is plain data. Amounts are exact and say their currency and whether they hold value-added tax.
Only the errors of this module are raised, and no text in them is the platform's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Protocol, runtime_checkable

from mrm.accounts.v1.integration_pb2 import IntegrationCredentials

MICROS = 1_000_000


class PlatformError(Exception):
    """A platform did not do what was asked. The text is ours and holds nothing that the platform or the caller said.

    Attributes:
        code: The platform's own number of the error, or the HTTP status; 0 if there is none.
    """

    def __init__(self, text: str, *, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class AuthFailed(PlatformError):
    """The platform refuses the credentials, and will go on doing so: the integration is in error until they change.

    Attributes:
        renewable: It is the token that is refused, so a renewed one may be taken; otherwise it is the right.
    """

    def __init__(self, text: str, *, code: int = 0, renewable: bool = False) -> None:
        super().__init__(text, code=code)
        self.renewable = renewable


class Throttled(PlatformError):
    """The platform wants to be asked later.

    Attributes:
        retry_after: How much later.
    """

    def __init__(self, text: str, *, retry_after: timedelta, code: int = 0) -> None:
        super().__init__(text, code=code)
        self.retry_after = retry_after


class NotReady(Throttled):
    """The platform is still making the report; the same question, asked again later, finds it."""


class Unavailable(PlatformError):
    """The platform cannot be reached, or is out of order, for now.

    Attributes:
        uncertain: What was asked may have been done nevertheless. After a creation look for the campaign before trying
            again; everything else may simply be repeated.
    """

    def __init__(self, text: str, *, code: int = 0, uncertain: bool = False) -> None:
        super().__init__(text, code=code)
        self.uncertain = uncertain


class Refused(PlatformError):
    """The platform will never do this: the request itself is at fault.

    Attributes:
        errors: What is wrong with which campaign, if the platform said so.
    """

    def __init__(self, text: str, *, code: int = 0, errors: Sequence[ItemError] = ()) -> None:
        super().__init__(text, code=code)
        self.errors = tuple(errors)


class Malformed(PlatformError):
    """The platform answered something else than is documented. Nothing of it was used."""


class MoneyUnit(StrEnum):
    """How a platform writes amounts."""

    MICROS = "micros"
    """Whole millionths of the currency."""
    DECIMAL = "decimal"
    """Text with a decimal point."""


class Action(StrEnum):
    """What can be done to campaigns as they are."""

    SUSPEND = "suspend"
    RESUME = "resume"
    ARCHIVE = "archive"
    UNARCHIVE = "unarchive"


class State(StrEnum):
    """Whether a campaign runs on its platform."""

    RUNNING = "running"
    OFF = "off"
    """It could run but does not: not begun, without advertisements, or stopped by the platform."""
    SUSPENDED = "suspended"
    """Halted by its owner."""
    ENDED = "ended"
    ARCHIVED = "archived"
    UNKNOWN = "unknown"
    """The platform says something that this version does not know; see `PlatformCampaign.reasons`."""


class Moderation(StrEnum):
    """What the platform's moderation says."""

    DRAFT = "draft"
    """It has not been submitted."""
    PENDING = "pending"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    """As for `State`; also where a platform does not moderate campaigns."""


class Payment(StrEnum):
    """Whether a campaign has money to run on."""

    ALLOWED = "allowed"
    DISALLOWED = "disallowed"
    UNKNOWN = "unknown"
    """The platform does not say."""


class Attribution(StrEnum):
    """How conversions are given to visits; the words are those of the contract."""

    FIRST_CLICK = "first_click"
    LAST_CLICK = "last_click"
    LAST_SIGNIFICANT_CLICK = "last_significant_click"
    LAST_PLATFORM_CLICK = "last_platform_click"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What tells one platform from the other.

    Attributes:
        money: How it writes amounts.
        vat: Amounts of statistics hold value-added tax; None if the platform does not say.
        delivery: It measures impressions, clicks and cost.
        outcomes: It measures conversions and revenue.
        campaigns: Campaigns can be listed and changed.
        total_budgets: Campaigns there may have a budget for their whole time.
        moderation: It moderates campaigns.
        restates: Days already read may change later, up or down.
        settle_days: For so many days after a day its figures commonly still change.
        changes: It tells which campaigns and which days changed; otherwise everything must be read again.
        hourly: Statistics come by the hour, too.
        pushes: It calls us when something changes.
        refreshes: Its tokens are short-lived and can be renewed.
        max_days: Most days of one statistics request.
        max_campaigns: Most campaigns of one statistics request.
        history_days: Statistics reach so many days back; 0 if there is no bound.
        page_size: Campaigns in one page.
        action_size: Most campaigns of one `act`.
    """

    money: MoneyUnit
    vat: bool | None
    delivery: bool
    outcomes: bool
    campaigns: bool
    total_budgets: bool
    moderation: bool
    restates: bool
    settle_days: int
    changes: bool
    hourly: bool
    pushes: bool
    refreshes: bool
    max_days: int
    max_campaigns: int
    history_days: int
    page_size: int
    action_size: int


@dataclass(frozen=True, slots=True)
class Account:
    """Whose account is asked, and with what.

    Attributes:
        key: Names the account towards limits and logs: the integration's id, never a secret.
        credentials: As sealed with the integration.
    """

    key: str
    credentials: IntegrationCredentials = field(repr=False)


@dataclass(frozen=True, slots=True)
class Amount:
    """Money, exactly.

    Attributes:
        value: In units of the currency, at most six decimals.
        currency: ISO 4217; empty if the platform does not say.
        vat_included: It holds value-added tax; None if the platform does not say.
    """

    value: Decimal
    currency: str
    vat_included: bool | None

    @property
    def micros(self) -> int:
        """The value in millionths."""
        return to_micros(self.value)


@dataclass(frozen=True, slots=True)
class PlatformCampaign:
    """A campaign as its platform has it.

    Attributes:
        external_id: Its id there.
        name: Its name there.
        state: Whether it runs.
        moderation: What moderation says.
        payment: Whether it has money.
        reasons: Why it is as it is: the platform's own words for its states and its remarks, for people to read. They
            are shown as they are and never interpreted.
        daily_budget: Most to spend in a day; None if unlimited or set otherwise.
        total_budget: Most to spend in all; None if unlimited.
        start_date: First day; None if not said.
        end_date: Last day; None if open.
        updated_at: When it last changed there; None if the platform does not say.
        configuration: Everything else that was read, as it came.
    """

    external_id: str
    name: str
    state: State
    moderation: Moderation
    payment: Payment
    reasons: tuple[str, ...]
    daily_budget: Amount | None
    total_budget: Amount | None
    start_date: date | None
    end_date: date | None
    updated_at: datetime | None
    configuration: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CampaignPage:
    """Some campaigns of an account.

    Attributes:
        campaigns: In the order of their ids.
        next_page: Asks for the next ones; empty after the last.
    """

    campaigns: tuple[PlatformCampaign, ...]
    next_page: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed since a cursor.

    Attributes:
        cursor: Asks for what changes from now on. Store it once all of this has been acted upon.
        complete: The platform cannot tell, or there was no cursor: take everything for changed.
        campaign_ids: External ids of campaigns that changed.
        statistics_from: External id to the first day whose figures changed.
        gone: External ids that were asked for and are not there, or not visible, any more.
    """

    cursor: str
    complete: bool
    campaign_ids: tuple[str, ...] = ()
    statistics_from: Mapping[str, date] = field(default_factory=dict)
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DesiredCampaign:
    """A campaign as it shall be. In a change, None leaves a part as it is.

    Attributes:
        name: Name.
        daily_budget: Most to spend in a day, in the account's currency.
        total_budget: Most to spend in all, in the account's currency.
        start_date: First day; today, where a platform wants one and none is given.
        end_date: Last day.
        configuration: The platform's own fields, sent as they are; fields above prevail.
    """

    name: str | None = None
    daily_budget: Decimal | None = None
    total_budget: Decimal | None = None
    start_date: date | None = None
    end_date: date | None = None
    configuration: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ItemError:
    """What is wrong with one campaign of a request.

    Attributes:
        external_id: Which; empty for one that was to be created.
        code: The platform's number or word of the error.
        text: What it means, in our words.
    """

    external_id: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class StatisticsQuery:
    """Which figures are asked for. It must be within the platform's limits; `split` makes such.

    Attributes:
        first: First day, in the time zone of the account.
        last: Last day.
        campaign_ids: External ids; all campaigns if empty, where a platform can do that.
        hourly: By hour, not by day.
        reading: Name of this reading, ASCII, up to 64 characters. The same question under the same name gets the same
            report, so keep it while waiting out `NotReady`, and take another to have the platform count again.
        goals: Goals whose conversions count; all if empty. Only where outcomes are measured.
        attribution: How conversions are given to visits. Only where outcomes are measured.
        currency: Currency in which revenue is wanted. Only where outcomes are measured.
        tagged: A visit's campaign is what its `utm_campaign` says, not what the counter's own platform knows: so the
            campaigns of other platforms are found. Only where outcomes are measured.
    """

    first: date
    last: date
    campaign_ids: tuple[str, ...] = ()
    hourly: bool = False
    reading: str = ""
    goals: tuple[str, ...] = ()
    attribution: Attribution = Attribution.LAST_SIGNIFICANT_CLICK
    currency: str = "RUB"
    tagged: bool = False


@dataclass(frozen=True, slots=True)
class PlatformStatistics:
    """Figures of one campaign in one day or hour. What a platform does not measure is None, never zero.

    Attributes:
        external_id: The campaign.
        date: The day, in the time zone of the account.
        hour: The hour of that day, 0 to 23; None for figures of the whole day.
        impressions: Times shown.
        clicks: Times clicked; may exceed impressions.
        cost: Money spent.
        conversions: Conversions, also parts of one.
        revenue: Money earned.
    """

    external_id: str
    date: date
    hour: int | None = None
    impressions: int | None = None
    clicks: int | None = None
    cost: Amount | None = None
    conversions: Decimal | None = None
    revenue: Amount | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """The answer to a `StatisticsQuery`. A day and campaign asked for and without a row had nothing: zeros.

    Attributes:
        rows: By campaign and time. Every (campaign, date, hour) occurs once.
        sampled: The platform extrapolated from a part of its data, so that the figures are estimates.
        goals: The goals that were counted; empty where none are.
        attribution: How conversions were given to visits; None where none are.
        time_zone: IANA name of the zone the days are in; empty if the platform does not say.
    """

    rows: tuple[PlatformStatistics, ...]
    sampled: bool = False
    goals: tuple[str, ...] = ()
    attribution: Attribution | None = None
    time_zone: str = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """Something visitors of a site are wanted to do.

    Attributes:
        goal_id: Its id at the platform.
        name: Its name there.
        kind: What sort of goal, in the platform's word.
        value: What reaching it is worth; None if the platform was not told.
    """

    goal_id: str
    name: str
    kind: str
    value: Amount | None = None


@runtime_checkable
class Connector(Protocol):
    """Any platform. Connectors keep no state of an account beyond counters of its limits, and may be shared."""

    platform: str
    """The word of the platform: what `IntegrationCredentials` calls it, and the database."""
    capabilities: Capabilities

    async def check(self, account: Account) -> None:
        """Returns if the platform takes the credentials, by the cheapest question that only valid ones can answer."""
        ...

    async def refresh(self, account: Account) -> IntegrationCredentials | None:
        """New credentials, for the caller to seal and to store before anything else is asked.

        Returns:
            None if there is nothing to renew them with. The old ones may be dead from here on.

        Raises:
            AuthFailed: The grant itself is refused.
        """
        ...


@runtime_checkable
class CampaignConnector(Connector, Protocol):
    """A platform on which campaigns run."""

    async def list_campaigns(self, account: Account, *, ids: Sequence[str] = (), page: str = "") -> CampaignPage:
        """A page of campaigns, archived ones too.

        Args:
            account: Whose.
            ids: Only these, at most `capabilities.page_size`; those that are not there are left out.
            page: `CampaignPage.next_page` of the page before.
        """
        ...

    async def changes(self, account: Account, cursor: str, *, campaign_ids: Sequence[str] = ()) -> Changes:
        """What changed.

        Args:
            account: Whose.
            cursor: Of the last `Changes`; empty to get a first one.
            campaign_ids: For which the days of changed statistics are wanted.
        """
        ...

    async def create_campaign(self, account: Account, desired: DesiredCampaign) -> str:
        """Creates a campaign, which does not run yet, and returns its external id. Never repeated by itself.

        Raises:
            Refused: The platform does not take it.
            Unavailable: With `uncertain` it may exist.
        """
        ...

    async def update_campaign(self, account: Account, external_id: str, desired: DesiredCampaign) -> None:
        """Changes the parts that are not None.

        Raises:
            Refused: The platform does not take it.
        """
        ...

    async def act(self, account: Account, action: Action, ids: Sequence[str]) -> tuple[ItemError, ...]:
        """Does the same to up to `capabilities.action_size` campaigns; what is as wanted already is no error.

        Returns:
            Those to which it could not be done. To all others it was done.
        """
        ...

    async def statistics(self, account: Account, query: StatisticsQuery) -> Statistics:
        """Figures of delivery.

        Raises:
            NotReady: Ask the same again later.
        """
        ...


@runtime_checkable
class AnalyticsConnector(Connector, Protocol):
    """A counter that measures what visits brought."""

    async def goals(self, account: Account) -> tuple[Goal, ...]:
        """The goals of the counter."""
        ...

    async def outcomes(self, account: Account, query: StatisticsQuery) -> Statistics:
        """Conversions and revenue by the advertising platform's campaign id."""
        ...


def split(capabilities: Capabilities, query: StatisticsQuery) -> Iterator[StatisticsQuery]:
    """Cuts a question into ones that the platform takes, oldest days first; each can be asked and stored by itself."""
    ids = sorted(set(query.campaign_ids))
    parts = [tuple(ids[at : at + capabilities.max_campaigns]) for at in range(0, len(ids), capabilities.max_campaigns)]
    first = query.first
    while first <= query.last:
        last = min(query.last, first + timedelta(days=capabilities.max_days - 1))
        for part in parts or [()]:
            yield replace(query, first=first, last=last, campaign_ids=part)
        first = last + timedelta(days=1)


def from_micros(micros: int) -> Decimal:
    """Millionths as an exact amount."""
    return Decimal(micros).scaleb(-6)


def to_micros(value: Decimal) -> int:
    """An amount as millionths.

    Raises:
        ValueError: It has more than six decimals, or is no number.
    """
    scaled = value.scaleb(6)
    if not scaled.is_finite() or scaled != scaled.to_integral_value():
        raise ValueError("an amount has more than six decimals")
    return int(scaled)
