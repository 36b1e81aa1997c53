"""A report as a PDF: what stands on its pages, in words; report.typ says how it looks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import orjson

from server.reports.analysis import SUMS
from server.reports.findings import grouped
from server.reports.measures import AMOUNTS, COUNTS, PERCENTS, Metrics, change, combined, share, spans, value
from server.reports.writing import Writer

_TEMPLATE: Final = Path(__file__).with_name("report.typ")
_CARDS: Final = ("cost", "impressions", "clicks", "conversions", "revenue", "ctr", "cpa", "romi")
_CHEAPER_IS_BETTER: Final = frozenset({"cpc", "cpm", "cpa"})
# Spending more is neither good nor bad.
_NEUTRAL: Final = frozenset({"cost"})
_OVER_TIME: Final = ("impressions", "clicks", "ctr", "cost", "cpc", "conversions", "cpa", "revenue")
_LINES: Final = ("impressions", "clicks", "ctr", "cost", "conversions", "cpa", "revenue", "romi")
_MOST_CAMPAIGNS: Final = 60
_MOST_MOVERS: Final = 8
_MOST_BUDGETS: Final = 40
_LONGEST_NAME: Final = 120
_LONGEST_CAMPAIGN: Final = 80
_LONGEST_LABEL: Final = 24
# One at a time: a compilation takes some 50 MB.
_TURN: Final = threading.Lock()


def pdf(data: Mapping[str, Any], language: str) -> bytes:
    """Draws the file. Blocks for some tenths of a second, mostly without the interpreter's lock."""
    # Imported here: only workers draw, and the compiler is 80 MB.
    import font_roboto
    import typst

    fonts = str(Path(font_roboto.__file__).with_name("files"))
    with _TURN:
        made = typst.compile(
            str(_TEMPLATE),
            root=str(_TEMPLATE.parent),
            font_paths=[fonts],
            ignore_system_fonts=True,
            format="pdf",
            sys_inputs={"view": orjson.dumps(view(data, language)).decode()},
            timestamp=(_watermark(data) or datetime(2000, 1, 1, tzinfo=UTC)).replace(microsecond=0),
        )
    assert isinstance(made, bytes)
    return made


def view(data: Mapping[str, Any], language: str) -> dict[str, Any]:
    """All words and numbers of the pages."""
    writer = Writer(language)
    text = writer.text
    at = _watermark(data)
    as_of = text("no_data_yet") if at is None else writer.instant(at.astimezone(ZoneInfo(data["time_zone"])))
    previous = data["previous_dates"]
    return {
        "language": language,
        "title": text(data["type"]),
        "client": _short(data["client"]["display_name"]),
        "project": _short(data["project"]["display_name"]),
        "facts": [
            [text("period"), _dates(writer, data["dates"])],
            [text("previous"), _dates(writer, previous)],
            [text("as_of"), as_of],
            [text("zone"), data["time_zone"]],
        ],
        "page": text("page"),
        "of": text("of"),
        "against": text("against"),
        "words": _words(writer, data),
        "sections": [_section(writer, each, data, len(data["currencies"]) > 1) for each in data["currencies"]],
        "method": {"title": text("method"), "text": text("method_text")} if "findings" in data else None,
    }


