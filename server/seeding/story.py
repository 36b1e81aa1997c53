"""What the demo tells of: who works there, for whom, on what. Days count from the one on which a client was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cache
from typing import Final
from uuid import UUID, uuid5

from server.seeding import history
from server.seeding.history import GULF_PROPERTY, RUSSIAN_RETAIL, Course, Figures

HISTORY_DAYS: Final = 365
"""Days of figures before the day on which a client was made."""
HOURLY_DAYS: Final = 30
"""The last of them, and all days that follow, are told by the hour."""

_NAMESPACE: Final = UUID("6d9f6c8e-52d2-5b0a-9a53-0f6f2d3f7a11")
_MICROS: Final = 1_000_000


def stable_id(kind: str, key: str) -> UUID:
    """The id of a thing of the demo: the same in every installation."""
    return uuid5(_NAMESPACE, f"{kind}/{key}")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody of the agency; one for each role."""

    role: str
    first_name: str
    last_name: str

    @property
    def id(self) -> UUID:
        """The user's id."""
        return stable_id("user", self.role)

    @property
    def email(self) -> str:
        """What the person signs in with, of a domain that nobody can own."""
        return f"{self.role.replace('_', '.')}@demo.example"


PEOPLE: Final = (
    Person("admin", "Alla", "Admina"),
    Person("pm", "Pavel", "Morozov"),
    Person("media_planner", "Maria", "Planova"),
    Person("analyst", "Anton", "Sokolov"),
    Person("account_manager", "Anna", "Gromova"),
    Person("specialist", "Sergei", "Belov"),
)
TEAM: Final = {"pm": "A", "media_planner": "R", "specialist": "R", "analyst": "C", "account_manager": "I"}
"""Who is what in each project: exactly one is Accountable."""


@dataclass(frozen=True, slots=True)
class CampaignStory:
    """A campaign.

    Attributes:
        key: What tells it from all others, for ever.
        channel: Kind of channel, in the words of the contract.
        start: First day of its flight.
        end: Last day of its flight.
        course: How it goes; None for one that has not begun.
        budget: Total budget in whole units of the currency.
    """

    key: str
    name: str
    platform: str
    channel: str
    status: str
    start: date
    end: date
    course: Course | None = None
    budget: int = 0

    @property
    def id(self) -> UUID:
        """The campaign's id."""
        return stable_id("campaign", self.key)

    @property
    def channel_id(self) -> UUID:
        """The channel of the plan that pays for it."""
        return stable_id("channel", self.key)

    def figures(self, first: date, last: date) -> Iterator[tuple[date, Figures]]:
        """Its figures on the days of its flight from `first` to `last`."""
        if self.course is not None:
            for day in _days(max(first, self.start), min(last, self.end)):
                yield day, history.of_day(self.key, self.course, self.start, day)


@dataclass(frozen=True, slots=True)
class VersionStory:
    """A version of a plan.

    Attributes:
        status: Where it stands.
        budgets: Whole units of the currency by the key of the channel's campaign.
    """

    status: str
    budgets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PlanStory:
    """A media plan through its versions, oldest first. Its channels are those of the campaigns it pays for."""

    key: str
    name: str
    campaigns: tuple[CampaignStory, ...]
    versions: tuple[VersionStory, ...]

    @property
    def id(self) -> UUID:
        """The lineage's id."""
        return stable_id("plan", self.key)


@dataclass(frozen=True, slots=True)
class ProjectStory:
    """A project; the budget in whole units of the currency."""

    key: str
    name: str
    description: str
    status: str
    start: date
    end: date
    budget: int
    brief: Mapping[str, str]
    plans: tuple[PlanStory, ...]
    rating: int | None = None

    @property
    def id(self) -> UUID:
        """The project's id."""
        return stable_id("project", self.key)

    @property
    def campaigns(self) -> tuple[CampaignStory, ...]:
        """The campaigns of all plans."""
        return tuple(campaign for plan in self.plans for campaign in plan.campaigns)


@dataclass(frozen=True, slots=True)
class TemplateStory:
    """The shape of a client's file.

    Attributes:
        columns: Names and types, from left to right.
        sample: A row of it.
    """

    key: str
    name: str
    artifact_type: str
    file_name: str
    columns: tuple[tuple[str, str], ...]
    sample: tuple[str, ...]

    @property
    def id(self) -> UUID:
        """The template's id."""
        return stable_id("template", self.key)


