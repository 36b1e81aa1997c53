"""Analytical notes: arithmetic that leaves nothing over, days that stand out, and a model that can add words only."""

from __future__ import annotations

import io
import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import openpyxl
import pytest
from aiohttp import web
from pydantic import ValidationError

from mrm.campaigns.v1 import budget_service_pb2
from mrm.common.v1 import money_pb2, platform_pb2, time_pb2
from mrm.planning.v1 import report_pb2
from mrm.statistics.v1 import snapshot_pb2, statistics_service_pb2
from server.jobs.handling import Stores
from server.platforms.http import PlatformHttp
from server.reports import analysis, explaining, findings, gathering, pages, sheets, wording
from server.reports.days import looked_at
from server.settings import LanguageModelSettings
from storage.clickhouse.metrics import NO_FIGURES, Figures, Run
from storage.postgres.reports import Report, Subject
from tests.conftest import World
from tests.reports.chat import KEY, MODEL, SERVED, chatting, error
from tests.reports.making import asked, drawn, file

pytestmark = pytest.mark.bar_f

NOTES = report_pb2.REPORT_TYPE_ANALYTICAL_NOTES
LAST = date(2026, 10, 31)
ROWS = dict[int, Figures]


def notes(runs: dict[tuple[str, int, str], dict[date, Figures]], days: int, language: str = "ru") -> dict[str, Any]:
    """What is kept of figures by currency, campaign and platform."""
    first = LAST - timedelta(days=days - 1)
    report = Report(
        UUID(int=1), UUID(int=2), UUID(int=3), "UTC", "analytical_notes", first, LAST, "pdf", language, "running", None,
        "", None, None, None, None, None, None, None, datetime.now(UTC), "", 0, "", "",
    )  # fmt: skip
    by_start = {n: first + timedelta(days=n) for n in range(-days, days)}
    starts = {day: start for start, day in by_start.items()}
    kept = {
        (currency, UUID(int=number), platform): Run.of({starts[day]: figures for day, figures in rows.items()})
        for (currency, number, platform), rows in runs.items()
    }
    names = {UUID(int=number): f"Кампания {number}" for _, number, _ in runs}
    data = gathering._kept(report, Subject("Проект", "RUB", "Клиент"), 1_790_000_000_123, by_start, kept, names)
    explaining.explain(data, report, by_start, kept, LAST + timedelta(days=1), [])
    data["findings"] = findings.found(data, language)
    data["words"] = wording.Words().kept()
    return dict(json.loads(json.dumps(data)))


def told(data: dict[str, Any], kind: str) -> list[str]:
    """The sentences of a kind."""
    return [each["text"] for each in data["findings"] if each["kind"] == kind]


def total(parts: list[dict[str, Any]], name: str) -> Decimal:
    return sum((Decimal(part[name]) for part in parts), Decimal())


@pytest.mark.parametrize("seed", range(20))
def test_every_split_leaves_nothing_over(seed: int) -> None:
    chance = random.Random(seed)

    def some() -> Figures:
        if chance.random() < 0.2:
            return NO_FIGURES
        return Figures(
            chance.randrange(10_000),
            chance.randrange(500),
            chance.choice((0, chance.randrange(50_000_000))),
            chance.randrange(10**10),
            chance.randrange(10**11),
        )

    day, before = LAST, LAST - timedelta(days=1)
    data = notes(
        {
            ("RUB", number, ("yandex_direct", "vk_ads", "other")[number % chance.randint(1, 3)]): dict(
                chance.choice((((day, some()),), ((before, some()),), ((day, some()), (before, some()))))
            )
            for number in range(chance.randint(2, 9))
        },
        1,
    )
    for kept in data["currencies"]:
        found = kept["analysis"]
        changes = {each["metric"]: each for each in found["changes"]}
        if kept["metrics"] is None or kept["previous_metrics"] is None:
            continue
        for rows in found["contributions"].values():
            for name in analysis.SUMS:
                assert total(rows, name) == Decimal(changes[name]["change"])
        for each in found["products"]:
            assert Decimal(each["by_volume"]) + Decimal(each["by_rate"]) == Decimal(each["change"])
            assert each["change"] == changes[each["metric"]]["change"]
        for each in found["ratios"]:
            assert Decimal(each["rate"]) + Decimal(each["mix"]) == Decimal(each["change"])
            for name in ("rate", "mix", "change"):
                # Each part is written to a millionth.
                assert abs(total(each["parts"], name) - Decimal(each[name])) <= Decimal("0.000001") * len(each["parts"])


