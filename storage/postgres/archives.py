# ruff: noqa: S608 - the statements are put together from constants of this package
"""The manifest of archived months, clients of which nothing may go, and daily figures on their way out and in."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pyarrow as pa
from pyarrow import parquet

from storage.clickhouse.archived import PARQUET_ROWS, Digest
from storage.postgres import metrics_state, visibility
from storage.postgres.database import Database, Executor, Row, Transaction, returned
from storage.postgres.ids import new_id
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Partition:
    """A row of ``archive_partitions``, with what its files hold in all.

    Attributes:
        closed_at: When rows of the month stopped being taken.
        kept_until: Until when restored rows stay.
        clients: Clients with a file.
    """

    id: UUID
    table_name: str
    month: date
    state: str
    closed_at: datetime
    archived_at: datetime | None
    dropped_at: datetime | None
    restored_at: datetime | None
    kept_until: datetime | None
    clients: int
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Archive:
    """A row of ``archives``: the file of one client's month."""

    partition_id: UUID
    client_id: UUID
    object_key: str
    row_count: int
    digest: int
    size_bytes: int
    sha256: str
    verified_at: datetime


@dataclass(frozen=True, slots=True)
class Hold:
    """A row of ``legal_holds``."""

    client_id: UUID
    reason: str
    set_by: UUID | None
    set_at: datetime

    @property
    def id(self) -> UUID:
        """The client, by which holds are listed."""
        return self.client_id


_PARTITION = """p.id, p.table_name, p.month, p.state, p.closed_at, p.archived_at, p.dropped_at,
  p.restored_at, p.kept_until"""
_SUMS = f"""
SELECT {_PARTITION}, count(a.client_id), COALESCE(sum(a.row_count), 0)::bigint, COALESCE(sum(a.size_bytes), 0)::bigint
FROM archive_partitions p LEFT JOIN archives a ON a.partition_id = p.id"""

# One month.
_GET = f"{_SUMS} WHERE p.table_name = $1 AND p.month = $2 GROUP BY p.id"

# Months whose files are kept no longer.
_OUTDATED = f"{_SUMS} WHERE p.state = 'dropped' AND p.dropped_at < $1 GROUP BY p.id"

# One page of the manifest, newest first.
_LIST = f"""{_SUMS}
WHERE ($1::uuid IS NULL OR p.id < $1) AND ($3::text IS NULL OR p.table_name = $3) AND ($4::text IS NULL OR p.state = $4)
GROUP BY p.id ORDER BY p.id DESC LIMIT $2"""

# Closes a month, unless another process has.
_OPEN = """
INSERT INTO archive_partitions (id, table_name, month) VALUES ($1, $2, $3) ON CONFLICT (table_name, month) DO NOTHING"""

# Moves a month on from a state it is expected in.
_MOVE = """
UPDATE archive_partitions SET state = $3::text,
  archived_at = CASE WHEN $3::text = 'archived' THEN clock_timestamp() ELSE archived_at END,
  dropped_at = CASE WHEN $3::text = 'dropped' THEN clock_timestamp() ELSE dropped_at END,
  restored_at = CASE WHEN $3::text = 'restored' THEN clock_timestamp() ELSE restored_at END,
  kept_until = CASE WHEN $3::text IN ('restoring', 'restored') THEN COALESCE($4::timestamptz, kept_until) END
WHERE id = $1 AND state = ANY ($2::text[])"""

_FILE = "SELECT partition_id, client_id, object_key, row_count, digest, size_bytes, sha256, verified_at FROM archives"
_FILES = f"{_FILE} WHERE partition_id = $1 ORDER BY client_id"
_OF_CLIENT = f"{_FILE} WHERE client_id = $1 ORDER BY partition_id"

# Notes a file that was read back; it may be another than was noted before.
_NOTE = """
INSERT INTO archives (partition_id, client_id, object_key, row_count, digest, size_bytes, sha256)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (partition_id, client_id) DO UPDATE SET row_count = excluded.row_count, digest = excluded.digest,
  size_bytes = excluded.size_bytes, sha256 = excluded.sha256, verified_at = clock_timestamp()"""

