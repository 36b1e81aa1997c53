"""One migration runner for every engine that has a schema.

A migration is a numbered SQL file, applied once, in order, and never changed afterwards. What differs between engines
is behind `Target`. Runs exclude each other by a lock in PostgreSQL, also those against ClickHouse, which has none.
Migrations only go forward: a wrong one is followed by one that repairs it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_NO_TRANSACTION = "-- no-transaction"
_STATEMENT_END = re.compile(r";[ \t]*$", re.MULTILINE)


class MigrationError(Exception):
    """The schema and the migrations do not fit together. The text names versions and may be shown to operators."""


class MigrationsPending(MigrationError):
    """The database lacks migrations that this code needs: run the migrations first."""


class DatabaseNewer(MigrationError):
    """The database has migrations that this code does not know: newer code has been here."""


class MigrationChanged(MigrationError):
    """A file was changed after it was applied, so that nobody knows what the schema is. Restore it and add another."""


class MigrationOrder(MigrationError):
    """A pending file is numbered below an applied one, or two files share a number."""


class MigrationFailed(MigrationError):
    """A migration failed. What its statements did before is undone where the engine can undo it."""


class MigrationLocked(MigrationError):
    """Another run has held the lock for longer than this one would wait."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file.

    Attributes:
        version: The file's name without its ending, for example ``0002_accounts``.
        sql: Its text.
        checksum: SHA-256 of the text, in hex.
        transactional: Whether it runs in one transaction, where the engine has them; a first line of
            ``-- no-transaction`` says not, for what PostgreSQL refuses inside one. Such a file runs statement by
            statement and must bear to be run again from its start.
    """

    version: str
    sql: str
    checksum: str
    transactional: bool

    @property
    def statements(self) -> list[str]:
        """The file's statements one by one: each ends with a semicolon at the end of a line."""
        return split_statements(self.sql)


@dataclass(frozen=True, slots=True)
class Applied:
    """What a database remembers of a migration."""

    checksum: str
    applied_at: datetime


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """How one migration stands in one database.

    Attributes:
        state: ``changed``: applied, but the file is another now. ``unknown``: applied, but there is no such file.
        applied_at: When it was applied, unless it is pending.
    """

    version: str
    state: Literal["applied", "pending", "changed", "unknown"]
    applied_at: datetime | None


class Target(Protocol):
    """A database that is migrated, and keeps its history in a table ``schema_migrations``."""

    @property
    def name(self) -> str:
        """Name of the engine, for messages."""

    async def history(self) -> Mapping[str, Applied]:
        """What was applied, by version. Changes nothing: empty when there is no history table yet."""

    async def prepare(self) -> None:
        """Makes the history table if there is none."""

    async def apply(self, migration: Migration) -> None:
        """Runs a migration and records it: together where the engine can, else the record last."""


Lock = Callable[[], AbstractAsyncContextManager[None]]


def split_statements(sql: str) -> list[str]:
    """Splits at each semicolon that ends a line, and drops pieces that are nothing but comments."""
    pieces = (piece.strip() for piece in _STATEMENT_END.split(sql))
    return [piece for piece in pieces if any(_is_code(line) for line in piece.splitlines())]


def _is_code(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("--")


def load(directory: Path) -> list[Migration]:
    """Reads a directory's migrations in order.

    Raises:
        MigrationOrder: Two files share a number, or a name is not ``0001_words.sql``.
    """
    migrations: list[Migration] = []
    numbers: set[str] = set()
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None or match[1] in numbers:
            raise MigrationOrder(f"{path.name}: the name must be a number of its own and words, as in 0001_words.sql")
        numbers.add(match[1])
        migrations.append(parse(path.stem, path.read_text(encoding="utf-8")))
    return migrations


def parse(version: str, sql: str) -> Migration:
    """Makes a migration of a text."""
    checksum = hashlib.sha256(sql.encode()).hexdigest()
    return Migration(version, sql, checksum, transactional=not sql.startswith(_NO_TRANSACTION))


class Runner:
    """Brings one database up to the migrations this code knows, and tells how it stands."""

    def __init__(self, target: Target, migrations: Sequence[Migration], lock: Lock) -> None:
        """Binds a target to its migrations.

        Args:
            target: The database.
            migrations: All migrations this code knows, in order.
            lock: Makes the lock that excludes other runs, for example `storage.postgres.migrating.migration_lock`.
        """
        self._target = target
        self._migrations = list(migrations)
        self._lock = lock

    async def status(self) -> list[MigrationStatus]:
        """How each migration stands, in order of version; those the code does not know are included."""
        history = await self._target.history()
        known = {migration.version: migration for migration in self._migrations}
        return [_standing(version, known, history) for version in sorted(known.keys() | history.keys())]

    async def check(self) -> None:
        """Makes sure that the database is exactly what this code was written for; for the start of a server.

        Raises:
            MigrationsPending: Migrations are missing.
            DatabaseNewer: The database has been migrated by newer code.
            MigrationChanged: A file differs from what was applied.
        """
        pending = self._plan(await self.status())
        if pending:
            raise MigrationsPending(f"{self._target.name} lacks {_named(pending)}: run the migrations first")

    async def migrate(self, *, dry_run: bool = False) -> list[str]:
        """Applies what is pending, one file after another.

        Args:
            dry_run: Only tell what would be applied; takes no lock and changes nothing.

        Returns:
            The versions that were applied, or would be.

        Raises:
            MigrationError: The history does not fit, the lock was not free in time, or a migration failed; those
                applied before it stay.
        """
        if dry_run:
            return [migration.version for migration in self._plan(await self.status())]
        async with self._lock():
            await self._target.prepare()
            pending = self._plan(await self.status())
            for migration in pending:
                await self._target.apply(migration)
        return [migration.version for migration in pending]

    def _plan(self, statuses: Sequence[MigrationStatus]) -> list[Migration]:
        """The pending migrations in order, if the history is a beginning of what this code knows."""
        by_state = {state: [s.version for s in statuses if s.state == state] for state in _STATES}
        name = self._target.name
        if by_state["changed"]:
            raise MigrationChanged(f"{name}: changed after being applied: {', '.join(by_state['changed'])}")
        if by_state["unknown"]:
            raise DatabaseNewer(f"{name} has {', '.join(by_state['unknown'])}, which this code does not know")
        pending = [migration for migration in self._migrations if migration.version in by_state["pending"]]
        if pending and by_state["applied"] and pending[0].version < by_state["applied"][-1]:
            raise MigrationOrder(f"{name}: {pending[0].version} is numbered below {by_state['applied'][-1]}")
        return pending


_STATES = ("applied", "pending", "changed", "unknown")


def _standing(version: str, known: Mapping[str, Migration], history: Mapping[str, Applied]) -> MigrationStatus:
    applied = history.get(version)
    if applied is None:
        return MigrationStatus(version, "pending", None)
    if version not in known:
        return MigrationStatus(version, "unknown", applied.applied_at)
    same = applied.checksum == known[version].checksum
    return MigrationStatus(version, "applied" if same else "changed", applied.applied_at)


def _named(migrations: Sequence[Migration]) -> str:
    return ", ".join(migration.version for migration in migrations)
