# ruff: noqa: S608 - the statements are put together from constants of this package, dates and UUID objects
"""Months of ClickHouse's tables out into Parquet, back in, and whether both are the same."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import pyarrow as pa
from pyarrow import parquet

from storage.clickhouse.connect import ClickHouse, Setting, error_in

PARQUET_ROWS = 131_072
"""Rows of a row group: what is held in memory at a time."""

_SECONDS = 600.0
_LONGEST_ERROR = 1 << 20
_READ: dict[str, Setting] = {
    "max_memory_usage": 2 * 2**30,
    "max_bytes_before_external_sort": 256 * 2**20,
    "max_bytes_before_external_group_by": 256 * 2**20,
    "optimize_read_in_order": 1,
    "output_format_parquet_string_as_string": 1,
    "output_format_parquet_row_group_size": PARQUET_ROWS,
    "output_format_parquet_compression_method": "zstd",
}


@dataclass(frozen=True, slots=True)
class Digest:
    """How many rows there are, and the sum of their hashes: equal for equal rows in any order."""

    rows: int
    digest: int


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: its type in the file, and how it is turned into that and back; ``%`` stands for the name."""

    kind: str
    out: str = "%"
    back: str = "%"


_ID = _Column("String", "toString(%)", "toUUID(%)")
_TEXT = _Column("String", "toString(%)")
_MONEY = _Column("Decimal(18, 6)")


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the archive knows of a table.

    Attributes:
        name: The table.
        check: Where its files are read back into.
        time: The column that makes the month.
        order: Order of the rows in a file.
        columns: All columns.
        beside: Tables whose months go with this one's: they can be made from it.
    """

    name: str
    check: str
    time: str
    order: str
    columns: Mapping[str, _Column]
    beside: tuple[str, ...] = ()


_EVENTS = _Shape(
    "campaign_events",
    "archive_check_events",
    "event_time",
    "campaign_id, event_time, event_id",
    {
        "client_id": _ID,
        "campaign_id": _ID,
        "event_time": _Column("DateTime64(6, 'UTC')"),
        "event_id": _ID,
        "project_id": _ID,
        "platform": _TEXT,
        "event_type": _TEXT,
        "user_id": _Column("Nullable(String)"),
        "cost": _MONEY,
        "revenue": _MONEY,
        "conversions": _MONEY,
        "currency": _TEXT,
        "attributes": _Column("Map(String, String)", "CAST(%, 'Map(String, String)')"),
        "ingest_time": _Column("DateTime64(3, 'UTC')"),
    },
    ("campaign_metrics_slices",),
)


class ArchivedTable:
    """A table of ClickHouse that is partitioned by months.

    Args:
        store: Where it is.
        shape: Which one.
    """

    def __init__(self, store: ClickHouse, shape: _Shape) -> None:
        self._store = store
        self._shape = shape
        self.name = shape.name

    async def months(self) -> list[date]:
        """First days of the months that have rows, oldest first."""
        rows = await self._store.fetch(
            "SELECT DISTINCT partition FROM system.parts WHERE database = currentDatabase() AND table = {table:String}"
            " AND active AND rows > 0 ORDER BY partition",
            {"table": self._shape.name},
        )
        return [date(int(name[:4]), int(name[4:]), 1) for (name,) in rows]

    async def holdings(self, month: date, client_id: UUID | None = None) -> dict[UUID, Digest]:
        """What each client has of a month, or one of them."""
        of_client = "" if client_id is None else " AND client_id = {client_id:UUID}"
        rows = await self._store.fetch(
            f"""SELECT client_id, count(), sum({self._hash()}) FROM {self._shape.name} FINAL
            WHERE toYYYYMM({self._shape.time}) = {_partition(month)}{of_client} GROUP BY client_id""",
            {"client_id": client_id} if client_id else None,
            settings=_READ,
            timeout=_SECONDS,
        )
        return {client: Digest(count, digest) for client, count, digest in rows}

    async def extract(self, month: date, client_id: UUID, path: Path) -> None:
        """Writes a client's rows of a month into a Parquet file.

        Raises:
            ClickHouseError: ClickHouse refuses.
            StoreUnavailable: It went away.
        """
        columns = ", ".join(f"{_put(each.out, name)} AS {name}_" for name, each in self._shape.columns.items())
        names = ", ".join(f"{name}_ AS {name}" for name in self._shape.columns)
        pieces = self._store.stream(
            f"""SELECT {names} FROM (
              SELECT {columns} FROM {self._shape.name} FINAL
              WHERE client_id = {{client_id:UUID}} AND toYYYYMM({self._shape.time}) = {_partition(month)}
              ORDER BY {self._shape.order}
            ) FORMAT Parquet""",
            {"client_id": client_id},
            settings=_READ,
        )
        async with aclosing(pieces):
            with path.open("wb") as file:
                async for piece in pieces:
                    file.write(piece)
        with path.open("rb") as file:
            tail = _tail(file)
        if not tail.endswith(b"PAR1"):
            raise error_in(tail)

    async def check(self, path: Path, check_id: UUID) -> Digest:
        """What a file holds, found by reading it back the way that a restoration does, into a table beside.

        Args:
            path: The file.
            check_id: Names the check; one that was interrupted is begun anew under the same id.
        """
        await self._forget(check_id)
        try:
            await self._insert(path, self._shape.check, check_id)
            [(count, digest)] = await self._store.fetch(
                f"SELECT count(), sum({self._hash()}) FROM {self._shape.check} WHERE check_id = {{check_id:UUID}}",
                {"check_id": check_id},
                settings=_READ,
                timeout=_SECONDS,
            )
        finally:
            await self._forget(check_id)
        return Digest(count, digest)

    async def restore(self, path: Path) -> None:
        """Puts the rows of a file back. Repeating it is harmless: equal rows collapse."""
        await self._insert(path, self._shape.name, None)

    async def drop(self, month: date) -> None:
        """Drops a month as a whole, and what can only be made from it. Repeating it is harmless."""
        for table in (self._shape.name, *self._shape.beside):
            await self._store.execute(f"ALTER TABLE {table} DROP PARTITION {_partition(month)}", timeout=_SECONDS)

    async def _insert(self, path: Path, table: str, check_id: UUID | None) -> None:
        columns, values = list(self._shape.columns), [_put(c.back, name) for name, c in self._shape.columns.items()]
        if check_id is not None:
            columns, values = ["check_id", *columns], [f"toUUID('{check_id}')", *values]
        source = ", ".join(f"{name} {each.kind}" for name, each in self._shape.columns.items()).replace("'", "\\'")
        statement = (
            f"INSERT INTO {self._store.database}.{table} ({', '.join(columns)}) SELECT {', '.join(values)}"
            f" FROM input('{source}') SETTINGS insert_deduplicate = 0, max_memory_usage = 2147483648,"
            " max_partitions_per_insert_block = 0 FORMAT ArrowStream\n"
        ).encode()
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                await self._store.insert_statement(statement + sink.getvalue().to_pybytes(), timeout=_SECONDS)

    async def _forget(self, check_id: UUID) -> None:
        await self._store.execute(f"ALTER TABLE {self._shape.check} DROP PARTITION '{check_id}'")

    def _hash(self) -> str:
        return f"cityHash64({', '.join(_hashed(name, each) for name, each in self._shape.columns.items())})"


def events(store: ClickHouse) -> ArchivedTable:
    """Raw events."""
    return ArchivedTable(store, _EVENTS)


def _put(expression: str, name: str) -> str:
    return expression.replace("%", name)


def _hashed(name: str, column: _Column) -> str:
    # Absent is not empty, and the hash of a map would not tell keys from values.
    if column.kind.startswith(("Nullable", "Map")):
        return f"toString(tuple({name}))"
    return name


def _partition(month: date) -> int:
    return month.year * 100 + month.month


def _tail(file: BinaryIO) -> bytes:
    """The end of a file: of a whole one four letters, of a broken one the text of the error."""
    file.seek(0, 2)
    file.seek(max(0, file.tell() - _LONGEST_ERROR))
    return file.read()
