"""Which column of a file, or which constant, is which field of a row."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from server.cli.console import CommandFailed, err
from server.cli.rows import Dialect, Row, RowFile

_SHOWN_FAULTS = 20

Map = Annotated[
    list[str] | None, typer.Option("--map", help="FIELD=COLUMN, where a column has another name than its field.")
]
Constants = Annotated[
    list[str] | None, typer.Option("--set", help="FIELD=VALUE for all rows, where the file has no such column.")
]
Delimiter = Annotated[str, typer.Option(help="What separates the values of a line of CSV.")]
Encoding = Annotated[str, typer.Option(help="Encoding of text, such as cp1251.")]
MaxErrors = Annotated[int, typer.Option(min=0, help="Bad lines to leave out before refusing the file.")]


class BadField(Exception):
    """A field of a row is at fault.

    Attributes:
        field: Which one; empty for the row as a whole.
    """

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the fields of a row come from.

    Attributes:
        fields: All fields there are.
        columns: Field to column; a field that is missing here has a column of its own name.
        constants: Field to the value that it has in all rows.
    """

    fields: Sequence[str]
    columns: Mapping[str, str]
    constants: Mapping[str, str]

    @classmethod
    def of(cls, fields: Sequence[str], maps: Sequence[str] | None, constants: Sequence[str] | None) -> Columns:
        """Reads the options.

        Raises:
            CommandFailed: One of them is no pair, or names no field.
        """
        found = cls(fields, _pairs("--map", maps, fields), _pairs("--set", constants, fields))
        if both := sorted(found.columns.keys() & found.constants.keys()):
            raise CommandFailed(f"{both[0]}: has both --map and --set")
        return found

    def check(self, source: RowFile, required: Collection[str]) -> None:
        """Raises CommandFailed if a column that was named or is needed is not there."""
        there = source.columns()
        if not there:
            # Each row names its own, and is told what it lacks.
            return
        needed = [*self.columns, *(field for field in required if field not in self.constants)]
        missing = [column for field in dict.fromkeys(needed) if (column := self.column(field)) not in there]
        if missing:
            raise CommandFailed(
                f"{source.path.name}: has no column {', '.join(missing)}; it has {', '.join(there)}"
                " (--map names columns, --set gives values)"
            )

    def column(self, field: str) -> str:
        """What the file calls a field."""
        return self.columns.get(field, field)

    def values(self, row: Row) -> dict[str, Any]:
        """The fields of a row that are there.

        Raises:
            BadField: The row could not be read, or holds text that is none.
        """
        if row.fault:
            raise BadField("", row.fault)
        values: dict[str, Any] = dict(self.constants)
        for field in self.fields:
            value = row.values.get(self.column(field)) if field not in values else None
            if value is None:
                continue
            if isinstance(value, str):
                value = value.strip()
                if not _is_text(value):
                    raise BadField(field, "is no text in the file's encoding")
            if value != "":
                values[field] = value
        return values

    def fingerprint(self) -> str:
        """Tells two ways to read a file apart."""
        return json.dumps([dict(self.columns), dict(self.constants)], sort_keys=True)


class Faults:
    """Faults of rows, each told by line and column.

    Args:
        columns: Knows what the file calls a field.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._shown: list[tuple[int, str, str]] = []
        self.lines: set[int] = set()

    def add(self, line: int, field: str, text: str) -> None:
        """Notes a fault."""
        self.lines.add(line)
        if len(self._shown) < _SHOWN_FAULTS:
            constant = field in self._columns.constants
            self._shown.append((line, f"--set {field}" if constant else self._columns.column(field), text))

    def show(self) -> None:
        """Prints them."""
        if not self._shown:
            return
        table = Table("line", "column", "what is wrong", box=None, pad_edge=False)
        for line, column, text in sorted(self._shown):
            table.add_row(str(line), escape(column), escape(text))
        err.print(table)
        if len(self.lines) > len({line for line, _, _ in self._shown}):
            err.print(f"{len(self.lines):,} bad lines in all")


def dialect(delimiter: str, encoding: str) -> Dialect:
    """How the text of a file is written, by the options.

    Raises:
        CommandFailed: The delimiter is no single character.
    """
    delimiter = "\t" if delimiter == "\\t" else delimiter
    if len(delimiter) != 1:
        raise CommandFailed("--delimiter: is one character")
    return Dialect(delimiter, "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)


def existing(file: Path) -> Path:
    """The file; raises CommandFailed if there is none."""
    if not file.is_file():
        raise CommandFailed(f"{file}: no such file")
    return file


def _pairs(option: str, given: Sequence[str] | None, fields: Sequence[str]) -> dict[str, str]:
    found = {}
    for each in given or ():
        field, equals, value = each.partition("=")
        if not equals or not value or field not in fields:
            raise CommandFailed(f"{option} {each}: is no FIELD=...; fields are {', '.join(fields)}")
        found[field] = value
    return found


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in value
