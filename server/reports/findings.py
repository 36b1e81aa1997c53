"""What an analytical note says: rules that turn kept figures into sentences, in the order of their weight.

A finding is a sentence and the figures it is made of; nothing else is told, by the rules or by a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, Final

from server.reports.analysis import SUMS
from server.reports.measures import AMOUNTS, COUNTS, PERCENTS
from server.reports.writing import Writer

_TOLD: Final = ("cost", "conversions", "cpa", "revenue", "romi")
_MOST_NAMED: Final = 3
_MOST_PACED: Final = 5
_LONGEST_NAME: Final = 80
# A change that rounds to nothing is none to tell of.
_LEAST_PERCENT: Final = Decimal("0.05")
# So is a part of one.
_LEAST_PART: Final = Decimal("0.005")
_GOOD_WHEN: Final = {"conversions": 1, "revenue": 1, "romi": 1, "roas": 1, "cpa": -1, "cpc": -1}

# By language: nouns of figures, with the form of what is said of them, and of a change of them.
_NOUNS: Final[dict[str, tuple[tuple[str, str, str], tuple[str, str, str]]]] = {
    "cost": (("Расход", "m", "расхода"), ("Cost", "s", "cost")),
    "impressions": (("Число показов", "n", "числа показов"), ("The number of impressions", "s", "impressions")),
    "clicks": (("Число кликов", "n", "числа кликов"), ("The number of clicks", "s", "clicks")),
    "conversions": (("Число конверсий", "n", "числа конверсий"), ("The number of conversions", "s", "conversions")),
    "revenue": (("Доход", "m", "дохода"), ("Revenue", "s", "revenue")),
    "cpa": (("Цена конверсии", "f", "цены конверсии"), ("The cost per conversion", "s", "cost per conversion")),
    "cpc": (("Цена клика", "f", "цены клика"), ("The cost per click", "s", "cost per click")),
    "cr": (
        ("Доля кликов с конверсией", "f", "доли кликов с конверсией"),
        ("The conversion rate", "s", "conversion rate"),
    ),
    "value": (
        ("Доход с конверсии", "m", "дохода с конверсии"),
        ("Revenue per conversion", "s", "revenue per conversion"),
    ),
    "romi": (("ROMI", "m", "ROMI"), ("ROMI", "s", "ROMI")),
    "roas": (("ROAS", "m", "ROAS"), ("ROAS", "s", "ROAS")),
}
_VERBS: Final = {
    "m": ("вырос", "снизился", "не изменился"),
    "n": ("выросло", "снизилось", "не изменилось"),
    "f": ("выросла", "снизилась", "не изменилась"),
    "s": ("rose", "fell", "did not change"),
}
_SAID: Final[dict[str, tuple[str, str]]] = {
    "grown": ("{noun} {verb} на {by}: {now} против {before}.", "{noun} {verb} by {by}: {now} against {before}."),
    "same": ("{noun} {verb}: {now}.", "{noun} {verb}: {now}."),
    "first": ("{noun}: {now}; сравнить не с чем.", "{noun}: {now}; there is nothing to compare it with."),
    "no_before": (
        "В предыдущем периоде ({before}) данных нет, поэтому изменения не разбираются.",
        "There are no figures in the period before ({before}), so no changes are explained.",
    ),
    "gone": (
        "За период данных нет, хотя в предыдущем ({before}) они были: расход тогда составил {cost}.",
        "There are no figures in this period, though there were some before ({before}): the cost then was {cost}.",
    ),
    "running": (
        "Период ещё не закончился: дней без полных данных – {days}. Сравнение с целым предыдущим периодом занижает"
        " итоги.",
        "The period is not over: days that are not complete: {days}. Against the whole period before, sums look too"
        " low.",
    ),
    "product": (
        "Из изменения {of} на {change}: {by_volume} дало изменение {volume}, {by_rate} – изменение {rate}.",
        "Of the change of {of} by {change}, {by_volume} came from a change of {volume} and {by_rate} from a change of"
        " {rate}.",
    ),
    "product_alone": (
        "Изменение {of} на {change} целиком вызвано изменением {cause}.",
        "The change of {of} by {change} is all due to a change of {cause}.",
    ),
    "ratio_platforms": (
        "Изменение {of} на {change}: {rate} – из-за самих площадок, {mix} – из-за перераспределения между ними."
        " Больше всего повлияло: {parts}.",
        "Change of {of} by {change}: {rate} within the platforms, {mix} by shifts between them."
        " Strongest effects: {parts}.",
    ),
    "ratio_campaigns": (
        "Изменение {of} на {change}: {rate} – из-за самих кампаний, {mix} – из-за перераспределения между ними."
        " Больше всего повлияло: {parts}.",
        "Change of {of} by {change}: {rate} within the campaigns, {mix} by shifts between them."
        " Strongest effects: {parts}.",
    ),
    "platforms": (
        "Вклад площадок в изменение {of} ({change}): {parts}.",
        "What platforms contributed to the change of {of} ({change}): {parts}.",
    ),
    "campaigns": (
        "Сильнее всего изменение {of} ({change}) определили кампании: {parts}.",
        "Campaigns that shaped the change of {of} ({change}) the most: {parts}.",
    ),
    "new": (
        "Кампаний, которых раньше не было: {count}; их расход – {cost}, конверсии – {conversions}.",
        "Campaigns that were not there before: {count}; they cost {cost} and brought {conversions} conversions.",
    ),
    "ended": (
        "Кампаний, которые больше не идут: {count}; раньше их расход составлял {cost}, конверсии – {conversions}.",
        "Campaigns that no longer run: {count}; before, they cost {cost} and brought {conversions} conversions.",
    ),
    "anomaly": (
        "{day}: {noun} {now}, обычно около {expected}.{mover}",
        "{day}: {noun} {now}, usually about {expected}.{mover}",
    ),
    "mover": (" Главная причина – кампания {name} ({moved}).", " Mostly the campaign {name} ({moved})."),
    "more_anomalies": (
        "Ещё необычных значений: {count}; здесь показаны самые заметные.",
        "More unusual values: {count}; the most striking are shown here.",
    ),
    "quiet": (
        "Необычных дней нет: проверено дней – {days}.",
        "No unusual days: days tested: {days}.",
    ),
    "gap": ("Нет данных: {days}.", "No figures: {days}."),
    "paced": (
        "{what}: израсходовано {spent} из {budget} ({share}); по плану к этому дню {planned} ({pacing} плана).{end}",
        "{what}: {spent} of {budget} spent ({share}); planned by this day: {planned} ({pacing} of the plan).{end}",
    ),
    "unplanned": (
        "{what}: израсходовано {spent} из {budget} ({share}).",
        "{what}: {spent} of {budget} spent ({share}).",
    ),
    "projected": (
        " При нынешнем темпе к концу срока будет израсходовано {total}.",
        " At the present rate {total} will be spent by the end.",
    ),
    "exhausted": (" Бюджет закончится {day}.", " The budget will be used up on {day}."),
    "more_paced": (
        "Ещё бюджетов, которые расходуются не по плану: {count}; они есть в таблице.",
        "More budgets that are not spent as planned: {count}; the table has them.",
    ),
    "project": ("Проект", "Project"),
    "media_plan": ("Медиаплан", "Media plan"),
    "campaign": ("Кампания", "Campaign"),
    "is_new": ("новая", "new"),
    "is_ended": ("остановлена", "ended"),
}


def found(data: Mapping[str, Any], language: str) -> list[dict[str, Any]]:
    """The findings of kept figures, numbered.

    Args:
        data: What was kept for an analytical note, with `analysis`, `unusual` and `pacing` of each currency.
        language: ``ru`` or ``en``.
    """
    rules = _Rules(Writer(language), data)
    findings = [finding for kept in data["currencies"] for finding in rules.of(kept)]
    return [{"number": number, **finding} for number, finding in enumerate(findings, 1)]


class _Rules:
    """The rules over one report.

    Args:
        writer: Writes numbers.
        data: What was kept.
    """

    def __init__(self, writer: Writer, data: Mapping[str, Any]) -> None:
        self._writer, self._data = writer, data
        self._index = 0 if writer.language == "ru" else 1

    def of(self, kept: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Findings in one currency."""
        currency = kept["currency_code"]
        for group, kind, tone, text in self._all(kept):
            yield {"currency_code": currency, "group": group, "kind": kind, "tone": tone, "text": text}

    def _all(self, kept: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
        now, before = kept["metrics"], kept["previous_metrics"]
        previous = self._dates(self._data["previous_dates"])
        if now is None:
            if before is not None:
                cost = self._amount(kept, "cost", Decimal(before["cost_micros"]).scaleb(-6))
                yield "changed", "gone", "neutral", self._say("gone", before=previous, cost=cost)
        else:
            if kept["running_days"]:
                yield "changed", "running", "neutral", self._say("running", days=kept["running_days"])
            if before is None:
                yield "changed", "no_before", "neutral", self._say("no_before", before=previous)
            yield from self._changes(kept)
            if before is not None:
                yield from self._reasons(kept)
            yield from self._days(kept)
        yield from self._paced(kept)

    def _changes(self, kept: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
        for each in kept["analysis"]["changes"]:
            name = each["metric"]
            present, past, grown = (_number(each[key]) for key in ("value", "previous_value", "change"))
            if name not in _TOLD or present is None:
                continue
            noun, form, _ = _NOUNS[name][self._index]
            said = {"noun": noun, "now": self._amount(kept, name, present)}
            if past is None or grown is None:
                yield "changed", f"total.{name}", "neutral", self._say("first", **said)
                continue
            percent = _number(each["change_percent"])
            small = grown if percent is None else percent
            if abs(small) < _LEAST_PERCENT:
                yield "changed", f"total.{name}", "neutral", self._say("same", **said, verb=_VERBS[form][2])
                continue
            by = self._writer.percent(abs(percent), 1) if percent is not None else self._size(kept, name, abs(grown))
            yield (
                "changed",
                f"total.{name}",
                _tone(name, grown),
                self._say("grown", **said, verb=_VERBS[form][grown < 0], by=by, before=self._amount(kept, name, past)),
            )

    def _reasons(self, kept: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
        """Why: what each factor did, what each part did, what came and went."""
        analysis = kept["analysis"]
        for each in analysis["products"]:
            name = each["metric"]
            whole = {"of": self._of(name), "change": self._signed(kept, name, each["change"])}
            effects = {factor: self._signed(kept, name, each[f"by_{factor}"]) for factor in ("volume", "rate")}
            nothing = [factor for factor in effects if Decimal(each[f"by_{factor}"]).copy_abs() < _LEAST_PART]
            if nothing:
                cause = each["rate" if nothing == ["volume"] else "volume"]
                text = self._say("product_alone", **whole, cause=self._of(cause))
            else:
                text = self._say(
                    "product",
                    **whole,
                    by_volume=effects["volume"],
                    volume=self._of(each["volume"]),
                    by_rate=effects["rate"],
                    rate=self._of(each["rate"]),
                )
            yield "reasons", f"product.{name}", "neutral", text
        for each in analysis["ratios"]:
            name = each["metric"]
            parts = [(self._name(part, each["by"]), part["change"]) for part in each["parts"]]
            text = self._say(
                f"ratio_{each['by']}",
                of=self._of(name),
                change=self._signed(kept, name, each["change"]),
                rate=self._signed(kept, name, each["rate"]),
                mix=self._signed(kept, name, each["mix"]),
                parts=self._listed(kept, name, parts),
            )
            yield "reasons", f"ratio.{name}", _tone(name, Decimal(each["change"])), text
        for by in ("platforms", "campaigns"):
            rows = analysis["contributions"][by]
            for name in SUMS if len(rows) > 1 else ():
                moved = sorted(
                    ((self._name(row, by), row[name]) for row in rows if Decimal(row[name])),
                    key=lambda part: -abs(Decimal(part[1])),
                )
                if moved:
                    grown = next(each["change"] for each in analysis["changes"] if each["metric"] == name)
                    yield (
                        "reasons",
                        f"movers.{by}.{name}",
                        "neutral",
                        self._say(
                            by,
                            of=self._of(name),
                            change=self._signed(kept, name, grown),
                            parts=self._listed(kept, name, moved),
                        ),
                    )
        for state in ("new", "ended"):
            rows = [each for each in analysis["contributions"]["campaigns"] if each["state"] == state]
            if rows:
                cost, conversions = (
                    abs(sum((Decimal(row[name]) for row in rows), Decimal())) for name in ("cost", "conversions")
                )
                yield (
                    "reasons",
                    state,
                    "neutral",
                    self._say(
                        state,
                        count=len(rows),
                        cost=self._amount(kept, "cost", cost),
                        conversions=self._amount(kept, "conversions", conversions),
                    ),
                )

    def _days(self, kept: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
        unusual = kept["unusual"]
        names = {each["campaign_id"]: each["display_name"] for each in kept["campaigns"]}
        for each in unusual["anomalies"]:
            metric, mover = each["metric"], ""
            if "campaign_id" in each:
                mover = self._say(
                    "mover",
                    name=self._quoted(names.get(each["campaign_id"], "")),
                    moved=self._signed(kept, metric, each["moved"]),
                )
            noun, _, plain = _NOUNS[metric][self._index]
            yield (
                "days",
                f"anomaly.{metric}",
                "neutral",
                self._say(
                    "anomaly",
                    day=self._writer.day(date.fromisoformat(each["date"])),
                    noun=noun[0].lower() + noun[1:] if self._index == 0 else plain,
                    now=self._amount(kept, metric, Decimal(each["value"])),
                    expected=self._amount(kept, metric, Decimal(each["expected"])),
                    mover=mover,
                ),
            )
        if unusual["more_anomalies"]:
            yield "days", "more_anomalies", "neutral", self._say("more_anomalies", count=unusual["more_anomalies"])
        if unusual["gaps"]:
            days = ", ".join(self._dates(each) for each in unusual["gaps"])
            yield "days", "gap", "bad", self._say("gap", days=days)
        if unusual["tested_days"] and not unusual["anomalies"] and not unusual["gaps"]:
            yield "days", "quiet", "good", self._say("quiet", days=unusual["tested_days"])

    def _paced(self, kept: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
        """The project's budget, and of the others those that are not spent as planned, the furthest away first."""
        rows = [each for each in kept["pacing"] if each["level"] == "project"]
        others = [
            each
            for each in kept["pacing"]
            if each["level"] != "project" and each["verdict"] in ("ahead", "behind", "over")
        ]
        others.sort(key=lambda each: -abs(each["spent_micros"] - (each["planned_micros"] or each["budget_micros"])))
        for each in rows + others[:_MOST_PACED]:
            tone = {"on_plan": "good", "ahead": "bad", "behind": "bad", "over": "bad"}.get(each["verdict"], "neutral")
            yield "pacing", f"pacing.{each['level']}", tone, self._pace(kept, each)
        if len(others) > _MOST_PACED:
            yield "pacing", "more_paced", "neutral", self._say("more_paced", count=len(others) - _MOST_PACED)

    def _pace(self, kept: Mapping[str, Any], each: Mapping[str, Any]) -> str:
        def money(micros: int) -> str:
            return self._amount(kept, "cost", Decimal(micros).scaleb(-6))

        spent, budget, planned = each["spent_micros"], each["budget_micros"], each["planned_micros"]
        said: dict[str, object] = {
            "what": f"{_SAID[each['level']][self._index]} {self._quoted(each['display_name'])}",
            "spent": money(spent),
            "budget": money(budget),
            "share": self._writer.percent(Decimal(spent) / budget * 100, 1),
        }
        if not planned:
            return self._say("unplanned", **said)
        end, exhausted = "", each["exhaustion_date"]
        if each["verdict"] != "over" and each["date"] < each["end_date"]:
            if exhausted is not None and exhausted < each["end_date"]:
                end = self._say("exhausted", day=self._writer.day(date.fromisoformat(exhausted)))
            elif each["projected_micros"] is not None:
                end = self._say("projected", total=money(each["projected_micros"]))
        pacing = self._writer.percent(Decimal(spent) / planned * 100, 1)
        return self._say("paced", **said, planned=money(planned), pacing=pacing, end=end)

    def _say(self, rule: str, /, **said: object) -> str:
        return _SAID[rule][self._index].format(**said)

    def _of(self, name: str) -> str:
        return _NOUNS[name][self._index][2]

    def _listed(self, kept: Mapping[str, Any], metric: str, parts: Sequence[tuple[str, str]]) -> str:
        return ", ".join(f"{name} ({self._signed(kept, metric, moved)})" for name, moved in parts[:_MOST_NAMED])

    def _name(self, part: Mapping[str, Any], by: str) -> str:
        if by == "platforms":
            return self._writer.text(part["platform"])
        state = part.get("state", "kept")
        mark = "" if state == "kept" else f", {_SAID[f'is_{state}'][self._index]}"
        return self._quoted(part["display_name"]) + mark

    def _quoted(self, name: str) -> str:
        shown = " ".join(name.split()) or self._writer.text("unnamed")
        shown = shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"
        return f"«{shown}»" if self._index == 0 else f"“{shown}”"

    def _dates(self, dates: Mapping[str, str]) -> str:
        first, last = (date.fromisoformat(dates[key]) for key in ("start_date", "end_date"))
        return self._writer.day(first) if first == last else self._writer.days(first, last)

    def _signed(self, kept: Mapping[str, Any], metric: str, text: str) -> str:
        number = Decimal(text)
        return ("+" if number > 0 else "") + self._size(kept, metric, number)

    def _size(self, kept: Mapping[str, Any], metric: str, number: Decimal) -> str:
        """A change of a figure; shares change by points."""
        if metric in PERCENTS:
            return self._writer.points(number)
        return self._amount(kept, metric, number)

    def _amount(self, kept: Mapping[str, Any], metric: str, number: Decimal) -> str:
        if metric in AMOUNTS:
            return self._writer.money(number, kept["currency_code"])
        if metric in COUNTS:
            return self._writer.number(number, 0 if number % 1 == 0 else 1 if abs(number) >= 10 else 2)
        return self._writer.percent(number) if metric in PERCENTS else self._writer.number(number, 2)


def _tone(metric: str, grown: Decimal) -> str:
    wanted = _GOOD_WHEN.get(metric, 0) * grown
    return "neutral" if not wanted else "good" if wanted > 0 else "bad"


def _number(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def grouped(findings: Iterable[Mapping[str, Any]], currency: str) -> dict[str, list[Mapping[str, Any]]]:
    """The findings of a currency by what they are about, both in their order."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for finding in findings:
        if finding["currency_code"] == currency:
            groups.setdefault(finding["group"], []).append(finding)
    return groups