@dataclass(frozen=True, slots=True)
class ClientStory:
    """A client; `industry` as benchmarks call it."""

    key: str
    name: str
    type: str
    industry: str
    website: str
    time_zone: str
    currency: str
    language: str = "ru"
    geo: tuple[str, ...] = ()
    interests: tuple[str, ...] = ()

    @property
    def id(self) -> UUID:
        """The client's id."""
        return stable_id("client", self.key)

    def projects(self, made: date) -> tuple[ProjectStory, ...]:
        """Its projects.

        Args:
            made: The day on which the client was made; the figures end the day before.
        """
        return _PROJECTS[self.key](made) if self.key in _PROJECTS else ()


AGENCY: Final = ClientStory(
    "agency", "Severny Veter (demo)", "agency", "marketing", "https://agency.demo.example", "Europe/Moscow", "RUB"
)
RETAIL: Final = ClientStory(
    "teply-dom",
    "Teply Dom (demo)",
    "direct_advertiser",
    "retail",
    "https://teply-dom.demo.example",
    "Europe/Moscow",
    "RUB",
    geo=("RU-MOW", "RU-MOS", "RU-SPE"),
    interests=("home textiles", "kitchen", "renovation"),
)
PROPERTY: Final = ClientStory(
    "marina-heights",
    "Marina Heights (demo)",
    "direct_advertiser",
    "real estate",
    "https://marina-heights.demo.example",
    "Asia/Dubai",
    "AED",
    language="en",
    geo=("AE", "RU"),
    interests=("investment", "property abroad"),
)
ADVERTISERS: Final = (RETAIL, PROPERTY)
TEMPLATES: Final[Mapping[str, tuple[TemplateStory, ...]]] = {
    RETAIL.key: (
        TemplateStory(
            "teply-dom/plan", "Медиаплан на квартал", "media_plan", "медиаплан.xlsx",
            (("Канал", "text"), ("Площадка", "text"), ("Формат", "text"), ("Дата начала", "date"),
             ("Дата окончания", "date"), ("Показы", "integer"), ("Клики", "integer"), ("Бюджет, руб.", "number")),
            ("Поиск", "Яндекс Директ", "Текст", "01.03.2026", "31.05.2026", "250000", "9000", "420 000,00"),
        ),
        TemplateStory(
            "teply-dom/report", "Еженедельный отчёт", "report", "отчет_неделя.csv",
            (("Дата", "date"), ("Кампания", "text"), ("Показы", "integer"), ("Клики", "integer"),
             ("Расход, руб.", "number"), ("Заказы", "integer"), ("Выручка, руб.", "number")),
            ("02.03.2026", "Постельное бельё", "18000", "640", "21 500,00", "17", "71 400,00"),
        ),
    ),
    PROPERTY.key: (
        TemplateStory(
            "marina-heights/report", "Leads by source", "report", "leads.xlsx",
            (("Week", "date"), ("Campaign", "text"), ("Platform", "text"), ("Spend, AED", "number"),
             ("Leads", "integer"), ("Cost per lead", "number"), ("Viewings", "integer")),
            ("2026-03-02", "Off-plan, investors", "VK Ads", "12400", "31", "400", "6"),
        ),
        TemplateStory(
            "marina-heights/brief", "Launch brief", "brief", "brief.xlsx",
            (("Objective", "text"), ("Target audience", "text"), ("Key message", "text"), ("Budget, AED", "number"),
             ("Start date", "date"), ("End date", "date")),
            ("Viewings of two-bedroom flats", "Investors abroad", "Sea view, handover in 2027", "900000", "2026-03-01",
             "2026-06-30"),
        ),
    ),
}  # fmt: skip
"""What the files of clients look like, by the client's key."""


