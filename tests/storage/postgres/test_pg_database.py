"""Pool, transactions, deadlines, cancellation, and what becomes of the driver's errors."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest

from storage import deadline
from storage.errors import Conflict, Contention, Invalid, StoreUnavailable
from storage.postgres.database import Database, Transaction

MakeDatabase = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
async def empty(make_database: MakeDatabase) -> str:
    return await make_database()


@pytest.fixture
async def plain(empty: str) -> str:
    """A database with one little table."""
    connection = await asyncpg.connect(empty)
    await connection.execute(
        """
        DROP TABLE IF EXISTS t;
        CREATE TABLE t (id int CONSTRAINT t_key PRIMARY KEY, x int NOT NULL CONSTRAINT t_small CHECK (x < 100));
        INSERT INTO t VALUES (1, 0), (2, 0)"""
    )
    await connection.close()
    return empty


@pytest.fixture
async def db(plain: str) -> Any:
    database = await Database.open(plain, min_size=1, max_size=4)
    yield database
    await database.close()


@pytest.fixture
def time_left() -> Iterator[Callable[[float], None]]:
    """Sets the deadline of the test's own task."""

    def set_to(seconds: float) -> None:
        deadline.set_deadline(asyncio.get_running_loop().time() + seconds)

    yield set_to
    deadline.set_deadline(None)


class TestDeadline:
    async def test_no_deadline_leaves_the_default(self) -> None:
        assert deadline.remaining(7.0) == 7.0

    async def test_the_deadline_shortens_and_never_reaches_zero(self, time_left: Callable[[float], None]) -> None:
        time_left(3.0)
        assert 2.0 < deadline.remaining(7.0) <= 3.0
        assert deadline.remaining(1.0) == 1.0
        time_left(-5.0)
        assert 0 < deadline.remaining(7.0) < 0.01

    async def test_it_can_be_put_back(self) -> None:
        token = deadline.set_deadline(asyncio.get_running_loop().time() + 1)
        deadline.reset_deadline(token)
        assert deadline.remaining(7.0) == 7.0

    async def test_a_statement_ends_with_it(self, db: Database, time_left: Callable[[float], None]) -> None:
        await db.fetchval("SELECT 1")
        time_left(0.2)
        with pytest.raises(TimeoutError):
            await db.fetchval("SELECT pg_sleep(10)")
        deadline.set_deadline(None)
        assert await db.fetchval("SELECT 1") == 1


class TestErrors:
    @pytest.mark.parametrize(
        ("sql", "error", "constraint"),
        [
            ("INSERT INTO t VALUES (1, 1)", Conflict, "t_key"),
            ("INSERT INTO t VALUES (3, 100)", Invalid, "t_small"),
            ("INSERT INTO t VALUES (3, NULL)", Invalid, "x"),
            ("INSERT INTO t VALUES (3000000000, 1)", Invalid, "value"),
        ],
    )
    async def test_rules(self, db: Database, sql: str, error: type[Exception], constraint: str) -> None:
        with pytest.raises(error) as caught:
            await db.execute(sql)
        assert getattr(caught.value, "constraint", None) == constraint
        assert caught.value.__suppress_context__

    async def test_an_argument_the_driver_refuses(self, db: Database) -> None:
        with pytest.raises(Invalid):
            await db.fetch("SELECT $1::int", 2**40)

    async def test_a_wrong_statement_stays_a_bug(self, db: Database) -> None:
        with pytest.raises(asyncpg.UndefinedTableError):
            await db.fetch("SELECT * FROM nothing")
        with pytest.raises(asyncpg.InterfaceError):
            await db.fetch("SELECT $1::int")

    async def test_nobody_listens(self, unused_tcp_port: int) -> None:
        with pytest.raises(StoreUnavailable) as caught:
            await Database.open(f"postgresql://u:secret@127.0.0.1:{unused_tcp_port}/x")
        assert caught.value.store == "postgresql"
        assert "secret" not in f"{caught.value} {caught.value.reason}"

    async def test_it_may_come_later(self, unused_tcp_port: int) -> None:
        database = await Database.open(f"postgresql://u:p@127.0.0.1:{unused_tcp_port}/x", min_size=0)
        with pytest.raises(StoreUnavailable):
            await database.fetchval("SELECT 1")
        await database.close()

    async def test_a_wrong_password_is_not_told(self, plain: str) -> None:
        name, _, rest = plain.removeprefix("postgresql://").partition(":")
        with pytest.raises(StoreUnavailable) as caught:
            await Database.open(f"postgresql://{name}:wrong@{rest.partition('@')[2]}")
        assert name not in str(caught.value)

    async def test_no_free_connection(self, plain: str, time_left: Callable[[float], None]) -> None:
        database = await Database.open(plain, min_size=1, max_size=1)
        async with database.transaction("hog"):
            time_left(0.2)
            with pytest.raises(StoreUnavailable):
                await database.fetchval("SELECT 1")
            deadline.set_deadline(None)
        assert await database.fetchval("SELECT 1") == 1
        await database.close()

    async def test_after_close(self, plain: str) -> None:
        database = await Database.open(plain, min_size=1)
        await database.close()
        with pytest.raises(StoreUnavailable):
            await database.fetchval("SELECT 1")


