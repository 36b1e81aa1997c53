"""A report as a PDF: what stands on its pages, in words; report.typ says how it looks."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import orjson

from server.reports.gathering import combined
from server.reports.measures import AMOUNTS, COUNTS, Metrics, change, share, spans, value
from server.reports.writing import Writer

_TEMPLATE: Final = Path(__file__).with_name("report.typ")
_CARDS: Final = ("cost", "impressions", "clicks", "conversions", "revenue", "ctr", "cpa", "romi")
_CHEAPER_IS_BETTER: Final = frozenset({"cpc", "cpm", "cpa"})
# Spending more is neither good nor bad.
_NEUTRAL: Final = frozenset({"cost"})
_OVER_TIME: Final = ("impressions", "clicks", "ctr", "cost", "cpc", "conversions", "cpa", "revenue")
_LINES: Final = ("impressions", "clicks", "ctr", "cost", "conversions", "cpa", "revenue", "romi")
_MOST_CAMPAIGNS: Final = 60
_LONGEST_NAME: Final = 120
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
        "sections": [_section(writer, each, data["type"], len(data["currencies"]) > 1) for each in data["currencies"]],
    }


def _section(writer: Writer, kept: Mapping[str, Any], kind: str, named: bool) -> dict[str, Any]:
    currency = kept["currency_code"]
    # Without figures there is nothing to draw, nor to list: one sentence says so.
    empty = kept["metrics"] is None
    section = {
        "heading": currency if named else "",
        "empty": writer.text("empty") if empty else "",
        "cards": [_card(writer, name, kept["metrics"], kept["previous_metrics"], currency) for name in _CARDS],
        "charts": [],
        "tables": [],
    }
    if not empty:
        made = _comparison(writer, kept, currency) if kind == "channel_comparison" else _performance(writer, kept)
        section |= {"charts": made[0], "tables": made[1]}
    return section


def _performance(writer: Writer, kept: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    currency = kept["currency_code"]
    unit, some = spans(kept)
    named = {"day": writer.day, "week": writer.day, "month": writer.month}[unit]
    short = {"day": writer.short_day, "week": writer.short_day, "month": writer.short_month}[unit]
    costs = [value(span.metrics, "cost") or Decimal(0) for span in some]
    charts = [
        {
            "kind": "columns",
            "title": f"{writer.text('cost_over_time')}, {writer.sign(currency)}",
            "points": _points(writer, [short(span.first) for span in some], costs),
            "top": writer.number(max(costs), 0 if max(costs) >= 10 else 2),
        },
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
        "title": writer.text("change"),
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
    found = change(value(now, name), value(before, name)) if before else None
    return "–" if found is None else writer.change(found)


def _platforms(writer: Writer, kept: Mapping[str, Any]) -> dict[str, Any]:
    rows = [(writer.text(each["platform"]), each["metrics"]) for each in kept["platforms"]]
    return _table(writer, "platforms", "platform", _LINES, rows, kept["metrics"], kept["currency_code"])


def _campaigns(writer: Writer, kept: Mapping[str, Any]) -> list[tuple[str, Metrics]]:
    """The campaigns by cost; what does not fit is one line."""
    rows = [
        (_short(each["display_name"]) or writer.text("unnamed"), each["metrics"])
        for each in kept["campaigns"]
        if each["metrics"]
    ]
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
    grown = change(found, value(before, name)) if before else None
    better = None if not grown or name in _NEUTRAL else (grown > 0) != (name in _CHEAPER_IS_BETTER)
    return {
        "label": writer.text(name),
        "value": text,
        "change": "" if grown is None else writer.change(grown),
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


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _watermark(data: Mapping[str, Any]) -> datetime | None:
    return datetime.fromisoformat(data["watermark_time"]) if data["watermark_time"] else None
