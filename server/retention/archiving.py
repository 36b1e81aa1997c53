"""Months that leave their tables: archived, read back, and only then dropped.

The manifest in PostgreSQL says how far a month is. Each step is done before it is noted, and may be done again, so a
kill at any moment loses nothing and the next run goes on where this one was.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TypeAlias
from uuid import UUID, uuid5

from server.jobs.handling import JobFailed, JobPostponed
from server.rpc import logs
from server.settings import RetentionSettings
from server.statistics.days import months_before
from server.statistics.files import workspace
from storage.clickhouse.archived import ArchivedTable, Digest
from storage.errors import NotFound
from storage.objects.store import Objects, client_prefix
from storage.postgres import archives, metrics_state
from storage.postgres.archives import Archive, ArchivedDays, Partition
from storage.postgres.database import Database

Table: TypeAlias = ArchivedTable | ArchivedDays
Progress: TypeAlias = Callable[[int, int], Awaitable[None]]

# Days end later in some zones than in others.
_MARGIN = timedelta(days=2)
_log = logs.get("retention")


def end_of(month: date) -> date:
    """First day of the month after."""
    return (month + timedelta(days=32)).replace(day=1)


def is_due(month: date, keep_months: int, today: date) -> bool:
    """Whether all days of a month have been kept long enough, wherever they were days."""
    return end_of(month) + _MARGIN <= months_before(today, keep_months)


def object_key(table: str, month: date, client_id: UUID) -> str:
    """Where a client's file of a month lies: under the client's prefix, so that a purge finds it."""
    return f"{client_prefix(client_id)}archive/{table}/{month:%Y-%m}.parquet"


class Archiver:
    """Takes months of one table out, and back in.

    Args:
        database: Holds the manifest.
        objects: Where the files go.
        table: What leaves.
        settings: Times.
        progress: Is told files that are done, and how many there are.
    """

    def __init__(
        self, database: Database, objects: Objects, table: Table, settings: RetentionSettings, progress: Progress
    ) -> None:
        self._database = database
        self._objects = objects
        self._table = table
        self._settings = settings
        self._progress = progress

    async def close(self, month: date) -> Partition:
        """Has nothing more be taken for a month, unless that was done; returns how far it is."""
        if isinstance(self._table, ArchivedTable):
            # Before anything is read: what came later would be dropped unarchived.
            end = end_of(month)
            await metrics_state.raise_raw_floor(self._database, datetime(end.year, end.month, 1, tzinfo=UTC))
        await archives.open_internal(self._database, self._table.name, month)
        return await self._at(month)

    async def let_go(self, month: date) -> str:
        """Brings a month from wherever it is to being dropped.

        Returns:
            ``dropped``, or ``held`` if a client of it is held: then it stays as a whole, archived.

        Raises:
            JobPostponed: Rows may still be on their way into the month, or changed while it was archived.
            JobFailed: A file is not what was written.
        """
        found = await self.close(month)
        self._check_settled(found)
        if found.state == "archiving":
            await self._archive(found)
            found = await self._at(month)
        if found.state in ("archived", "restored"):
            if not await self._release(found):
                return "held"
            found = await self._at(month)
        if found.state == "dropping" and isinstance(self._table, ArchivedTable):
            await self._table.drop(month)
            await archives.move_internal(self._database, found.id, ["dropping"], "dropped")
            _log.info("month_dropped", table=self._table.name, month=str(month), rows=found.rows)
        return "dropped"

    async def restore(self, month: date) -> int:
        """Brings a dropped month back for a while; returns how many rows it has.

        Raises:
            JobFailed: There is no such archive, or a file is not what was written.
        """
        found = await archives.get(self._database, self._table.name, month)
        if found is None or found.state not in ("dropped", "restoring", "restored"):
            raise JobFailed(f"there is no archive of {month:%Y-%m} to restore", final=True)
        until = datetime.now(UTC) + self._settings.restored_for
        if found.state == "restored":
            await archives.move_internal(self._database, found.id, ["restored"], "restored", until)
            return found.rows
        await archives.move_internal(self._database, found.id, ["dropped", "restoring"], "restoring", until)
        files = await archives.files_internal(self._database, found.id)
        for done, file in enumerate(files):
            await self._progress(done, len(files))
            async with workspace() as directory:
                path = await self._fetched(file, directory)
                await self._table.restore(path)
        expected = _held_by(files)
        if await self._table.holdings(month) != expected:
            raise JobFailed(f"the rows of {month:%Y-%m} that came back are not those that were archived")
        async with self._database.transaction("restored") as tx:
            if await archives.move_internal(tx, found.id, ["restoring"], "restored") and isinstance(
                self._table, ArchivedDays
            ):
                await self._table.taken_back(tx, month)
        return found.rows

    async def expire(self, found: Partition) -> bool:
        """Deletes the files of a dropped month; False while a client of it is held."""
        files = await archives.files_internal(self._database, found.id)
        async with self._database.transaction("expire_archive") as tx:
            await archives.lock_holds_internal(tx)
            if await archives.held_internal(tx, [each.client_id for each in files]):
                return False
            if not await archives.move_internal(tx, found.id, ["dropped"], "expired"):
                return False
        for file in files:
            await self._objects.delete(file.object_key)
        await archives.forget_internal(self._database, found.id, [each.client_id for each in files])
        return True

    async def _at(self, month: date) -> Partition:
        found = await archives.get(self._database, self._table.name, month)
        assert found is not None, "months never leave the manifest"
        return found

    def _check_settled(self, found: Partition) -> None:
        left = found.closed_at + self._settings.settle - datetime.now(UTC)
        if found.state == "archiving" and isinstance(self._table, ArchivedTable) and left > timedelta(0):
            # Each server learns of the floor within seconds, and what it had begun to store ends within a minute.
            raise JobPostponed(left, "events taken before the month was closed may still arrive")

    async def _archive(self, found: Partition) -> None:
        present = await self._table.holdings(found.month)
        known = {each.client_id: each for each in await archives.files_internal(self._database, found.id)}
        gone = known.keys() - present.keys()
        for client_id in gone:
            await self._objects.delete(known[client_id].object_key)
        await archives.forget_internal(self._database, found.id, gone)
        for done, (client_id, digest) in enumerate(present.items()):
            await self._progress(done, len(present))
            file = known.get(client_id)
            if file is None or Digest(file.row_count, file.digest) != digest:
                await self._archive_client(found, client_id, digest)
        await archives.move_internal(self._database, found.id, ["archiving"], "archived")

    async def _archive_client(self, found: Partition, client_id: UUID, present: Digest) -> None:
        """Writes a client's file, reads it back from where it lies, and notes it if it holds the same."""
        key = object_key(self._table.name, found.month, client_id)
        async with workspace() as directory:
            path = directory / "written"
            await self._table.extract(found.month, client_id, path)
            size = path.stat().st_size
            sha256 = await self._objects.put(key, path)
            path.unlink()
            copy = await self._read_back(key, sha256, directory)
            if await self._table.check(copy, uuid5(found.id, str(client_id))) != present:
                raise JobFailed(f"what {key} holds is not what the table does")
        await archives.note_internal(
            self._database, found.id, client_id, key=key, found=present, size=size, sha256=sha256
        )

    async def _release(self, found: Partition) -> bool:
        """Decides that a month leaves, if the files still hold what it has; False if a client of it is held."""
        files = await archives.files_internal(self._database, found.id)
        expected = _held_by(files)
        for file in files:
            stored = await self._stored_sha256(file)
            if stored != file.sha256:
                await archives.forget_internal(self._database, found.id, [file.client_id])
                await archives.move_internal(self._database, found.id, [found.state], "archiving")
                raise JobPostponed(timedelta(seconds=1), f"{file.object_key} is not there any more and is made anew")
        same = isinstance(self._table, ArchivedDays) or await self._table.holdings(found.month) == expected
        if same:
            async with self._database.transaction("release_month") as tx:
                await archives.lock_holds_internal(tx)
                if await archives.held_internal(tx, expected.keys()):
                    return False
                if isinstance(self._table, ArchivedDays):
                    same = await self._table.let_go(tx, found.month, expected)
                if same:
                    state = "dropped" if isinstance(self._table, ArchivedDays) else "dropping"
                    await archives.move_internal(tx, found.id, [found.state], state)
        if not same:
            await archives.move_internal(self._database, found.id, [found.state], "archiving")
            raise JobPostponed(timedelta(seconds=1), "the month changed while it was archived")
        return True

    async def _stored_sha256(self, file: Archive) -> str:
        try:
            head = await self._objects.head(file.object_key)
        except NotFound:
            return ""
        return await self._objects.checksum(file.object_key) if head.size == file.size_bytes else ""

    async def _fetched(self, file: Archive, directory: Path) -> Path:
        try:
            return await self._read_back(file.object_key, file.sha256, directory)
        except NotFound:
            raise JobFailed(f"{file.object_key} is missing") from None

    async def _read_back(self, key: str, sha256: str, directory: Path) -> Path:
        path, digest = directory / "read", hashlib.sha256()
        with path.open("wb") as target:
            async with aclosing(self._objects.get(key)) as pieces:
                async for piece in pieces:
                    digest.update(piece)
                    target.write(piece)
        if digest.hexdigest() != sha256:
            raise JobFailed(f"{key} is damaged")
        return path


def _held_by(files: list[Archive]) -> Mapping[UUID, Digest]:
    return {each.client_id: Digest(each.row_count, each.digest) for each in files}