_FORGET = "DELETE FROM archives WHERE partition_id = $1 AND client_id = ANY ($2::uuid[])"

# Months whose rows can be read like those never archived.
_RESTORED = "SELECT month FROM archive_partitions WHERE table_name = $1 AND state = 'restored'"

_HOLDS = "SELECT client_id, reason, set_by, set_at FROM legal_holds"
_HELD = "SELECT client_id FROM legal_holds WHERE client_id = ANY ($1::uuid[])"
# Whoever sets a hold waits until a month that is being let go is, and the other way round.
_LOCK_HOLDS = "LOCK TABLE legal_holds IN SHARE MODE"
_SET_HOLD = """
INSERT INTO legal_holds (client_id, reason, set_by) VALUES ($1, $2, $3)
ON CONFLICT (client_id) DO UPDATE SET reason = excluded.reason
RETURNING client_id, reason, set_by, set_at"""
_LIFT_HOLD = "DELETE FROM legal_holds WHERE client_id = $1 RETURNING client_id, reason, set_by, set_at"


async def get(db: Executor, table: str, month: date) -> Partition | None:
    """A month of the manifest; None if it was never closed."""
    row = await db.fetchrow(_GET, table, month)
    return None if row is None else Partition(*row)


async def outdated_internal(db: Executor, before: datetime) -> list[Partition]:
    """Dropped months whose files are kept no longer."""
    return [Partition(*row) for row in await db.fetch(_OUTDATED, before)]


async def list_page(
    db: Executor, *, limit: int, after: UUID | None = None, table: str | None = None, state: str | None = None
) -> list[Partition]:
    """Up to `limit` months of the manifest, the latest closed first."""
    return [Partition(*row) for row in await db.fetch(_LIST, after, limit, table, state)]


async def open_internal(db: Executor, table: str, month: date) -> None:
    """Closes a month; nothing happens if it was closed."""
    await db.execute(_OPEN, new_id(), table, month)


async def move_internal(
    db: Executor, partition_id: UUID, expected: Collection[str], state: str, kept_until: datetime | None = None
) -> bool:
    """Moves a month to a state if it is in one of those expected; returns whether it was."""
    return await db.execute(_MOVE, partition_id, list(expected), state, kept_until) == "UPDATE 1"


async def files_internal(db: Executor, partition_id: UUID) -> list[Archive]:
    """The files of a month."""
    return [_file(row) for row in await db.fetch(_FILES, partition_id)]


async def of_client_internal(db: Executor, client_id: UUID) -> list[Archive]:
    """The files of a client."""
    return [_file(row) for row in await db.fetch(_OF_CLIENT, client_id)]


async def note_internal(
    db: Executor, partition_id: UUID, client_id: UUID, *, key: str, found: Digest, size: int, sha256: str
) -> None:
    """Notes that a client's file of a month was read back and holds the same as the table."""
    await db.execute(_NOTE, partition_id, client_id, key, found.rows, Decimal(found.digest), size, sha256)


async def forget_internal(db: Executor, partition_id: UUID, client_ids: Collection[UUID]) -> None:
    """Takes files out of the manifest; the caller has deleted them."""
    await db.execute(_FORGET, partition_id, list(client_ids))


async def restored_months(db: Executor, table: str) -> set[date]:
    """Months that are wholly back."""
    return {row[0] for row in await db.fetch(_RESTORED, table)}


async def events_from(db: Executor) -> datetime:
    """From when on single events can be read: the raw floor, or the first of the restored months right below it."""
    begin = await metrics_state.get_raw_floor(db)
    restored = await restored_months(db, "campaign_events")
    while (before := (begin - timedelta(days=1)).replace(day=1)).date() in restored:
        begin = before
    return begin


async def held_internal(db: Executor, client_ids: Collection[UUID]) -> set[UUID]:
    """Those of the clients of which nothing may be forgotten."""
    return {row[0] for row in await db.fetch(_HELD, list(client_ids))}


async def lock_holds_internal(tx: Transaction) -> None:
    """Keeps holds as they are until the transaction ends."""
    await tx.execute(_LOCK_HOLDS)