def test_a_shift_between_platforms_is_told_from_a_change_within_them() -> None:
    before, now = LAST - timedelta(days=1), LAST
    # A conversion costs 100 on one platform and 300 on the other, then and now: only the shares change.
    cheap = {before: Figures(0, 10, 10**7, 10**9), now: Figures(0, 10, 3 * 10**7, 3 * 10**9)}
    dear = {before: Figures(0, 10, 3 * 10**7, 9 * 10**9), now: Figures(0, 10, 10**7, 3 * 10**9)}
    data = notes({("RUB", 1, "yandex_direct"): cheap, ("RUB", 2, "vk_ads"): dear}, 1, "en")
    [cpa] = [each for each in data["currencies"][0]["analysis"]["ratios"] if each["metric"] == "cpa"]
    assert (cpa["change"], cpa["rate"], cpa["mix"]) == ("-100", "0", "-100")
    assert {part["platform"]: part["mix"] for part in cpa["parts"]} == {"yandex_direct": "-50", "vk_ads": "-50"}
    assert told(data, "ratio.cpa") == [
        "Change of cost per conversion by −₽100.00: ₽0.00 within the platforms, −₽100.00 by shifts between them."
        " Strongest effects: VK Ads (−₽50.00), Yandex Direct (−₽50.00)."
    ]
    assert told(data, "total.cpa") == ["The cost per conversion fell by 40.0%: ₽150.00 against ₽250.00."]
    assert told(data, "product.conversions") == []
    # The same clicks, at another price: all of the change is the price's.
    assert told(data, "product.cost") == ["The change of cost by −₽4,000.00 is all due to a change of cost per click."]


