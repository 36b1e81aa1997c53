"""What columns of advertising files are called, in Russian and in English."""

import re
from functools import lru_cache
from typing import Final

PERSON: Final = "person"
ADDRESS: Final = "address"

# A meaning, and the names by which files call it. Names are compared as `plain` leaves them.
_NAMES: Final = {
    PERSON: """имя | фамилия | отчество | фио | ф и о | контакт | контактное лицо | клиент фио | менеджер |
      ответственный | сотрудник | исполнитель | автор | покупатель | подрядчик фио | name first |
      first name | last name | surname |
      full name | contact | contact person | contact name | customer name | manager | account manager | owner | author |
      employee | responsible | assignee | buyer""",
    ADDRESS: """адрес | адрес доставки | почтовый адрес | улица | индекс | почтовый индекс | address | street |
      postal code | zip | zip code | postcode | delivery address | home address""",
    "email": "email | e mail | почта | электронная почта | эл почта | mail | email address",
    "phone": "телефон | тел | моб телефон | мобильный | номер телефона | phone | phone number | mobile | tel | msisdn",
    "campaign": """кампания | рекламная кампания | название кампании | рк | campaign | campaign name | кампании |
      ad campaign""",
    "campaign_id": "id кампании | номер кампании | campaign id | ид кампании | id рк",
    "ad_group": "группа | группа объявлений | ad group | adset | ad set | group",
    "ad": "объявление | креатив | баннер | ad | creative | banner | ролик | материал",
    "channel": """канал | медиаканал | канал размещения | канал продвижения | тип рекламы | инструмент | channel |
      media channel | channel type | medium | media | media type | вид рекламы""",
    "platform": """платформа | площадка | рекламная система | сайт | источник | система | platform | publisher | site |
      vendor | network | supplier | source | рекламная площадка | ad network | placement site""",
    "format": "формат | тип размещения | размер | format | ad format | size | creative format | формат рекламы",
    "placement": "место размещения | размещение | позиция | placement | position | ad position",
    "geo": """гео | география | регион | город | страна | территория | geo |
       region | city | country | location | geography""",
    "audience": """аудитория | целевая аудитория | ца | таргетинг | сегмент | audience | target audience | targeting |
      segment | target group""",
    "period": "период | месяц | неделя | квартал | сроки | period | month | week | quarter | flight | flight dates",
    "date": "дата | день | date | day | число",
    "start_date": """дата начала | начало | старт | дата старта | с | start date | start | from | begin | flight start |
      begin date | period start""",
    "end_date": """дата окончания | конец | окончание | финиш | по | дата завершения | end date | end | to | until |
      flight end | finish | period end""",
    "days": "дней | количество дней | кол во дней | days | number of days | duration",
    "budget": """бюджет | план бюджет | плановый бюджет | медиабюджет | бюджет план | budget | media budget |
      planned budget | planned spend | planned cost | бюджет руб | total budget | бюджет без ндс | net budget""",
    "cost": """расход | расходы | затраты | потрачено | стоимость | списания | сумма | cost | spend | spent |
      amount | spendings | costs | media cost | total cost | расход руб | total spend |
      amount spent | стоимость всего | итого""",
    "price": "цена | цена за единицу | тариф | стоимость за единицу | price | unit price | rate | unit cost",
    "discount": "скидка | discount | скидка %",
    "vat": "ндс | vat | tax | налог",
    "currency": "валюта | currency | currency code",
    "impressions": """показы | показов | количество показов | кол во показов | impressions | imps | shows |
      views of ad | impr | ad impressions | план показов | прогноз показов""",
    "reach": "охват | reach | unique users | уникальные пользователи | охват план | unique reach",
    "frequency": "частота | frequency | avg frequency | средняя частота",
    "clicks": "клики | кликов | количество кликов | переходы | clicks | click | link clicks | кол во кликов | taps",
    "ctr": "ctr | кликабельность | ctr % | click through rate | clickthrough rate",
    "cpc": "cpc | цена клика | стоимость клика | средняя цена клика | cost per click | avg cpc | average cpc",
    "cpm": "cpm | цена за тысячу показов | стоимость тысячи показов | cost per mille | cost per thousand | срм",
    "cpa": """cpa | цена конверсии | стоимость конверсии | цена цели | цена лида | стоимость лида | cpl |
      cost per action | cost per conversion | cost per lead | стоимость целевого действия | cost per acquisition""",
    "conversions": """конверсии | конверсий | достижения целей | целевые действия | заявки | лиды | лидов |
      conversions | leads | actions | goals | orders | заказы | покупки | purchases | sales count | кол во заявок""",
    "cr": "cr | конверсия | конверсия % | коэффициент конверсии | conversion rate | cvr",
    "revenue": "доход | выручка | оборот | продажи | revenue | income | sales | turnover | conversion value",
    "romi": "romi | roi | дрр | roas | окупаемость | рентабельность | return on ad spend",
    "views": "просмотры | просмотры видео | досмотры | views | video views | completed views",
    "vtr": "vtr | досматриваемость | view through rate | viewability | видимость",
    "bounce_rate": "отказы | показатель отказов | bounce rate | bounces",
    "sessions": "визиты | сеансы | посещения | сессии | visits | sessions",
    "users": "посетители | пользователи | users | visitors",
    "kpi": "kpi | кпэ | цель | целевой показатель | target | goal",
    "status": "статус | состояние | status | state",
    "comment": "комментарий | примечание | примечания | комментарии | comment | note | notes | remarks | comments",
    "product": "продукт | товар | бренд | услуга | product | brand | item | service | sku",
    "objective": "задача | задачи | цель кампании | цели | objective | objectives | campaign objective | task | aim",
    "client": "клиент | заказчик | рекламодатель | client | advertiser | account | customer",
    "project": "проект | project | название проекта | project name",
    "utm": "utm | utm метки | ссылка | url | link | landing page | посадочная страница | utm campaign",
    "number": "номер | п п | no | nr | number | id",
}  # fmt: skip

_CAMEL = re.compile(r"(?<=[a-zа-яё0-9])(?=[A-ZА-ЯЁ])")
_MARKS = re.compile(r"[^0-9a-zа-я%]+")
# What says in which unit or of which state a figure is, and not which figure it is.
_ASIDE = re.compile(
    r"\b(?:руб|рублей|rub|usd|eur|шт|тыс|млн|факт|fact|actual|прогноз|forecast|всего|total|без ндс|с ндс|incl vat|"
    r"excl vat|net|gross|avg|average|ср|средний|средняя|среднее|кол во|количество)\b|%"
)


@lru_cache(maxsize=20_000)
def plain(name: str) -> str:
    """A name in lower case, its words apart, without marks: `costPerClick`, `Cost, per click` are `cost per click`."""
    return _MARKS.sub(" ", _CAMEL.sub(" ", name).lower().replace("ё", "е")).strip()


_CONCEPTS: Final = {plain(name): meaning for meaning, names in _NAMES.items() for name in names.split("|")}


@lru_cache(maxsize=20_000)
def concept(name: str) -> str | None:
    """What a column of this name is known to hold, with or without its unit; None if the name is not known."""
    known = _CONCEPTS.get(plain(name))
    if known is None:
        known = _CONCEPTS.get(" ".join(_ASIDE.sub(" ", plain(name)).split()))
    return known