async def list_holds(db: Executor, scope: Scope, *, limit: int, after: UUID | None = None) -> list[Hold]:
    """Up to `limit` holds on clients in scope, by client."""
    rows = await db.fetch(
        f"""SELECT h.client_id, h.reason, h.set_by, h.set_at FROM legal_holds h JOIN clients cl ON cl.id = h.client_id
        WHERE {visibility.CLIENT} AND ($4::uuid IS NULL OR h.client_id > $4) ORDER BY h.client_id LIMIT $5""",
        *scope.args, after, limit,
    )  # fmt: skip
    return [Hold(*row) for row in rows]


async def get_hold(db: Executor, client_id: UUID) -> Hold | None:
    """The hold on a client. The caller has seen the client."""
    row = await db.fetchrow(f"{_HOLDS} WHERE client_id = $1", client_id)
    return None if row is None else Hold(*row)


async def set_hold(tx: Transaction, client_id: UUID, reason: str, user_id: UUID | None) -> Hold:
    """Holds a client, or gives a hold another reason."""
    return Hold(*returned(await tx.fetchrow(_SET_HOLD, client_id, reason, user_id)))


async def lift_hold(tx: Transaction, client_id: UUID) -> Hold | None:
    """Lifts the hold on a client; None if there was none."""
    row = await tx.fetchrow(_LIFT_HOLD, client_id)
    return None if row is None else Hold(*row)


# Columns of daily figures: the type of PostgreSQL that a file's column is read back as.
_COLUMNS: Final[Mapping[str, tuple[str, pa.DataType]]] = {
    "id": ("uuid", pa.string()),
    "campaign_id": ("uuid", pa.string()),
    "date": ("date", pa.date32()),
    "impressions": ("bigint", pa.int64()),
    "clicks": ("bigint", pa.int64()),
    "conversions": ("numeric", pa.decimal128(18, 6)),
    "cost": ("numeric", pa.decimal128(18, 6)),
    "revenue": ("numeric", pa.decimal128(18, 6)),
    "currency": ("text", pa.string()),
    "time_zone": ("text", pa.string()),
    "source_version": ("bigint", pa.int64()),
    "is_final": ("boolean", pa.bool_()),
    "revision": ("bigint", pa.int64()),
    "created_at": ("timestamptz", pa.timestamp("us", "UTC")),
    "updated_at": ("timestamptz", pa.timestamp("us", "UTC")),
}
_NAMES = ", ".join(_COLUMNS)
_SCHEMA = pa.schema([(name, kind) for name, (_, kind) in _COLUMNS.items()])
# Instants as numbers: their text depends on the session's zone.
_HASH = f"""mod(COALESCE(sum(hashtextextended(concat_ws('|', {
    ", ".join(
        f"extract(epoch FROM s.{name})" if kind == "timestamptz" else f"s.{name}"
        for name, (kind, _) in _COLUMNS.items()
    )
}), 0)::numeric + 9223372036854775808), 0), 18446744073709551616)"""
_IN_MONTH = "s.date >= $1 AND s.date < $1 + interval '1 month'"
_DAYS = "campaign_statistics s JOIN campaigns c ON c.id = s.campaign_id"
_MONTHS = "SELECT DISTINCT date_trunc('month', date)::date FROM campaign_statistics WHERE date < $1 ORDER BY 1"
_HOLDINGS = f"""
SELECT c.client_id, count(*), {_HASH} FROM {_DAYS}
WHERE {_IN_MONTH} AND ($2::uuid IS NULL OR c.client_id = $2) GROUP BY c.client_id"""
_PAGE = f"""
SELECT {", ".join("s." + name for name in _COLUMNS)} FROM {_DAYS}
WHERE {_IN_MONTH} AND c.client_id = $2 AND ($3::uuid IS NULL OR s.id > $3) ORDER BY s.id LIMIT $4"""
_GIVEN = ", ".join(f"${number}::{kind}[]" for number, (kind, _) in enumerate(_COLUMNS.values(), 1))
_INSERT = f"""
INSERT INTO campaign_statistics ({_NAMES}) SELECT * FROM unnest({_GIVEN}) ON CONFLICT (campaign_id, date) DO NOTHING"""
_CHECK_TABLE = "CREATE TEMP TABLE archive_check (LIKE campaign_statistics) ON COMMIT DROP"
_CHECK_INSERT = f"INSERT INTO archive_check ({_NAMES}) SELECT * FROM unnest({_GIVEN})"
_CHECKED = f"SELECT count(*), {_HASH} FROM archive_check s"
# What leaves the table still was spent; and what comes back is no longer to be added.
_SPENT = f"""
INSERT INTO archived_spend AS a (campaign_id, spent)
SELECT s.campaign_id, $2 * sum(s.cost) FROM {_DAYS} WHERE {_IN_MONTH} GROUP BY s.campaign_id
ON CONFLICT (campaign_id) DO UPDATE SET spent = a.spent + excluded.spent"""
_DELETE = f"DELETE FROM campaign_statistics s WHERE {_IN_MONTH}"
_LOCK = "LOCK TABLE campaign_statistics IN SHARE ROW EXCLUSIVE MODE"
_STATEMENT_ROWS = 20_000


