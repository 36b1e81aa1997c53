"""Reads what a CSV file or a workbook looks like. Everything here blocks: it belongs on a thread."""

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from itertools import islice
from typing import Any, Final

from server.rpc.errors import InvalidRequest

TEXT: Final = "text"
INTEGER: Final = "integer"
NUMBER: Final = "number"
DATE: Final = "date"
DATE_TIME: Final = "date_time"
BOOLEAN: Final = "boolean"

MOST_COLUMNS: Final = 200
_MOST_NAME: Final = 200
_ROWS: Final = 300
# Workbooks often begin with a title, a logo and who made them.
_HEADER_WITHIN: Final = 30
# A small archive may hold gigabytes.
_UNPACKED_BYTES: Final = 64 * 2**20
_DELIMITERS: Final = ",;\t|"
_TYPE_SHARE: Final = 0.9

_INTEGER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:[ \u00a0\u202f]\d{3})+)")
_NUMBER = re.compile(
    r"[+-]?(?:\d+|\d{1,3}(?:[ \u00a0\u202f,]\d{3})+)(?:[.,]\d+)?\s*(?:%|₽|руб\.?|р\.|rub|usd|eur|\$|€)?", re.I
)
_DATE = re.compile(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./](?:\d{4}|\d{2})")
_DATE_TIME = re.compile(
    rf"(?:{_DATE.pattern})[T ,]+\d{{1,2}}:\d{{2}}(?::\d{{2}}(?:\.\d+)?)?(?:Z|[+-]\d{{2}}:?\d{{2}})?"
)
_BOOLEANS = frozenset({"true", "false", "yes", "no", "да", "нет", "истина", "ложь"})


@dataclass(frozen=True, slots=True)
class Table:
    """What a file looks like.

    Attributes:
        columns: Names and types, from left to right.
        rows: Its first rows as text.
    """

    columns: list[dict[str, str]]
    rows: list[list[str]]


def read(file_name: str, data: bytes) -> Table:
    """Reads the beginning of a file.

    Raises:
        InvalidRequest: It is neither CSV nor a workbook by its name, is damaged, or has no header.
    """
    ending = file_name.lower().rpartition(".")[2]
    if ending in ("csv", "tsv", "txt"):
        lines = _csv(data)
    elif ending == "xlsx":
        lines = _workbook(data)
    else:
        raise _fault("FORMAT", "is neither CSV (.csv, .tsv, .txt) nor a workbook (.xlsx)")
    return _table(lines)


def types(columns: int, rows: Sequence[Sequence[str]]) -> list[str]:
    """What each column holds, by its cells; empty for one without any."""
    return [_type([row[index].strip() for row in rows if index < len(row)]) for index in range(columns)]


def _csv(data: bytes) -> list[list[str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1251", errors="replace")
    if "\0" in text:
        raise _fault("FORMAT", "is no text")
    head = "\n".join(text.splitlines()[:_HEADER_WITHIN])
    delimiter = max(_DELIMITERS, key=head.count)
    try:
        return [list(row) for row in islice(csv.reader(io.StringIO(text), delimiter=delimiter), _ROWS)]
    except csv.Error:
        raise _fault("FORMAT", "is no CSV") from None


def _workbook(data: bytes) -> list[list[str]]:
    # Imported here: few processes need it.
    import openpyxl

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _UNPACKED_BYTES:
                raise _fault("TOO_LARGE", "is more than 64 MiB unpacked")
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        for sheet in book.worksheets:
            sheet.reset_dimensions()
            lines = [[_cell(value) for value in row] for row in islice(sheet.iter_rows(values_only=True), _ROWS)]
            if any(any(line) for line in lines):
                return lines
    except InvalidRequest:
        raise
    except Exception:
        # The reader raises whatever its parsers do.
        raise _fault("FORMAT", "is no workbook, or a damaged one") from None
    return []


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case datetime():
            return value.date().isoformat() if value.time() == time() else value.isoformat(" ", "seconds")
        case date():
            return value.isoformat()
        case float() if value.is_integer() and abs(value) < 2**53:
            return str(int(value))
        case _:
            return str(value)


def _table(lines: list[list[str]]) -> Table:
    lines = [[cell.strip() for cell in line] for line in lines]
    at = _header(lines)
    if at is None:
        raise _fault("HEADER", "has no row that could be a header")
    header = lines[at]
    taken = [index for index, name in enumerate(header) if name]
    if len(taken) > MOST_COLUMNS:
        raise _fault("TOO_MANY_COLUMNS", f"has more than {MOST_COLUMNS} columns")
    names = distinct([header[index][:_MOST_NAME] for index in taken])
    rows = [[line[index] if index < len(line) else "" for index in taken] for line in lines[at + 1 :]]
    rows = [row for row in rows if any(row)]
    return Table(
        [{"name": name, "type": kind} for name, kind in zip(names, types(len(names), rows), strict=True)], rows
    )


def distinct(names: Iterable[str]) -> list[str]:
    """Names of columns, those that come again with a number."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name[: _MOST_NAME - 6]} ({seen[name]})")
    return found


def _header(lines: list[list[str]]) -> int | None:
    """The first row that is nearly as wide as any and holds words, not figures."""
    near = lines[:_HEADER_WITHIN]
    widest = max((sum(map(bool, line)) for line in near), default=0)
    for at, line in enumerate(near):
        named = [cell for cell in line if cell]
        if named and len(named) >= 0.6 * widest and all(_type([cell]) in (TEXT, BOOLEAN) for cell in named):
            return at
    return None


def _type(cells: list[str]) -> str:
    filled = [cell for cell in cells if cell]
    if not filled:
        return ""
    least = _TYPE_SHARE * len(filled)
    for kind, pattern in ((INTEGER, _INTEGER), (NUMBER, _NUMBER), (DATE, _DATE), (DATE_TIME, _DATE_TIME)):
        if sum(pattern.fullmatch(cell) is not None for cell in filled) >= least:
            return kind
    return BOOLEAN if sum(cell.lower() in _BOOLEANS for cell in filled) >= least else TEXT


def _fault(reason: str, description: str) -> InvalidRequest:
    return InvalidRequest.field("data", reason, description, error_reason="FILE_INVALID")