async def x(db: Database, row: int = 1) -> int:
    value: int = await db.fetchval("SELECT x FROM t WHERE id = $1", row)
    return value


class TestTransactions:
    async def test_both_endings_are_observed(self, plain: str) -> None:
        seen: list[tuple[str, str]] = []
        database = await Database.open(
            plain, min_size=1, on_transaction=lambda name, seconds, outcome: seen.append((name, outcome))
        )
        async with database.transaction("good") as tx:
            await tx.execute("UPDATE t SET x = 1")
        with pytest.raises(KeyError):
            async with database.transaction("bad") as tx:
                await tx.execute("UPDATE t SET x = 2")
                raise KeyError
        assert await x(database) == 1
        assert seen == [("good", "commit"), ("bad", "rollback")]
        await database.close()

    async def test_the_blocks_own_errors_are_its_own(self, db: Database) -> None:
        with pytest.raises(ConnectionResetError):
            async with db.transaction("other store"):
                raise ConnectionResetError

    async def test_callbacks_run_after_commit_only(self, db: Database) -> None:
        seen: list[int] = []

        async def note() -> None:
            seen.append(await x(db))

        async with db.transaction("commit") as tx:
            await tx.execute("UPDATE t SET x = 5")
            tx.after_commit(note)
            assert seen == []
        assert seen == [5]
        with pytest.raises(KeyError):
            async with db.transaction("rollback") as tx:
                tx.after_commit(note)
                raise KeyError
        assert seen == [5]

    async def test_a_failing_callback_does_not_undo_the_success(
        self, db: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        ran: list[str] = []

        async def fails() -> None:
            raise ConnectionError("redis://user:secret@host")

        async def works() -> None:
            ran.append("works")

        with caplog.at_level(logging.WARNING):
            async with db.transaction("named") as tx:
                tx.after_commit(fails)
                tx.after_commit(works)
        assert ran == ["works"]
        assert "named" in caplog.text
        assert "secret" not in caplog.text

    async def test_savepoints_nest(self, db: Database) -> None:
        ran: list[str] = []

        async def note(what: str) -> None:
            ran.append(what)

        async with db.transaction("bulk") as tx:
            with pytest.raises(Conflict):
                async with tx.savepoint():
                    await tx.execute("UPDATE t SET x = 1 WHERE id = 1")
                    with pytest.raises(Invalid):
                        async with tx.savepoint():
                            tx.after_commit(lambda: note("inner"))
                            await tx.execute("UPDATE t SET x = 1000 WHERE id = 2")
                    await tx.execute("INSERT INTO t VALUES (1, 1)")
            async with tx.savepoint():
                tx.after_commit(lambda: note("kept"))
                await tx.execute("UPDATE t SET x = 7 WHERE id = 2")
        assert (await x(db, 1), await x(db, 2)) == (0, 7)
        assert ran == ["kept"]

    async def test_a_swallowed_failure_does_not_pass_for_a_commit(self, db: Database) -> None:
        with pytest.raises(RuntimeError, match="savepoint"):
            async with db.transaction("careless") as tx:
                with pytest.raises(Conflict):
                    await tx.execute("INSERT INTO t VALUES (1, 1)")

    async def test_cancelling_rolls_back_and_returns_the_connection(self, plain: str) -> None:
        database = await Database.open(plain, min_size=1, max_size=1)

        async def work() -> None:
            async with database.transaction("slow") as tx:
                await tx.execute("UPDATE t SET x = 9")
                await tx.execute("SELECT pg_sleep(10)")

        for _ in range(5):
            task = asyncio.create_task(work())
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(2):
                assert await x(database) == 0
        await database.close()

    async def test_cancelling_a_single_statement(self, plain: str) -> None:
        database = await Database.open(plain, min_size=1, max_size=1)
        task = asyncio.create_task(database.fetchval("SELECT pg_sleep(10)"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(2):
            assert await x(database) == 0
        await database.close()

    async def test_json_is_plain_python(self, db: Database) -> None:
        value = {"a": [1, 2.5, None, True, "я\u2028"], "b": {}}
        assert await db.fetchval("SELECT $1::jsonb", value) == value
        assert await db.fetchval("SELECT 'null'::jsonb") is None
        assert await db.fetchval("SELECT jsonb_typeof($1::jsonb)", "text") == "string"


class TestRetries:
    async def test_a_deadlock_is_tried_again(self, db: Database) -> None:
        met = asyncio.Barrier(2)
        tries: list[int] = []

        def work(first: int, second: int) -> Callable[[Transaction], Awaitable[None]]:
            async def run(tx: Transaction) -> None:
                tries.append(first)
                await tx.execute("UPDATE t SET x = x + 1 WHERE id = $1", first)
                if len(tries) <= 2:
                    await met.wait()
                await tx.execute("UPDATE t SET x = x + 1 WHERE id = $1", second)

            return run

        await asyncio.gather(db.run("one", work(1, 2)), db.run("two", work(2, 1)))
        assert len(tries) == 3
        assert (await x(db, 1), await x(db, 2)) == (2, 2)

    async def test_it_gives_up(self, db: Database) -> None:
        tries: list[int] = []

        async def fails(tx: Transaction) -> None:
            tries.append(1)
            await tx.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")

        with pytest.raises(Contention):
            await db.run("hopeless", fails)
        assert len(tries) == 5

    async def test_other_failures_are_not_tried_again(self, db: Database) -> None:
        tries: list[int] = []

        async def fails(tx: Transaction) -> None:
            tries.append(1)
            await tx.execute("INSERT INTO t VALUES (1, 1)")

        with pytest.raises(Conflict):
            await db.run("taken", fails)
        assert len(tries) == 1

    async def test_a_migration_under_prepared_statements(self, plain: str) -> None:
        database = await Database.open(plain, min_size=1, max_size=1)

        async def read(tx: Transaction) -> list[Any]:
            return await tx.fetch("SELECT * FROM t ORDER BY id")

        before = await database.run("read", read)
        connection = await asyncpg.connect(plain)
        await connection.execute("ALTER TABLE t ADD y int DEFAULT 4")
        await connection.close()
        after = await database.run("read", read)
        assert (len(before[0]), len(after[0])) == (2, 3)
        await database.close()

    async def test_callbacks_of_a_lost_try_do_not_run(self, db: Database) -> None:
        ran: list[int] = []
        tries: list[int] = []

        async def note() -> None:
            ran.append(len(tries))

        async def work(tx: Transaction) -> None:
            tries.append(1)
            tx.after_commit(note)
            if len(tries) < 3:
                await tx.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$")

        await db.run("third time", work)
        assert ran == [3]


class TestRestarts:
    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
    async def test_a_restart_is_survived(self, db: Database, server: Any, how: signal.Signals) -> None:
        async with db.transaction("held") as tx:
            await tx.fetchval("SELECT 1")
        await server.kill(how)
        try:
            with pytest.raises(StoreUnavailable):
                await db.fetchval("SELECT 1")
        finally:
            await server.start()
        async with asyncio.timeout(5):
            assert await x(db) == 0

    async def test_a_lost_connection_within_a_transaction(self, db: Database) -> None:
        # How far the ending has got when the next statement meets it differs from time to time.
        for pause in (0, 0, 0, 0.001, 0.01, 0.1):
            with pytest.raises(StoreUnavailable):
                async with db.transaction("victim") as tx:
                    pid = await tx.fetchval("SELECT pg_backend_pid()")
                    await db.execute("SELECT pg_terminate_backend($1)", pid)
                    await asyncio.sleep(pause)
                    await tx.execute("UPDATE t SET x = 3")
            assert await x(db) == 0

    async def test_without_prepared_statements(self, plain: str) -> None:
        database = await Database.open(plain, min_size=1, statement_cache_size=0)
        assert await database.fetchval("SELECT $1::int", 4) == 4
        assert await database.fetchval("SELECT current_setting('application_name')") == "mrm"
        await database.close()