def season(day: date, chance: random.Random) -> Figures:
    """A day as others of its week are, with some chance in it."""
    clicks = round((1000 if day.weekday() < 5 else 300) * chance.uniform(0.9, 1.1))
    return Figures(clicks * 50, clicks, clicks // 25 * 10**6, clicks * 20 * 10**6, 0)


@pytest.mark.parametrize("seed", range(5))
def test_days_that_stand_out_are_found_and_no_weekend_is(seed: int) -> None:
    chance, first = random.Random(seed), LAST - timedelta(days=41)
    every = [LAST - timedelta(days=n) for n in range(84)]
    campaigns = {(UUID(int=number), "other"): {day: season(day, chance) for day in every} for number in range(3)}
    quiet = {day: summed(campaigns, day) for day in every}
    assert looked_at(quiet, campaigns, first, LAST + timedelta(days=1))["anomalies"] == []
    spike, hole = LAST - timedelta(days=9), LAST - timedelta(days=20)
    mine = campaigns[UUID(int=1), "other"]
    mine[spike] = mine[spike]._replace(clicks=mine[spike].clicks * 4, cost_micros=mine[spike].cost_micros * 4)
    for days in campaigns.values():
        del days[hole]
    days = {day: summed(campaigns, day) for day in every if day != hole}
    # A day that is not over is low, and nobody wonders.
    days[LAST] = Figures(1, 1, 0, 1, 0)
    found = looked_at(days, campaigns, first, LAST)
    assert {(each["date"], each["metric"], each["campaign_id"]) for each in found["anomalies"]} == {
        (spike.isoformat(), name, str(UUID(int=1))) for name in ("cost", "clicks")
    }
    assert found["gaps"] == [{"start_date": hole.isoformat(), "end_date": hole.isoformat()}]
    assert found["tested_days"] == 40


def summed(campaigns: dict[tuple[UUID, str], dict[date, Figures]], day: date) -> Figures:
    return Figures(*map(sum, zip(*(days[day] for days in campaigns.values()), strict=True)))


def test_with_too_few_days_nothing_stands_out() -> None:
    days = {LAST - timedelta(days=n): Figures(0, 10**6 if n == 0 else 1, 0, 0, 0) for n in range(6)}
    assert looked_at(days, {}, LAST, LAST + timedelta(days=1))["anomalies"] == []


def month(language: str) -> dict[str, Any]:
    chance = random.Random(1)
    every = [LAST - timedelta(days=n) for n in range(62)]
    return notes(
        {
            ("RUB", number, ("yandex_direct", "vk_ads")[number % 2]): {day: season(day, chance) for day in every}
            for number in range(4)
        },
        31,
        language,
    )


@pytest.mark.parametrize("language", ["ru", "en"])
def test_notes_are_the_same_bytes_and_nothing_is_left_out(language: str) -> None:
    for data in (month(language), notes({}, 9, language), notes({("USD", 1, "other"): {}}, 3, language)):
        for draw in (pages.pdf, sheets.xlsx):
            assert draw(data, language) == draw(data, language)
        view = pages.view(data, language)
        said = [item["text"] for section in view["sections"] for group in section["groups"] for item in group["items"]]
        assert said == [each["text"] for each in data["findings"]]
        book = openpyxl.load_workbook(io.BytesIO(sheets.xlsx(data, language)))
        cells = [row[1].value for row in book.worksheets[0].iter_rows(min_row=2)]
        assert cells[: len(said)] == said
        assert not any("None" in each or "{" in each for each in said)


def test_a_period_without_another_one_before_it_says_so() -> None:
    data = notes({("RUB", 1, "other"): {LAST: Figures(1000, 10, 10**6, 10**9, 0)}}, 2, "en")
    assert told(data, "no_before") and told(data, "total.cost") == [
        "Cost: ₽1,000.00; there is nothing to compare it with."
    ]
    assert not any(each["group"] == "reasons" for each in data["findings"])


FACT = "Расход вырос на 12,3 %: 1 348 000 ₽ против 1 200 000 ₽, кампания «Двадцать #7» (+9 000 ₽)."
ENGLISH = "Cost rose by 12.3%: ₽1,348,000 against ₽1,200,000 before."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Расход вырос на 12,3 % и достиг 1 348 000 ₽.", ""),
        ("Расход вырос на 12.3%, в основном за счёт кампании «Двадцать #7».", ""),
        ("Один из каналов обошёлся дороже прежнего.", ""),
        ("Расход вырос на 12,4 %.", "figure"),
        ("Расход вырос на 12,3 ₽.", "figure"),
        ("Расход вырос на 12 %.", "figure"),
        ("Расход – 1 348 тыс. ₽.", "figure"),
        ("Расход – 1,3 млн ₽.", "figure"),
        ("Расход вырос вдвое.", "spells"),
        ("Расход вырос в два раза.", "spells"),
        ("Расход вырос на четверть.", "spells"),
        ("Расход вырос на двенадцать процентов.", "spells"),
        ("Расход вырос на ½.", "other signs"),
        ("Расход вырос на ١٢.", "figure"),
        ("См. https://example.com", "more than words"),
        ("Расход **вырос**.", "more than words"),
    ],
)
def test_what_a_model_may_say_in_russian(text: str, reason: str) -> None:
    holds(text, FACT, reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Cost rose by 12.3% to ₽1,348,000.", ""),
        ("One of the channels became dearer.", ""),
        ("Cost rose by 12.5%.", "figure"),
        ("Cost rose to ₽1.348 million.", "figure"),
        ("Cost rose to ₽1.348.000.", "figure"),
        ("Cost nearly doubled.", "spells"),
        ("Cost rose by a third.", "spells"),
        ("Cost rose twofold.", "spells"),
        ("Cost rose by twenty-five percent.", "spells"),
        ("Cost rose by Ⅻ percent.", "other signs"),
        ("Cost <b>rose</b>.", "more than words"),
    ],
)
def test_what_a_model_may_say_in_english(text: str, reason: str) -> None:
    holds(text, ENGLISH, reason)