def _words(writer: Writer, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """A model's words, with whose they are; None if there are none."""
    words = data.get("words")
    if not words or not words["paragraphs"]:
        return None
    return {
        "title": writer.text("in_short"),
        "paragraphs": [each["text"] for each in words["paragraphs"]],
        "note": writer.text("by_model").format(
            model=words["model"], prompt=words["prompt_name"], version=words["prompt_version"]
        ),
    }


def _section(writer: Writer, kept: Mapping[str, Any], data: Mapping[str, Any], named: bool) -> dict[str, Any]:
    currency, kind = kept["currency_code"], data["type"]
    # Without figures there is nothing to draw, nor to list: one sentence says so.
    empty = kept["metrics"] is None
    section = {
        "heading": currency if named else "",
        "empty": writer.text("empty") if empty else "",
        "cards": [_card(writer, name, kept["metrics"], kept["previous_metrics"], currency) for name in _CARDS],
        "groups": [],
        "charts": [],
        "tables": [],
    }
    if kind == "analytical_notes":
        section["groups"] = [
            {
                "title": writer.text("unusual_days" if group == "days" else group),
                "items": [{"text": each["text"], "tone": each["tone"]} for each in some],
            }
            for group, some in grouped(data["findings"], currency).items()
        ]
        section |= dict(zip(("charts", "tables"), _notes(writer, kept), strict=True))
    elif not empty:
        made = _comparison(writer, kept, currency) if kind == "channel_comparison" else _performance(writer, kept)
        section |= {"charts": made[0], "tables": made[1]}
    return section


def _notes(writer: Writer, kept: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """What findings rest on: who changed the sums, what ratios are made of, the days, budgets."""
    currency, analysis, tables = kept["currency_code"], kept["analysis"], []
    charts = []
    compared = kept["metrics"] is not None and kept["previous_metrics"] is not None
    if kept["metrics"] is not None:
        charts.append(_over_time(writer, kept))
        tables.append(_compared(writer, kept))
    for by in ("platforms", "campaigns") if compared else ():
        rows = analysis["contributions"][by]
        label = _named_platform if by == "platforms" else _named_campaign
        if by == "campaigns" or len(rows) > 1:
            charts += [_movers(writer, name, by, rows, label, currency) for name in ("cost", "conversions")]
            tables.append(_contributions(writer, by, rows, label, currency))
    for each in analysis["ratios"]:
        label = _named_platform if each["by"] == "platforms" else _named_campaign
        tables.append(
            {
                "title": writer.text(f"ratio_{each['metric']}"),
                "columns": [
                    writer.text("platform" if each["by"] == "platforms" else "campaign"),
                    *(writer.text(name) for name in ("own_ratio", "shift", "in_all")),
                ],
                "rows": [
                    [label(writer, part), *(_signed(writer, part[name], 2) for name in ("rate", "mix", "change"))]
                    for part in each["parts"][:_MOST_CAMPAIGNS]
                ],
                "total": [
                    writer.text("total"), *(_signed(writer, each[name], 2) for name in ("rate", "mix", "change"))
                ],
            }
        )  # fmt: skip
    if kept["pacing"]:
        tables.append(_budgets(writer, kept))
    return [chart for chart in charts if chart["points"]], tables


def _compared(writer: Writer, kept: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for each in kept["analysis"]["changes"]:
        name = each["metric"]
        found = [None if each[key] is None else Decimal(each[key]) for key in ("value", "previous_value", "change")]
        digits = 2 if name not in COUNTS else _digits(name, [kept["metrics"], kept["previous_metrics"]])
        percent = each["change_percent"]
        unit = f", {writer.sign(kept['currency_code'])}" if name in AMOUNTS else ", %" if name in PERCENTS else ""
        rows.append(
            [
                writer.text(name) + unit,
                _written(writer, found[0], digits),
                _written(writer, found[1], digits),
                "–" if found[2] is None else _signed(writer, each["change"], digits),
                "–" if percent is None else writer.change(Decimal(percent)),
            ]
        )
    heads = ("metric", "value", "before", "difference", "change")
    return {
        "title": writer.text("changed"),
        "columns": [writer.text(each) for each in heads],
        "rows": rows,
        "total": [],
    }


def _contributions(
    writer: Writer, by: str, rows: Sequence[Mapping[str, Any]], label: Callable[..., str], currency: str
) -> dict[str, Any]:
    """By how much each part changed each sum; of campaigns those that did so the most, and the others together."""
    shown = [row for row in rows if any(Decimal(row[name]) for name in SUMS)]
    rest = shown[_MOST_CAMPAIGNS:]
    units = {"cost": f", {writer.sign(currency)}", "revenue": f", {writer.sign(currency)}", "conversions": ""}
    digits = {
        name: 0 if name == "conversions" and all(Decimal(row[name]) % 1 == 0 for row in shown) else 2 for name in SUMS
    }

    def cells(some: Sequence[Mapping[str, Any]]) -> list[str]:
        return [_signed(writer, str(sum(Decimal(row[name]) for row in some)), digits[name]) for name in SUMS]

    return {
        "title": writer.text(f"contributions_{by}"),
        "columns": [
            writer.text(by.removesuffix("s")), *(writer.text(f"{name}_change") + units[name] for name in SUMS)
        ],
        "rows": [[label(writer, row), *cells([row])] for row in shown[:_MOST_CAMPAIGNS]]
        + ([[writer.text("others"), *cells(rest)]] if rest else []),
        "total": [writer.text("total"), *cells(shown)],
    }  # fmt: skip


def _movers(
    writer: Writer, name: str, by: str, rows: Sequence[Mapping[str, Any]], label: Callable[..., str], currency: str
) -> dict[str, Any]:
    """The parts that changed a sum the most, to both sides of nothing."""
    moved = sorted((row for row in rows if Decimal(row[name])), key=lambda row: -abs(Decimal(row[name])))[:_MOST_MOVERS]
    most = max((abs(Decimal(row[name])) for row in moved), default=Decimal(1))
    unit = f", {writer.sign(currency)}" if name in AMOUNTS else ""
    digits = 0 if most >= 1000 or all(Decimal(row[name]) % 1 == 0 for row in moved) else 2
    return {
        "kind": "movers",
        "title": f"{writer.text(f'{name}_change')}{unit}: {writer.text(by).lower()}",
        "points": [
            {
                "label": _short(label(writer, row), _LONGEST_LABEL),
                "part": float(Decimal(row[name]) / most),
                "text": _signed(writer, row[name], digits),
            }
            for row in moved
        ],
    }


def _budgets(writer: Writer, kept: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [
            f"{writer.text(each['level'] + '_level')}: {_named_campaign(writer, each)}",
            *(
                "–" if each[name] is None else writer.number(Decimal(each[name]).scaleb(-6), 0)
                for name in ("budget_micros", "spent_micros", "planned_micros")
            ),
            writer.percent(Decimal(each["spent_micros"]) / each["planned_micros"] * 100, 1)
            if each["planned_micros"]
            else "–",
            writer.text(each["verdict"]),
        ]
        for each in kept["pacing"][:_MOST_BUDGETS]
    ]
    unit = f", {writer.sign(kept['currency_code'])}"
    at = writer.day(date.fromisoformat(kept["pacing"][0]["date"]))
    return {
        "title": f"{writer.text('paced_at')} {at}",
        "columns": [
            writer.text("level"),
            *(writer.text(name) + unit for name in ("budget", "spent", "planned")),
            writer.text("pace"),
            writer.text("verdict"),
        ],
        "rows": rows,
        "total": [],
    }


def _named_platform(writer: Writer, row: Mapping[str, Any]) -> str:
    return writer.text(row["platform"])


def _named_campaign(writer: Writer, row: Mapping[str, Any]) -> str:
    return _short(row["display_name"], _LONGEST_CAMPAIGN) or writer.text("unnamed")


def _signed(writer: Writer, text: str, digits: int) -> str:
    number = Decimal(text)
    return ("+" if number > 0 else "") + writer.number(number, digits)


def _performance(writer: Writer, kept: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    currency = kept["currency_code"]
    unit, some = spans(kept)
    named = {"day": writer.day, "week": writer.day, "month": writer.month}[unit]
    charts = [
        _over_time(writer, kept),
        _bars(writer, kept, "cost", "cost_by_platform"),
        _bars(writer, kept, "conversions", "conversions_by_platform"),
    ]
    tables = [
        _table(
            writer,
            f"by_{unit}",
            unit,
            _OVER_TIME,
            [(named(span.first), span.metrics) for span in some],
            kept["metrics"],
            currency,
        ),
        _platforms(writer, kept),
        _table(writer, "campaigns", "campaign", _LINES, _campaigns(writer, kept), kept["metrics"], currency),
    ]
    return [chart for chart in charts if chart["points"]], tables


def _over_time(writer: Writer, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Cost by day, week or month."""
    unit, some = spans(kept)
    short = {"day": writer.short_day, "week": writer.short_day, "month": writer.short_month}[unit]
    costs = [value(span.metrics, "cost") or Decimal(0) for span in some]
    return {
        "kind": "columns",
        "title": f"{writer.text('cost_over_time')}, {writer.sign(kept['currency_code'])}",
        "points": _points(writer, [short(span.first) for span in some], costs),
        "top": writer.number(max(costs), 0 if max(costs) >= 10 else 2),
    }


def _comparison(writer: Writer, kept: Mapping[str, Any], currency: str) -> tuple[list[Any], list[Any]]:
    charts = [_bars(writer, kept, name, f"{name}_by_platform") for name in ("cost", "conversions", "revenue")]
    prices = [(each["platform"], value(each["metrics"], "cpa")) for each in kept["platforms"]]
    known = [(platform, price) for platform, price in prices if price is not None]
    charts.append(
        {
            "kind": "bars",
            "title": writer.text("cpa_by_platform"),
            "points": [
                {**point, "text": writer.money(price, currency)}
                for point, (_, price) in zip(
                    _points(writer, [writer.text(platform) for platform, _ in known], [price for _, price in known]),
                    known,
                    strict=True,
                )
            ],
        }
    )
    total = kept["metrics"]
    shares: dict[str, Any] = {
        "title": writer.text("shares"),
        "columns": [
            writer.text("platform"),
            *(writer.text(f"{name}_share") for name in ("cost", "conversions", "revenue")),
        ],
        "rows": [
            [
                writer.text(each["platform"]),
                *(
                    _written(writer, share(value(each["metrics"], name), value(total, name)), 1)
                    for name in ("cost", "conversions", "revenue")
                ),
            ]
            for each in kept["platforms"]
        ],
        "total": [],
    }
    return [chart for chart in charts if chart["points"]], [_platforms(writer, kept), shares, _changes(writer, kept)]


def _changes(writer: Writer, kept: Mapping[str, Any]) -> dict[str, Any]:
    """By how much the figures of each platform have changed."""
    names = ("cost", "clicks", "conversions", "cpa", "revenue", "romi")
    return {
        "title": writer.text("changes"),
        "columns": [writer.text("platform"), *(writer.text(name) for name in names)],
        "rows": [
            [
                writer.text(each["platform"]),
                *(_changed(writer, each["metrics"], each["previous_metrics"], name) for name in names),
            ]
            for each in kept["platforms"]
        ],
        "total": [],
    }


def _changed(writer: Writer, now: Metrics, before: Metrics, name: str) -> str:
    grown = _growth(name, now, before)
    return "–" if grown is None else _grown(writer, name, grown)


def _growth(name: str, now: Metrics, before: Metrics) -> Decimal | None:
    """By how much a figure has grown: a share by points, as percent of percent mislead, any other by percent."""
    present, past = value(now, name), value(before, name) if before else None
    if name not in PERCENTS:
        return change(present, past)
    return None if present is None or past is None else present - past


def _grown(writer: Writer, name: str, grown: Decimal) -> str:
    return ("+" if grown > 0 else "") + writer.points(grown) if name in PERCENTS else writer.change(grown)


def _platforms(writer: Writer, kept: Mapping[str, Any]) -> dict[str, Any]:
    rows = [(writer.text(each["platform"]), each["metrics"]) for each in kept["platforms"]]
    return _table(writer, "platforms", "platform", _LINES, rows, kept["metrics"], kept["currency_code"])


def _campaigns(writer: Writer, kept: Mapping[str, Any]) -> list[tuple[str, Metrics]]:
    """The campaigns by cost; what does not fit is one line."""
    rows = [(_named_campaign(writer, each), each["metrics"]) for each in kept["campaigns"] if each["metrics"]]
    rest = combined([metrics for _, metrics in rows[_MOST_CAMPAIGNS:]], kept["currency_code"])
    return rows[:_MOST_CAMPAIGNS] + ([(writer.text("others"), rest)] if rest else [])


def _table(
    writer: Writer,
    title: str,
    first: str,
    names: Sequence[str],
    rows: Iterable[tuple[str, Metrics]],
    total: Metrics,
    currency: str,
) -> dict[str, Any]:
    rows = list(rows)
    digits = {name: _digits(name, [metrics for _, metrics in rows] + [total]) for name in names}

    def cells(metrics: Metrics) -> list[str]:
        return [_written(writer, value(metrics, name), digits[name]) for name in names]

    units = {name: f", {writer.sign(currency)}" for name in AMOUNTS} | {name: ", %" for name in ("ctr", "cr", "romi")}
    return {
        "title": writer.text(title),
        "columns": [writer.text(first), *(writer.text(name) + units.get(name, "") for name in names)],
        "rows": [[label, *cells(metrics)] for label, metrics in rows],
        "total": [writer.text("total"), *cells(total)],
    }


def _digits(name: str, some: Iterable[Metrics]) -> int:
    """How many decimals a column has: as few as serve all of it."""
    found = [each for each in (value(metrics, name) for metrics in some) if each is not None]
    if name in COUNTS:
        return 0 if all(each == each.to_integral_value() for each in found) else 2
    return 0 if any(abs(each) >= 100_000 for each in found) else 2


def _written(writer: Writer, found: Decimal | None, digits: int) -> str:
    return "–" if found is None else writer.number(found, digits)


def _card(writer: Writer, name: str, now: Metrics, before: Metrics, currency: str) -> dict[str, str]:
    found = value(now, name)
    if found is None:
        text = "–"
    elif name in AMOUNTS:
        text = writer.money(found, currency)
    elif name in COUNTS:
        text = writer.number(found, _digits(name, [now]))
    else:
        text = writer.percent(found)
    grown = _growth(name, now, before)
    better = None if not grown or name in _NEUTRAL else (grown > 0) != (name in _CHEAPER_IS_BETTER)
    return {
        "label": writer.text(name),
        "value": text,
        "change": "" if grown is None else _grown(writer, name, grown),
        "tone": "neutral" if better is None else "good" if better else "bad",
    }


def _bars(writer: Writer, kept: Mapping[str, Any], name: str, title: str) -> dict[str, Any]:
    """Shares of the platforms in a sum."""
    total = value(kept["metrics"], name)
    parts = [(each["platform"], share(value(each["metrics"], name), total)) for each in kept["platforms"]]
    known = [(platform, part) for platform, part in parts if part is not None]
    points = _points(writer, [writer.text(platform) for platform, _ in known], [part for _, part in known])
    return {
        "kind": "bars",
        "title": writer.text(title),
        "points": [
            {**point, "part": float(part / 100), "text": writer.percent(part, 1)}
            for point, (_, part) in zip(points, known, strict=True)
        ],
    }


def _points(writer: Writer, labels: Sequence[str], values: Sequence[Decimal]) -> list[dict[str, Any]]:
    """Places in a chart, as parts of its largest value."""
    largest = max(values, default=Decimal(0))
    return [
        {"label": label, "part": float(max(each, Decimal(0)) / largest) if largest > 0 else 0.0}
        for label, each in zip(labels, values, strict=True)
    ]


def _dates(writer: Writer, dates: Mapping[str, str]) -> str:
    return writer.days(date.fromisoformat(dates["start_date"]), date.fromisoformat(dates["end_date"]))


def _short(name: str, longest: int = _LONGEST_NAME) -> str:
    line = " ".join(name.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _watermark(data: Mapping[str, Any]) -> datetime | None:
    return datetime.fromisoformat(data["watermark_time"]) if data["watermark_time"] else None
