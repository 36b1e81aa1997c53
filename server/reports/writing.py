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
    "analytical_notes": ("Аналитическая записка", "Analytical notes"),
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
    "changes": ("Изменение к предыдущему периоду", "Change against the previous period"),
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
    "changed": ("Что изменилось", "What changed"),
    "reasons": ("Почему", "Why"),
    "unusual_days": ("Необычные дни", "Unusual days"),
    "pacing": ("Бюджеты", "Budgets"),
    "in_short": ("Коротко", "In short"),
    "difference": ("Разница", "Difference"),
    "contributions_platforms": ("Вклад площадок в изменение", "What platforms contributed to the change"),
    "contributions_campaigns": ("Вклад кампаний в изменение", "What campaigns contributed to the change"),
    "cost_change": ("Изменение расхода", "Change of cost"),
    "conversions_change": ("Изменение конверсий", "Change of conversions"),
    "revenue_change": ("Изменение дохода", "Change of revenue"),
    "ratio_cpa": ("Из чего сложилось изменение CPA", "What the change of CPA is made of"),
    "ratio_roas": ("Из чего сложилось изменение ROAS", "What the change of ROAS is made of"),
    "own_ratio": ("Свой показатель", "Own ratio"),
    "shift": ("Доля в целом", "Share of the whole"),
    "in_all": ("Всего", "In all"),
    "expected": ("Обычно", "Usual"),
    "finding": ("Вывод", "Finding"),
    "findings": ("Выводы", "Findings"),
    "about": ("О чём", "About"),
    "level": ("Бюджет", "Budget of"),
    "name": ("Название", "Name"),
    "project_level": ("Проект", "Project"),
    "media_plan_level": ("Медиаплан", "Media plan"),
    "campaign_level": ("Кампания", "Campaign"),
    "budget": ("Бюджет", "Budget"),
    "spent": ("Израсходовано", "Spent"),
    "planned": ("По плану", "Planned by now"),
    "pace": ("К плану", "Of the plan"),
    "verdict": ("Оценка", "Verdict"),
    "on_plan": ("по плану", "as planned"),
    "ahead": ("опережает план", "ahead of plan"),
    "behind": ("отстаёт от плана", "behind plan"),
    "over": ("превышен", "exceeded"),
    "unplanned": ("без плана", "no plan"),
    "paced_at": ("Бюджеты на конец дня", "Budgets as of the end of"),
    "method": ("Как это получено", "How this was made"),
    "method_text": (
        "Выводы сделаны по правилам из данных отчёта. Изменение суммы раскладывается на объём и цену по средним"
        " значениям двух периодов, изменение отношения – на собственные изменения частей и перераспределение между"
        " ними; части складываются без остатка. День считается необычным, если показатель отличается от медианы тех"
        " же дней недели (в пределах четырёх недель до и после, не меньше трёх таких дней) больше чем на 3,5"
        " робастных стандартных отклонения (1,4826 медианы абсолютных отклонений) и не меньше чем на пятую часть, а"
        " число кликов или конверсий – ещё и больше чем на три корня из ожидаемого. Незавершённые дни не"
        " оцениваются.",
        "Findings are made by rules from this report's figures. The change of a sum is split in volume and price"
        " at the means of both periods, the change of a ratio in what its parts did themselves and shifts between"
        " them; parts add up without a residual. A day is unusual if a figure is away from the median of the same"
        " days of the week (within four weeks before and after, at least three of them) by more than 3.5 robust"
        " standard deviations (1.4826 times the median absolute deviation) and by at least a fifth, and a number of"
        " clicks or conversions also by more than three square roots of what was to be expected. Days that are not"
        " over are not judged.",
    ),
    "by_model": (
        "Текст этого раздела написала языковая модель {model} (запрос {prompt}, версия {version}) по выводам ниже;"
        " все числа в нём сверены с ними.",
        "The words of this section are by the language model {model} (prompt {prompt}, version {version}), from the"
        " findings below; all numbers in them were checked against these.",
    ),
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
        if not rounded:
            # Next to nothing has no sign.
            rounded = abs(rounded)
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

    def points(self, value: Decimal) -> str:
        """A difference of two shares in percent."""
        return self.number(value, 2) + _NARROW + (f"п.{_NARROW}п." if self.language == "ru" else "pp")

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