def holds(text: str, source: str, reason: str) -> None:
    if not reason:
        wording.check(text, [source])
        return
    with pytest.raises(wording.Unusable, match=reason):
        wording.check(text, [source])


FINDINGS = [{"number": 1, "text": ENGLISH}, {"number": 2, "text": "Revenue fell by 7.7%."}]
GOOD = {"paragraphs": [{"text": "Cost rose by 12.3%, while revenue fell by 7.7%.", "findings": [1, 2]}]}


def paragraph(text: str, *numbers: int) -> dict[str, Any]:
    return {"paragraphs": [{"text": text, "findings": list(numbers)}]}


@pytest.fixture
async def http() -> AsyncIterator[PlatformHttp]:
    out = PlatformHttp(5)
    yield out
    await out.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GOOD, ""),
        (paragraph("Revenue fell by 7.7%.", 1), "figure that its findings do not"),
        (paragraph("Cost rose by 99%.", 1), "figure that its findings do not"),
        (paragraph("Cost rose.", 3), "findings that there are not"),
        (paragraph("Cost rose."), "another form"),
        ({**GOOD, "confidence": 0.9}, "another form"),
        ("Cost rose by 12.3%.", "another form"),
        (None, "did not finish"),
    ],
    ids=["good", "other-finding", "invented", "no-finding", "uncited", "more-fields", "prose", "refused"],
)
async def test_words_are_checked(http: PlatformHttp, content: object, reason: str) -> None:
    async with chatting(lambda _: content) as chat:
        words = await wording.worded(http, chat.settings(), FINDINGS, "en")
    assert reason in words.fallback and bool(reason) == bool(words.fallback)
    assert bool(words.paragraphs) == (not reason)
    assert (words.prompt_name, words.prompt_version, words.model) == (wording.PROMPT_NAME, 1, SERVED)
    [body] = chat.asked
    assert body["model"] == MODEL
    # It is given sentences, and nothing else.
    assert json.loads(body["messages"][1]["content"]) == {"language": "English", "findings": FINDINGS}


def huge() -> web.Response:
    return web.Response(body=b" " * (2**20 + 1), content_type="application/json")


@pytest.mark.parametrize(
    ("first", "reason", "calls"),
    [
        ([error(429, "tokens", "rate_limit_exceeded", {"retry-after": "1"})], "", 2),
        ([error(429, "tokens", "rate_limit_exceeded", {"retry-after": "1"}) for _ in range(2)], "HTTP 429", 2),
        ([error(429, "insufficient_quota", "insufficient_quota", {"retry-after": "86400"})], "HTTP 429", 1),
        ([error(500, "server_error")], "", 2),
        ([error(503, "server_error") for _ in range(2)], "did not answer", 2),
        ([error(400, "invalid_request_error")], "HTTP 400", 1),
        ([web.Response(text="<html>", content_type="text/html")], "another form", 1),
        ([web.json_response([1, 2])], "another form", 1),
        ([web.json_response({"choices": []})], "another form", 1),
        ([huge()], "did not answer", 1),
        ([web.Response(status=302, headers={"location": "http://127.0.0.1:1/"})], "did not answer", 1),
        ([9.0, 9.0], "did not answer", 2),
    ],
    ids=[
        "limited", "limited-again", "quota", "broken-once", "broken", "refused", "html", "list", "no-choices", "huge",
        "elsewhere", "silent",
    ],
)  # fmt: skip
async def test_a_model_that_fails_leaves_the_rules(
    http: PlatformHttp, first: list[Any], reason: str, calls: int
) -> None:
    async with chatting(lambda _: GOOD) as chat:
        chat.first = list(first)
        words = await wording.worded(http, chat.settings(timeout=0.2 if first[0] == 9.0 else 5), FINDINGS, "en")
    assert reason in words.fallback and bool(words.paragraphs) == (not reason)
    assert KEY not in repr(words) and len(chat.asked) == calls


