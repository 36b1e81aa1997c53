"""A report as XLSX: numbers to go on calculating with, under frozen headers, and charts that are drawn from them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final

from server.reports.analysis import SUMS
from server.reports.measures import AMOUNTS, COUNTS, PERCENTS, Metrics, change, share, value
from server.reports.writing import Writer

_NAMES: Final = (
    "impressions", "clicks", "ctr", "cost", "cpc", "cpm", "conversions", "cr", "cpa", "revenue", "romi", "roas",
)  # fmt: skip
_SHARES: Final = ("cost", "conversions", "revenue")
_FORMATS: Final = {
    **dict.fromkeys(COUNTS, "#,##0"),
    **dict.fromkeys(AMOUNTS, "#,##0.00"),
    **dict.fromkeys(PERCENTS, "0.00"),
    "conversions": "#,##0.##",
    "roas": "0.00",
    "share": "0.0",
    "change": "+0.0;-0.0;0.0",
    "day": "yyyy-mm-dd",
}
_LONGEST_COLUMN: Final = 60
_NO_WATERMARK: Final = datetime(2000, 1, 1)


def xlsx(data: Mapping[str, Any], language: str) -> bytes:
    """Writes the file. Blocks, on the interpreter's lock, for a tenth of a second in a thousand rows."""
    # Imported here: only workers write sheets.
    import xlsxwriter

    writer, buffer = Writer(language), io.BytesIO()
    watermark = data["watermark_time"]
    book = xlsxwriter.Workbook(
        # Names of campaigns are whatever somebody wrote: none becomes a formula or a link.
        buffer, {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False}
    )  # fmt: skip
    # The same figures make the same bytes.
    made = datetime.fromisoformat(watermark).astimezone(UTC).replace(tzinfo=None) if watermark else _NO_WATERMARK
    book.set_properties(
        {"title": writer.text(data["type"]), "subject": data["project"]["display_name"], "created": made}
    )
    _Book(book, writer, data).write()
    book.close()
    return buffer.getvalue()


