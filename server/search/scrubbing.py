"""Takes out of samples what would tell who somebody is.

What is found stands in the contract, at `Template.sample_rows`. Nothing of this understands a text: a name that looks
like any other word stays.
"""

import re
from collections.abc import Sequence
from typing import Final

from server.search.vocabulary import ADDRESS, PERSON, concept

MOST_ROWS: Final = 5
MOST_BYTES: Final = 8 * 1024
MOST_CELL: Final = 100

_WORD = r"[A-ZА-ЯЁ][a-zа-яё]+(?:-[A-ZА-ЯЁ][a-zа-яё]+)?"
_COMMON: Final = """
Александр Александра Алексей Алина Алла Анастасия Андрей Анна Антон Артём Артем Борис Вадим Валентина Валерий Василий
Вера Виктор Виктория Виталий Владимир Галина Георгий Дарья Денис Дмитрий Евгений Евгения Екатерина Елена Иван Игорь
Илья Инна Ирина Кирилл Константин Ксения Лариса Лев Людмила Максим Марина Мария Михаил Надежда Наталья Наталия Никита
Николай Оксана Олег Ольга Павел Пётр Петр Полина Роман Светлана Семён Сергей София Софья Станислав Степан Тамара
Татьяна Тимур Фёдор Юлия Юрий Яна James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew
Anthony Mark Paul Steven Andrew Peter Mary Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Karen Anna
Emma Olivia Maria Alexander Sergey Sergei Dmitry Ivan Olga Elena Natalia Anton Pavel
"""
_FIRST_NAMES: Final = "|".join(_COMMON.split())
# In this order: what an earlier rule took is no longer there for a later one.
_RULES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)*", "<email>"),
        (r"(?i)\b(?:t\.me|vk\.com|instagram\.com|facebook\.com|linkedin\.com|ok\.ru)/\S+", "<link>"),
        # Of other links the host stays.
        (r"(?i)\b(https?://[^\s/?#]+)[/?#]\S+", r"\1/<link>"),
        (r"(?<!\w)@\w{4,}", "<link>"),
        # With a country code or an area code in brackets; the rest are caught as long numbers.
        (r"(?<![\w.])\+\d(?:[\s().-]{0,2}\d){8,14}(?!\d)", "<phone>"),
        (r"(?<![\w.])\d?[\s-]?\(\d{3,5}\)\s?\d(?:[\s.-]?\d){4,8}(?!\d)", "<phone>"),
        (r"(?<!\d)8[\s-]?\d{3}[\s-]?\d{3}[\s-]?\d{2}[\s-]?\d{2}(?!\d)", "<phone>"),
        (rf"\b{_WORD}\s+{_WORD}\s+{_WORD}(?:вич|вна|ична|оглы|кызы)\b", "<person>"),
        (rf"\b{_WORD}\s+[А-ЯЁ][а-яё]+(?:ович|евич|ьич|овна|евна|ична|инична)(?:\s+{_WORD})?\b", "<person>"),
        (rf"\b{_WORD}\s+(?:[A-ZА-ЯЁ]\.\s?){{1,2}}", "<person>"),
        (rf"\b(?:[A-ZА-ЯЁ]\.\s?){{1,2}}\s?{_WORD}", "<person>"),
        (rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|г-н|г-жа|Г-н|Г-жа|господин|госпожа)\b\.?\s+{_WORD}(?:\s+{_WORD})?", "<person>"),
        (rf"\b(?:{_FIRST_NAMES})\s+{_WORD}\b", "<person>"),
        (rf"\b{_WORD}\s+(?:{_FIRST_NAMES})\b", "<person>"),
        # Days and amounts with spaces between thousands are no numbers of anything: at most three digits in a group.
        (r"(?<![\d.,])\d(?:[ -]?\d){6,}(?![\d.,]?\d)", "<number>"),
    )
)
_DAY: Final = re.compile(
    r"\d{4}[-./]\d{1,2}[-./]\d{1,2}(?:[T ]\d{1,2}:\d{2}(?::\d{2})?\S*)?|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}"
)
_AMOUNT: Final = re.compile(
    r"[+-]?\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?:[.,]\d+)?|[+-]?\d{1,6}(?:[.,]\d+)?|[+-]?\d{1,12}[.,]\d{1,6}"
)
_WHOLE: Final = {PERSON: "<person>", ADDRESS: "<address>"}


def text(value: str) -> str:
    """A text without addresses, numbers and names of people, at most `MOST_CELL` characters long."""
    value = " ".join(value.split())[: MOST_CELL * 4]
    if not _DAY.fullmatch(value) and not _AMOUNT.fullmatch(value):
        for pattern, replacement in _RULES:
            value = pattern.sub(replacement, value)
    return value if len(value) <= MOST_CELL else value[: MOST_CELL - 1] + "…"


def rows(columns: Sequence[str], sample: Sequence[Sequence[str]]) -> list[list[str]]:
    """The first rows of a sample, scrubbed: as many as fit into `MOST_BYTES`, at most `MOST_ROWS`.

    Args:
        columns: Names of the columns; those that say that they hold people or addresses are hidden as a whole.
        sample: Cells by row; they are brought to the number of columns.
    """
    hidden = [_WHOLE.get(concept(name) or "") for name in columns]
    kept: list[list[str]] = []
    size = 0
    for row in sample[:MOST_ROWS]:
        cells = [*row[: len(columns)], *[""] * (len(columns) - len(row))]
        clean = [(whole or text(cell)) if cell.strip() else "" for cell, whole in zip(cells, hidden, strict=True)]
        size += sum(len(cell.encode()) for cell in clean)
        if size > MOST_BYTES:
            break
        kept.append(clean)
    return kept
