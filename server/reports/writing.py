"""What reports say, in Russian and English: words, numbers, amounts and days."""

from __future__ import annotations

from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final, Literal, cast

from server.platforms.names import PLATFORM_NAMES

Language = Literal["ru", "en"]

_NARROW: Final = "\u00a0"
_SIGNS: Final = {"RUB": "₽", "USD": "$", "EUR": "€", "GBP": "£", "KZT": "₸"}

_TEXTS: Final[dict[str, tuple[str, str]]] = {
    "performance": ("Отчёт об эффективности", "Performance report"),
    "channel_comparison": ("Сравнение каналов", "Channel comparison"),
    "client": ("Клиент", "Client"),
    "project": ("Проект", "Project"),
    "period": ("Период", "Period"),
    "previous": ("Предыдущий период", "Previous period"),
    "as_of": ("Данные на", "Data as of"),
    "no_data_yet": ("данных ещё нет", "no data yet"),
    "zone": ("Часовой пояс", "Time zone"),
    "page": ("Страница", "Page"),
    "of": ("из", "of"),
    "against": ("к пред. периоду", "vs previous"),
    "summary": ("Итоги", "Summary"),
    "metric": ("Показатель", "Metric"),
    "value": ("Значение", "Value"),
    "change": ("Изменение, %", "Change, %"),
    "before": ("Ранее", "Before"),
    "impressions": ("Показы", "Impressions"),
    "clicks": ("Клики", "Clicks"),
    "conversions": ("Конверсии", "Conversions"),
    "cost": ("Расход", "Cost"),
    "revenue": ("Доход", "Revenue"),
    "ctr": ("CTR", "CTR"),
    "cpc": ("CPC", "CPC"),
    "cpm": ("CPM", "CPM"),
    "cr": ("CR", "CR"),
    "cpa": ("CPA", "CPA"),
    "romi": ("ROMI", "ROMI"),
    "roas": ("ROAS", "ROAS"),
    "day": ("День", "Day"),
    "week": ("Неделя с", "Week from"),
    "month": ("Месяц", "Month"),
    "by_day": ("По дням", "By day"),
    "by_week": ("По неделям", "By week"),
    "by_month": ("По месяцам", "By month"),
    "platform": ("Площадка", "Platform"),
    "platforms": ("Площадки", "Platforms"),
    "campaign": ("Кампания", "Campaign"),
    "campaigns": ("Кампании", "Campaigns"),
    "others": ("Остальные кампании", "Other campaigns"),
    "unnamed": ("Без названия", "Unnamed"),
    "days": ("Дни", "Days"),
    "total": ("Всего", "Total"),
    "cost_over_time": ("Расход по времени", "Cost over time"),
    "cost_by_platform": ("Доля расхода", "Share of cost"),
    "revenue_by_platform": ("Доля дохода", "Share of revenue"),
    "conversions_by_platform": ("Доля конверсий", "Share of conversions"),
    "cpa_by_platform": ("Цена конверсии", "Cost per conversion"),
    "shares": ("Доли площадок", "Shares of platforms"),
    "cost_share": ("Доля расхода, %", "Share of cost, %"),
    "revenue_share": ("Доля дохода, %", "Share of revenue, %"),
    "conversions_share": ("Доля конверсий, %", "Share of conversions, %"),
    "empty": ("За период нет данных.", "There are no figures in this period."),
    **PLATFORM_NAMES,
    "other": ("Другие источники", "Other sources"),
}
_MONTHS: Final = (
    ("январь", "January"), ("февраль", "February"), ("март", "March"), ("апрель", "April"), ("май", "May"),
    ("июнь", "June"), ("июль", "July"), ("август", "August"), ("сентябрь", "September"), ("октябрь", "October"),
    ("ноябрь", "November"), ("декабрь", "December"),
)  # fmt: skip


class Writer:
    """Writes in one language.

    Args:
        language: ``ru`` or ``en``.
    """

    def __init__(self, language: str) -> None:
        self.language = cast(Language, language)
        self._index = 0 if language == "ru" else 1

    def text(self, name: str) -> str:
        """A word or sentence; platforms that this code does not know keep their name."""
        return _TEXTS[name][self._index] if name in _TEXTS else name

    def number(self, value: Decimal, digits: int = 0) -> str:
        """A number with its thousands apart."""
        rounded = value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN)
        text = f"{rounded:,f}"
        if self.language == "ru":
            text = text.replace(",", _NARROW).replace(".", ",")
        return text.replace("-", "−")

    def money(self, value: Decimal, currency: str) -> str:
        """An amount; large ones without fractions."""
        text = self.number(value, 0 if abs(value) >= 100_000 else 2)
        sign = _SIGNS.get(currency, currency)
        if self.language == "en" and sign != currency:
            return f"−{sign}{text[1:]}" if text.startswith("−") else sign + text
        return f"{text}{_NARROW}{sign}"

    def sign(self, currency: str) -> str:
        """The sign of a currency, or its code if it has none here."""
        return _SIGNS.get(currency, currency)

    def percent(self, value: Decimal, digits: int = 2) -> str:
        """A share in percent."""
        return self.number(value, digits) + (f"{_NARROW}%" if self.language == "ru" else "%")

    def change(self, value: Decimal) -> str:
        """A change in percent, with its sign."""
        return ("+" if value > 0 else "") + self.percent(value, 1)

    def day(self, day: date) -> str:
        """A day."""
        return f"{self.short_day(day)}{'.' if self.language == 'ru' else ' '}{day.year}"

    def short_day(self, day: date) -> str:
        """A day below a chart."""
        # The words of strftime depend on where the process runs.
        if self.language == "en":
            return f"{day.day:02d} {_MONTHS[day.month - 1][1][:3]}"
        return f"{day.day:02d}.{day.month:02d}"

    def month(self, day: date) -> str:
        """The month of a day."""
        return f"{_MONTHS[day.month - 1][self._index].capitalize()} {day.year}"

    def short_month(self, day: date) -> str:
        """The month of a day below a chart."""
        return f"{_MONTHS[day.month - 1][self._index][:3]} {day.year % 100:02d}"

    def days(self, first: date, last: date) -> str:
        """Several days."""
        return f"{self.day(first)} – {self.day(last)}"

    def instant(self, moment: datetime) -> str:
        """An instant, in the zone that it has."""
        return f"{self.day(moment.date())} {moment.strftime('%H:%M')}"