async def test_a_wrong_key_an_unfinished_answer_or_nobody_there_leave_the_rules(http: PlatformHttp) -> None:
    async with chatting(lambda _: GOOD) as chat:
        assert "HTTP 401" in (await wording.worded(http, chat.settings(key="other"), FINDINGS, "en")).fallback
        chat.finish = "length"
        assert "did not finish" in (await wording.worded(http, chat.settings(), FINDINGS, "en")).fallback
        settings = chat.settings()
    assert "did not answer" in (await wording.worded(http, settings, FINDINGS, "en")).fallback
    assert await wording.worded(http, LanguageModelSettings(), FINDINGS, "en") == wording.Words()


@pytest.mark.parametrize(
    "url", ["http://example.com/v1", "https://u:p@example.com", "ftp://localhost", "https://h/?k=1"]
)
def test_where_a_model_may_not_be(url: str) -> None:
    with pytest.raises(ValidationError):
        LanguageModelSettings(url=url, model="x")
    with pytest.raises(ValidationError):
        LanguageModelSettings(url="https://example.com/v1")


def echo(given: list[dict[str, Any]]) -> object:
    """Says again what it was told first."""
    return paragraph("Коротко: " + given[0]["text"], given[0]["number"])


class Shop:
    """A project with a budget, two campaigns on two platforms, and figures of four days."""

    def __init__(self, client_id: str, project_id: str, dates: time_pb2.DateRange) -> None:
        self.client_id, self.project_id, self.dates = client_id, project_id, dates


@pytest.fixture(scope="module")
async def shop(world: World) -> Shop:
    today = datetime.now(UTC).date()
    first, last = today - timedelta(days=5), today - timedelta(days=4)
    client = await world.client()
    project = await world.project(
        client.client_id,
        total_budget=money_pb2.Money(currency_code="RUB", micros=10_000 * 10**6),
        start_date=str(first - timedelta(days=2)),
        end_date=str(today + timedelta(days=5)),
    )
    key = await world.key([client.client_id])
    snapshots = []
    for number, platform in enumerate((platform_pb2.PLATFORM_YANDEX_DIRECT, platform_pb2.PLATFORM_VK_ADS), 1):
        campaign = await world.campaign(project.project_id, platform=platform, currency_code="RUB")
        snapshots += [
            snapshot_pb2.MetricsSnapshot(
                campaign_id=campaign.campaign_id,
                date=str(day),
                delivery={"impressions": 3000, "clicks": 70, "cost_micros": cost * number * 10**6},  # type: ignore[arg-type]
                outcome={"conversions_micros": number * 10**6, "revenue_micros": 987_654_321},  # type: ignore[arg-type]
            )
            for day, cost in ((first - timedelta(days=1), 200), (first, 250), (last, 150))
        ]
    request = statistics_service_pb2.AppendMetricsRequest(
        client_id=client.client_id,
        source=snapshot_pb2.METRICS_SOURCE_PLATFORM,
        version=1,
        attribution_model=snapshot_pb2.ATTRIBUTION_MODEL_LAST_CLICK,
        snapshots=snapshots,
    )
    await key.statistics.AppendMetrics(request, metadata=key.auth)
    return Shop(client.client_id, project.project_id, time_pb2.DateRange(start_date=str(first), end_date=str(last)))