class _Book:
    """The sheets of a report.

    Args:
        book: What they go into.
        writer: Writes their words.
        data: The figures.
    """

    def __init__(self, book: Any, writer: Writer, data: Mapping[str, Any]) -> None:
        self._book, self._writer, self._data = book, writer, data
        self._formats = {name: book.add_format({"num_format": text}) for name, text in _FORMATS.items()}
        self._bold = {
            name: book.add_format({"num_format": text, "bold": True, "top": 1}) for name, text in _FORMATS.items()
        }
        self._header = book.add_format(
            {"bold": True, "font_color": "#ffffff", "bg_color": "#1f5fbf", "text_wrap": True, "valign": "vcenter"}
        )
        self._title = book.add_format({"bold": True, "font_size": 14})
        self._strong = book.add_format({"bold": True, "top": 1})
        self._wrapped = book.add_format({"text_wrap": True, "valign": "top"})

    def write(self) -> None:
        """Writes all sheets; those of several currencies have the currency in their names."""
        text = self._writer.text
        if self._data["type"] == "analytical_notes":
            self._notes()
        for kept in self._data["currencies"]:
            end = f" {kept['currency_code']}" if len(self._data["currencies"]) > 1 else ""
            self._summary(text("summary") + end, kept)
            platforms = self._list(
                text("platforms") + end, kept, [("platform", 22)], [[text(e["platform"])] for e in kept["platforms"]],
                [each["metrics"] for each in kept["platforms"]],
            )  # fmt: skip
            self._platform_charts(platforms, text("platforms") + end, kept)
            if self._data["type"] == "performance":
                self._performance(kept, end)
            elif self._data["type"] == "channel_comparison":
                self._shares(text("shares") + end, kept)
            else:
                self._explained(kept, end)

    def _notes(self) -> None:
        """The findings, and a model's words before them."""
        text = self._writer.text
        sheet = self._book.add_worksheet(text("findings"))
        for column, (head, wide) in enumerate((("about", 22), ("finding", 120))):
            sheet.write(0, column, text(head), self._header)
            sheet.set_column(column, column, wide, self._wrapped)
        sheet.freeze_panes(1, 0)
        words, several = self._data["words"], len(self._data["currencies"]) > 1
        rows = [(text("in_short"), each["text"]) for each in words["paragraphs"]]
        for each in self._data["findings"]:
            about = text("unusual_days" if each["group"] == "days" else each["group"])
            rows.append((f"{about} {each['currency_code']}" if several else about, each["text"]))
        rows.append((text("method"), text("method_text")))
        if words["paragraphs"]:
            said = text("by_model").format(
                model=words["model"], prompt=words["prompt_name"], version=words["prompt_version"]
            )
            rows.append((text("method"), said))
        for number, (about, sentence) in enumerate(rows, 1):
            sheet.write_string(number, 0, about, self._wrapped)
            sheet.write_string(number, 1, sentence, self._wrapped)

    def _explained(self, kept: Mapping[str, Any], end: str) -> None:
        """What findings rest on, as numbers."""
        text, currency = self._writer.text, kept["currency_code"]
        contributions = kept["analysis"]["contributions"]
        changes = [(f"{text(f'{name}_change')}{self._unit(name, currency)}", name) for name in SUMS]
        for by, names in (("platforms", ("platform",)), ("campaigns", ("campaign", "platform"))):
            self._plain(
                f"{text('change').partition(',')[0]}, {text(by).lower()}{end}",
                [(text(name), 60 if name == "campaign" else 22) for name in names]
                + [(head, 20) for head, _ in changes],
                [
                    [
                        *(
                            (each["display_name"] or text("unnamed")) if name == "campaign" else text(each["platform"])
                            for name in names
                        ),
                        *(Decimal(each[name]) for _, name in changes),
                    ]
                    for each in contributions[by]
                ],
            )
        if kept["unusual"]["anomalies"]:
            self._plain(
                text("unusual_days") + end,
                [(text(name), 14) for name in ("day", "metric", "value", "expected")],
                [
                    [
                        date.fromisoformat(each["date"]),
                        self._label(each["metric"], currency),
                        Decimal(each["value"]),
                        Decimal(each["expected"]),
                    ]
                    for each in kept["unusual"]["anomalies"]
                ],
            )
        if kept["pacing"]:
            money = ("budget_micros", "spent_micros", "planned_micros")
            heads = [f"{text(name.removesuffix('_micros'))}, {currency}" for name in money]
            self._plain(
                text("pacing") + end,
                [(text("level"), 14), (text("name"), 60), *((head, 20) for head in heads), (text("verdict"), 20)],
                [
                    [
                        text(f"{each['level']}_level"),
                        each["display_name"],
                        *(None if each[name] is None else Decimal(each[name]).scaleb(-6) for name in money),
                        text(each["verdict"]),
                    ]
                    for each in kept["pacing"]
                ],
            )

    def _plain(self, name: str, heads: Sequence[tuple[str, int]], rows: Sequence[Sequence[Any]]) -> None:
        """A sheet of words, days and amounts."""
        sheet = self._book.add_worksheet(name)
        for column, (head, wide) in enumerate(heads):
            sheet.write(0, column, head, self._header)
            sheet.set_column(column, column, wide)
        sheet.freeze_panes(1, 1)
        for row, cells in enumerate(rows, 1):
            for column, cell in enumerate(cells):
                if isinstance(cell, str):
                    sheet.write_string(row, column, cell)
                elif isinstance(cell, date):
                    sheet.write_datetime(row, column, datetime.combine(cell, datetime.min.time()), self._formats["day"])
                else:
                    _number(sheet, row, column, cell, self._formats["cost"])
        if rows:
            sheet.autofilter(0, 0, len(rows), len(heads) - 1)

    def _performance(self, kept: Mapping[str, Any], end: str) -> None:
        text = self._writer.text
        self._list(
            text("campaigns") + end,
            kept,
            [("campaign", _LONGEST_COLUMN), ("platform", 22)],
            [[each["display_name"] or text("unnamed"), text(each["platform"])] for each in kept["campaigns"]],
            [each["metrics"] for each in kept["campaigns"]],
        )
        name = text("days") + end
        days = [date.fromisoformat(each["date"]) for each in kept["days"]]
        sheet = self._list(
            name, kept, [("day", 12)], [[day] for day in days], [each["metrics"] for each in kept["days"]]
        )
        chart = self._book.add_chart({"type": "line"})
        column = 1 + _NAMES.index("cost")
        chart.add_series(
            {
                "name": [name, 0, column],
                "categories": [name, 1, 0, len(days), 0],
                "values": [name, 1, column, len(days), column],
                "line": {"color": "#1f5fbf", "width": 2},
            }
        )
        chart.set_title({"name": text("cost_over_time")})
        chart.set_legend({"none": True})
        chart.set_size({"width": 900, "height": 320})
        sheet.insert_chart(1, 2 + len(_NAMES), chart)

    def _summary(self, name: str, kept: Mapping[str, Any]) -> None:
        writer, text, data = self._writer, self._writer.text, self._data
        sheet = self._book.add_worksheet(name)
        sheet.set_column(0, 0, 26)
        sheet.set_column(1, 3, 20)
        sheet.write(0, 0, text(data["type"]), self._title)
        dates, before = data["dates"], data["previous_dates"]
        facts = (
            (text("client"), data["client"]["display_name"]),
            (text("project"), data["project"]["display_name"]),
            (text("period"), f"{dates['start_date']} – {dates['end_date']}"),
            (text("previous"), f"{before['start_date']} – {before['end_date']}"),
            (text("as_of"), data["watermark_time"] or text("no_data_yet")),
            (text("zone"), data["time_zone"]),
        )
        for row, (label, said) in enumerate(facts, 1):
            sheet.write(row, 0, label)
            sheet.write_string(row, 1, said)
        head = len(facts) + 2
        for column, label in enumerate(("metric", "value", "before", "change")):
            sheet.write(head, column, text(label), self._header)
        sheet.freeze_panes(head + 1, 0)
        for row, each in enumerate(_NAMES, head + 1):
            sheet.write(row, 0, self._label(each, kept["currency_code"]))
            now = value(kept["metrics"], each)
            earlier = value(kept["previous_metrics"], each) if kept["previous_metrics"] else None
            _number(sheet, row, 1, now, self._formats[each])
            _number(sheet, row, 2, earlier, self._formats[each])
            _number(sheet, row, 3, change(now, earlier), self._formats["change"])
        if kept["metrics"] is None:
            sheet.write(head + len(_NAMES) + 2, 0, writer.text("empty"))

    def _list(
        self,
        name: str,
        kept: Mapping[str, Any],
        heads: Sequence[tuple[str, int]],
        labels: Sequence[Sequence[str | date]],
        figures: Sequence[Metrics],
    ) -> Any:
        """A sheet of lines, and their sum below."""
        sheet = self._book.add_worksheet(name)
        width = len(heads)
        for column, (head, wide) in enumerate(heads):
            sheet.write(0, column, self._writer.text(head), self._header)
            sheet.set_column(column, column, wide)
        for column, each in enumerate(_NAMES, width):
            sheet.write(0, column, self._label(each, kept["currency_code"]), self._header)
        sheet.set_column(width, width + len(_NAMES) - 1, 14)
        sheet.freeze_panes(1, width)
        for row, (some, metrics) in enumerate(zip(labels, figures, strict=True), 1):
            for column, label in enumerate(some):
                if isinstance(label, date):
                    sheet.write_datetime(
                        row, column, datetime.combine(label, datetime.min.time()), self._formats["day"]
                    )
                else:
                    sheet.write_string(row, column, label)
            self._line(sheet, row, width, metrics, self._formats)
        if labels:
            sheet.autofilter(0, 0, len(labels), width + len(_NAMES) - 1)
        last = len(labels) + 1
        sheet.write(last, 0, self._writer.text("total"), self._strong)
        for column in range(1, width):
            sheet.write_blank(last, column, None, self._strong)
        self._line(sheet, last, width, kept["metrics"], self._bold)
        return sheet

    def _line(self, sheet: Any, row: int, first: int, metrics: Metrics, formats: Mapping[str, Any]) -> None:
        for column, name in enumerate(_NAMES, first):
            _number(sheet, row, column, value(metrics, name), formats[name])

    def _shares(self, name: str, kept: Mapping[str, Any]) -> None:
        text = self._writer.text
        sheet = self._book.add_worksheet(name)
        heads = ("platform", *(f"{each}_share" for each in _SHARES))
        for column, head in enumerate(heads):
            sheet.write(0, column, text(head), self._header)
        sheet.set_column(0, 3, 22)
        sheet.freeze_panes(1, 1)
        for row, each in enumerate(kept["platforms"], 1):
            sheet.write_string(row, 0, text(each["platform"]))
            for column, part in enumerate(_SHARES, 1):
                found = share(value(each["metrics"], part), value(kept["metrics"], part))
                _number(sheet, row, column, found, self._formats["share"])

    def _platform_charts(self, sheet: Any, name: str, kept: Mapping[str, Any]) -> None:
        count = len(kept["platforms"])
        if not count:
            return
        for place, each in enumerate(("cost", "conversions")):
            column = 1 + _NAMES.index(each)
            chart = self._book.add_chart({"type": "column"})
            chart.add_series(
                {
                    "name": [name, 0, column],
                    "categories": [name, 1, 0, count, 0],
                    "values": [name, 1, column, count, column],
                    "fill": {"color": "#1f5fbf"},
                }
            )
            chart.set_title({"name": self._label(each, kept["currency_code"])})
            chart.set_legend({"none": True})
            sheet.insert_chart(count + 4, 1 + 6 * place, chart)

    def _label(self, name: str, currency: str) -> str:
        return self._writer.text(name) + self._unit(name, currency)

    def _unit(self, name: str, currency: str) -> str:
        return f", {currency}" if name in AMOUNTS else ", %" if name in PERCENTS else ""


def _number(sheet: Any, row: int, column: int, found: Decimal | None, style: Any) -> None:
    """A number, or an empty cell for an unknown one."""
    if found is None:
        sheet.write_blank(row, column, None, style)
    else:
        sheet.write_number(row, column, found, style)