@cache
def _retail(made: date) -> tuple[ProjectStory, ...]:
    def on(days: int) -> date:
        return made + timedelta(days=days)

    def campaign(
        key: str, name: str, platform: str, channel: str, status: str, days: tuple[int, int], course: Course | None
    ) -> CampaignStory:
        start, end = on(days[0]), on(days[1])
        return _budgeted(CampaignStory(f"teply-dom/{key}", name, platform, channel, status, start, end, course), 10_000)

    shop = Course(0, 0, 0, RUSSIAN_RETAIL, order_value=4200, growth=0.22)
    year = (-HISTORY_DAYS, 128)
    always_on = (
        campaign(
            "brand", "Search: brand", "yandex_direct", "search", "active", year,
            replace(shop, impressions=2500, ctr=0.17, cr=0.075, cpc=14, elasticity=0.8),
        ),
        campaign(
            "generic", "Search: bed linen and towels", "yandex_direct", "search", "active", year,
            replace(shop, impressions=9000, ctr=0.072, cr=0.028, cpc=46, spike=(on(-20), on(-18), 2.6)),
        ),
        campaign(
            "network", "Advertising network: catalogue", "yandex_direct", "display", "active", year,
            replace(shop, impressions=120_000, ctr=0.0045, cr=0.008, cpc=17),
        ),
        campaign(
            "retargeting", "Retargeting: left baskets", "yandex_direct", "display", "active", year,
            replace(shop, impressions=45_000, ctr=0.009, cr=0.03, cpc=19, elasticity=1.2),
        ),
        campaign(
            "feed", "VK feed: women 25-44", "vk_ads", "social", "active", year,
            replace(shop, impressions=80_000, ctr=0.011, cr=0.011, cpc=22, growth=0.35),
        ),
        campaign(
            "video", "VK video: autumn story", "vk_ads", "video", "active", year,
            replace(
                shop, impressions=60_000, ctr=0.004, cr=0.006, cpm=190, elasticity=0.6, pause=(on(-47), on(-44))
            ),
        ),
    )  # fmt: skip
    gifts = (
        replace(campaign("gifts", "New Year gifts: VK", "vk_ads", "social", "draft", (10, 60), None), budget=900_000),
    )
    spring = (
        campaign(
            "spring-search", "Spring: search", "yandex_direct", "search", "archived", (-280, -191),
            replace(shop, impressions=5200, ctr=0.065, cr=0.025, cpc=39),
        ),
        campaign(
            "spring-stories", "Spring: VK stories", "vk_ads", "social", "paused", (-280, -191),
            replace(shop, impressions=70_000, ctr=0.009, cr=0.009, cpc=18),
        ),
    )  # fmt: skip
    cashback = (
        campaign(
            "cashback", "Cashback service: banners", "other", "display", "archived", (-230, -201),
            replace(shop, impressions=30_000, ctr=0.012, cr=0.006, cpm=240),
        ),
    )  # fmt: skip
    loyalty = (
        campaign(
            "loyalty", "Loyalty card: VK", "vk_ads", "social", "paused", (-90, -13),
            replace(shop, impressions=38_000, ctr=0.012, cr=0.02, cpc=16, order_value=0),
        ),
    )  # fmt: skip
    outlet = (
        replace(
            campaign("outlet", "Outlet: search", "yandex_direct", "search", "draft", (40, 130), None),
            budget=1_500_000,
        ),
    )
    main = _plan("teply-dom/always-on", "Always on", always_on, ("completed", 0.8), ("active", 1.0), ("draft", 1.12))
    # The video came with the second version.
    main = replace(
        main,
        versions=(
            replace(main.versions[0], budgets=_without(main.versions[0].budgets, "teply-dom/video")),
            *main.versions[1:],
        ),
    )
    return (
        _project(
            "teply-dom/always-on", "Online shop, all year", "Steady sales of the online shop over all channels.",
            "active", year, made,
            ("Sales of 5 per cent more each quarter at a share of costs below 35 per cent",
             "Women and men of 25 to 54 in Moscow, its region and Saint Petersburg",
             "Everything for a warm home, delivered tomorrow"),
            (main, _plan("teply-dom/gifts", "New Year gifts", gifts, ("approved", 1.0))),
        ),
        _project(
            "teply-dom/spring", "Spring collection", "The spring collection, from the first snowdrop to May.",
            "completed", (-280, -191), made,
            ("Sell the spring collection before the summer", "Customers of last year", "Light colours are here"),
            (_plan("teply-dom/spring", "Spring", spring, ("completed", 1.0)),), rating=8,
        ),
        _project(
            "teply-dom/cashback", "Cashback test", "A month with a cashback service, to see whether it pays.",
            "archived", (-230, -201), made,
            ("Find out what a customer of a cashback service costs", "Bargain hunters", "10 per cent back"),
            (_plan("teply-dom/cashback", "Cashback", cashback, ("completed", 1.0)),), rating=4,
        ),
        _project(
            "teply-dom/loyalty", "Loyalty card", "Registrations for the card; waits for the new landing page.",
            "paused", (-90, 60), made,
            ("40 000 new cards", "Customers without a card", "The second pillow is free"),
            (_plan("teply-dom/loyalty", "Loyalty card", loyalty, ("active", 1.0)),),
        ),
        _project(
            "teply-dom/outlet", "Outlet", "A second shop for what is left of past seasons.",
            "draft", (40, 130), made,
            ("Open the outlet with 200 orders a day", "To be decided", "The same pillows for half the price"),
            (_plan("teply-dom/outlet", "Outlet opening", outlet, ("draft", 1.0)),),
        ),
    )  # fmt: skip