async def test_a_note_by_rules(world: World, stores: Stores, shop: Shop) -> None:
    for form, magic in (
        (report_pb2.REPORT_FORMAT_JSON, b"{"),
        (report_pb2.REPORT_FORMAT_PDF, b"%PDF-"),
        (report_pb2.REPORT_FORMAT_XLSX, b"PK"),
    ):
        report = await drawn(
            world, stores, await asked(world.admin, shop.project_id, type=NOTES, dates=shop.dates, format=form)
        )
        assert (await file(world.admin, report.report_id)).startswith(magic)
        assert (report.prompt_name, report.prompt_version, report.model, report.fallback) == ("", 0, "", "")
    report = await drawn(world, stores, await asked(world.admin, shop.project_id, type=NOTES, dates=shop.dates))
    data = json.loads(await file(world.admin, report.report_id))
    assert data["words"]["by"] == "rules"
    [cost] = told(data, "total.cost")
    assert cost.replace("\u00a0", " ") == "Расход вырос на 100,0 %: 1 200,00 ₽ против 600,00 ₽."
    # At the end of the report everything before is spent; the plan of that day is a share of whole days.
    [project] = [each for each in data["currencies"][0]["pacing"] if each["level"] == "project"]
    status = await world.admin.budgets.GetBudgetStatus(
        budget_service_pb2.GetBudgetStatusRequest(project_id=shop.project_id), metadata=world.admin.auth
    )
    assert project["spent_micros"] == status.statuses[0].spent.micros == 1_800 * 10**6
    assert project["budget_micros"] == status.statuses[0].budget.micros
    assert project["planned_micros"] == round(Decimal(10_000 * 10**6) * 4 / 13)
    assert project["date"] == shop.dates.end_date


async def test_a_note_in_the_words_of_a_model(world: World, stores: Stores, shop: Shop) -> None:
    person = await world.user("admin")
    async with chatting(echo) as chat:
        settings = stores.settings.model_copy(update={"language_model": chat.settings()})
        with_model = replace(stores, settings=settings)
        report = await asked(person, shop.project_id, type=NOTES, dates=shop.dates)
        report = await drawn(world, with_model, report)
        raw = await file(world.admin, report.report_id)
        data = json.loads(raw)
        [said] = data["words"]["paragraphs"]
        assert said["text"] == "Коротко: " + data["findings"][0]["text"]
        assert (report.prompt_name, report.prompt_version, report.model) == (wording.PROMPT_NAME, 1, SERVED)
        assert report.fallback == "" and KEY.encode() not in raw
        view = pages.view(data, "ru")
        assert view["words"]["paragraphs"] == [said["text"]] and SERVED in view["words"]["note"]
        assert pages.pdf(data, "ru") == pages.pdf(data, "ru")
        row = await world.database.fetchrow(
            "SELECT generated_by, data::text FROM reports WHERE id = $1", UUID(report.report_id)
        )
        assert row is not None and row[0] == "ai" and KEY not in row[1]
        # What it was given names neither the client nor the project.
        assert shop.client_id not in json.dumps(chat.asked) and shop.project_id not in json.dumps(chat.asked)
        chat.say = lambda given: paragraph("Расход вырос на 314 %.", given[0]["number"])
        liar = await drawn(world, with_model, await asked(world.admin, shop.project_id, type=NOTES, dates=shop.dates))
        assert liar.fallback == "the model states a figure that its findings do not"
        data = json.loads(await file(world.admin, liar.report_id))
        assert data["words"]["by"] == "rules" and "314" not in json.dumps(data["words"])
        # Other reports ask nobody.
        asked_before = len(chat.asked)
        await drawn(world, with_model, await asked(world.admin, shop.project_id, dates=shop.dates))
        assert len(chat.asked) == asked_before
    letters = await world.database.fetch(
        "SELECT address, language, content FROM emails WHERE event_id = $1", f"report:{report.report_id}:ready"
    )
    assert [(row[1], row[2]["type"], row[2]["report_id"]) for row in letters] == [
        ("ru", "analytical_notes", report.report_id)
    ]
    mine = await world.database.fetchval("SELECT email FROM users WHERE id = $1", person.user_id)
    assert letters[0][0] == mine
