"""Client paths and revisions, which take transactions of their own to test."""

import asyncio
from collections.abc import Awaitable
from typing import Any
from uuid import UUID

import pytest

from storage.errors import Invalid
from storage.postgres import clients
from storage.postgres.database import Database, returned
from storage.postgres.ids import new_id


async def refused(error: type[Exception], constraint: str, work: Awaitable[object]) -> None:
    with pytest.raises(error) as caught:
        await work
    assert getattr(caught.value, "constraint", None) == constraint


class TestPaths:
    async def path(self, db: Database, client_id: UUID) -> list[UUID]:
        path: list[UUID] = await db.fetchval("SELECT path FROM clients WHERE id = $1", client_id)
        return path

    async def chain(self, db: Database, length: int) -> list[UUID]:
        ids: list[UUID] = []
        for n in range(length):
            client = await clients.create(db, name=f"c{n}", type="agency", parent_client_id=ids[-1] if ids else None)
            ids.append(client.id)
            assert client.path == ids
        return ids

    async def test_a_subtree_moves_with_its_root(self, db: Database) -> None:
        a, b, c, d = await self.chain(db, 4)
        (root,) = await self.chain(db, 1)
        await db.execute("UPDATE clients SET parent_client_id = $1 WHERE id = $2", root, b)
        assert await self.path(db, a) == [a]
        assert await self.path(db, b) == [root, b]
        assert await self.path(db, c) == [root, b, c]
        assert await self.path(db, d) == [root, b, c, d]
        await db.execute("UPDATE clients SET parent_client_id = NULL WHERE id = $1", c)
        assert await self.path(db, d) == [c, d]

    async def test_cycles_are_refused(self, db: Database) -> None:
        a, b, c = await self.chain(db, 3)
        for parent in (a, b, c):
            await refused(
                Invalid,
                "clients_no_cycle",
                db.execute("UPDATE clients SET parent_client_id = $1 WHERE id = $2", parent, a),
            )
        own = new_id()
        await refused(
            Invalid,
            "clients_no_cycle",
            clients.create(db, name="x", type="agency", client_id=own, parent_client_id=own),
        )

    async def test_a_parent_must_exist(self, db: Database) -> None:
        await refused(
            Invalid,
            "clients_parent_client_id_fkey",
            clients.create(db, name="x", type="agency", parent_client_id=new_id()),
        )

    async def test_a_written_path_is_ignored(self, db: Database) -> None:
        a, b = await self.chain(db, 2)
        await db.execute("UPDATE clients SET path = $1 WHERE id = $2", [a], b)
        assert await self.path(db, b) == [a, b]

    async def test_concurrent_moves_make_no_cycle(self, db: Database) -> None:
        (a,), (b,) = await self.chain(db, 1), await self.chain(db, 1)
        move = "UPDATE clients SET parent_client_id = $1 WHERE id = $2"
        async with db.transaction("first") as first:
            await first.execute(move, b, a)
            # The second waits for the first, and then sees what it did.
            second = asyncio.create_task(db.execute(move, a, b))
            await asyncio.sleep(0.2)
            assert not second.done()
        await refused(Invalid, "clients_no_cycle", second)

    async def test_a_child_born_during_a_move_has_the_new_path(self, db: Database) -> None:
        a, b = await self.chain(db, 2)
        (root,) = await self.chain(db, 1)
        async with db.transaction("move") as tx:
            await tx.execute("UPDATE clients SET parent_client_id = $1 WHERE id = $2", root, a)
            birth = asyncio.create_task(clients.create(db, name="x", type="agency", parent_client_id=b))
            await asyncio.sleep(0.2)
        child = await birth
        assert child.path == [root, a, b, child.id]

    async def test_moving_does_not_edit_the_descendants(self, db: Database) -> None:
        _a, b, c = await self.chain(db, 3)
        await db.execute("UPDATE clients SET parent_client_id = NULL WHERE id = $1", b)
        rows = await db.fetch("SELECT revision FROM clients WHERE id = ANY ($1) ORDER BY id", [b, c])
        assert [row[0] for row in rows] == [2, 1]


class TestRevisions:
    async def test_an_edit_is_counted_and_dated(self, db: Database, world: Any) -> None:
        row = returned(
            await db.fetchrow(
                "UPDATE campaigns SET name = 'x' WHERE id = $1 RETURNING revision, updated_at", world.campaign.id
            )
        )
        assert row["revision"] == 2
        assert row["updated_at"] > world.campaign.updated_at