@cache
def _property(made: date) -> tuple[ProjectStory, ...]:
    def campaign(key: str, name: str, platform: str, channel: str, course: Course) -> CampaignStory:
        start, end = made - timedelta(days=HISTORY_DAYS), made + timedelta(days=90)
        story = CampaignStory(f"marina-heights/{key}", name, platform, channel, "active", start, end, course)
        return _budgeted(story, 1000)

    leads = Course(0, 0, 0, GULF_PROPERTY, growth=0.1)
    tower = (
        campaign(
            "search", "Search: apartments in Dubai", "yandex_direct", "search",
            replace(leads, impressions=1800, ctr=0.055, cr=0.03, cpc=9.5),
        ),
        campaign(
            "network", "Advertising network: investors", "yandex_direct", "display",
            replace(leads, impressions=40_000, ctr=0.0035, cr=0.006, cpc=3.2),
        ),
        campaign(
            "feed", "VK feed: second home", "vk_ads", "social",
            replace(leads, impressions=22_000, ctr=0.008, cr=0.009, cpc=2.4, growth=-0.1),
        ),
        campaign(
            "portal", "Property portal: banners", "other", "display",
            replace(leads, impressions=6000, ctr=0.009, cr=0.015, cpm=55, elasticity=0.5),
        ),
    )  # fmt: skip
    return (
        _project(
            "marina-heights/tower-b", "Tower B", "Enquiries of Russian-speaking buyers for the second tower.",
            "active", (-HISTORY_DAYS, 90), made,
            ("1500 enquiries in a year", "Russian-speaking investors of 30 and more", "A terrace above the harbour"),
            (_plan("marina-heights/tower-b", "Tower B", tower, ("active", 1.0)),),
        ),
    )  # fmt: skip


_PROJECTS: Final = {RETAIL.key: _retail, PROPERTY.key: _property}


def _budgeted(story: CampaignStory, step: int) -> CampaignStory:
    """Gives a campaign a little more than it will have spent at the end of its flight."""
    spent = sum(figures.cost_micros for _, figures in story.figures(story.start, story.end))
    return replace(story, budget=_up(spent * 104 // (100 * _MICROS), step))


def _plan(key: str, name: str, campaigns: tuple[CampaignStory, ...], *versions: tuple[str, float]) -> PlanStory:
    """A plan whose channels pay for their campaigns with a reserve, times the factor of each version."""
    return PlanStory(
        key,
        name,
        campaigns,
        tuple(
            VersionStory(status, {each.key: _up(int(each.budget * 1.05 * factor), 5000) for each in campaigns})
            for status, factor in versions
        ),
    )


def _project(
    key: str,
    name: str,
    description: str,
    status: str,
    days: tuple[int, int],
    made: date,
    brief: tuple[str, str, str],
    plans: tuple[PlanStory, ...],
    rating: int | None = None,
) -> ProjectStory:
    dearest = sum(max(sum(version.budgets.values()) for version in plan.versions) for plan in plans)
    return ProjectStory(
        key,
        name,
        description,
        status,
        made + timedelta(days=days[0]),
        made + timedelta(days=days[1]),
        _up(int(dearest * 1.05), 50_000),
        dict(zip(("objective", "audience", "message"), brief, strict=True)),
        plans,
        rating,
    )


def _without(budgets: Mapping[str, int], key: str) -> dict[str, int]:
    return {each: budget for each, budget in budgets.items() if each != key}


def _up(amount: int, step: int) -> int:
    return -(-amount // step) * step


def _days(first: date, last: date) -> Iterator[date]:
    for number in range((last - first).days + 1):
        yield first + timedelta(days=number)