class ArchivedDays:
    """Daily figures, as a table of months.

    Args:
        database: Where they are.
    """

    name: Final = "campaign_statistics"

    def __init__(self, database: Database) -> None:
        self._database = database

    async def months(self) -> list[date]:
        """First days of the months that have rows, oldest first."""
        return [row[0] for row in await self._database.fetch(_MONTHS, date.max)]

    async def holdings(self, month: date, client_id: UUID | None = None) -> dict[UUID, Digest]:
        """What each client has of a month, or one of them."""
        return await _holdings(self._database, month, client_id)

    async def extract(self, month: date, client_id: UUID, path: Path) -> None:
        """Writes a client's rows of a month into a Parquet file."""
        after: UUID | None = None
        with parquet.ParquetWriter(path, _SCHEMA, compression="zstd") as file:
            while rows := await self._database.fetch(_PAGE, month, client_id, after, PARQUET_ROWS):
                after = rows[-1][0]
                columns = list(zip(*rows, strict=True))
                columns[:2] = [tuple(str(each) for each in column) for column in columns[:2]]
                file.write_table(
                    pa.table([pa.array(c, t) for c, t in zip(columns, _SCHEMA.types, strict=True)], _SCHEMA)
                )

    async def check(self, path: Path, check_id: UUID) -> Digest:
        """What a file holds, found by reading it back into a table that goes with the transaction."""
        async with self._database.transaction(f"check_archive_{check_id}") as tx:
            await tx.execute(_CHECK_TABLE)
            for values in _values(path):
                await tx.execute(_CHECK_INSERT, *values)
            count, digest = returned(await tx.fetchrow(_CHECKED))
        return Digest(count, int(digest))

    async def restore(self, path: Path) -> None:
        """Puts the rows of a file back; days that are there already stay as they are."""
        for values in _values(path):
            await self._database.execute(_INSERT, *values)

    async def let_go(self, tx: Transaction, month: date, expected: Mapping[UUID, Digest]) -> bool:
        """Deletes a month if it still is what was archived, and notes what was spent in it.

        Args:
            tx: The transaction, which also moves the manifest.
            month: The month.
            expected: What the files hold.

        Returns:
            Whether it was the same.
        """
        await tx.execute(_LOCK)
        if await _holdings(tx, month, None) != expected:
            return False
        await tx.execute(_SPENT, month, 1)
        await tx.execute(_DELETE, month)
        return True

    async def taken_back(self, tx: Transaction, month: date) -> None:
        """Notes that what was spent in a month counts as daily figures again."""
        await tx.execute(_SPENT, month, -1)


def _file(row: Row) -> Archive:
    return Archive(row[0], row[1], row[2], row[3], int(row[4]), row[5], row[6], row[7])


async def _holdings(db: Executor, month: date, client_id: UUID | None) -> dict[UUID, Digest]:
    rows = await db.fetch(_HOLDINGS, month, client_id)
    return {row[0]: Digest(row[1], int(row[2])) for row in rows}


def _values(path: Path) -> Iterator[Sequence[Any]]:
    """The columns of a file, some rows at a time."""
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_STATEMENT_ROWS):
            yield [batch.column(name).to_pylist() for name in _COLUMNS]
