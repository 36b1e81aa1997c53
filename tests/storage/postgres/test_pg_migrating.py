"""Migrations against a real PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import asyncpg
import pytest

from storage.errors import StoreUnavailable
from storage.migrations import (
    DatabaseNewer,
    Migration,
    MigrationChanged,
    MigrationFailed,
    MigrationLocked,
    MigrationOrder,
    MigrationsPending,
    Runner,
    load,
    parse,
)
from storage.postgres.migrating import DIRECTORY, PostgresTarget, migration_lock, postgres_runner

MakeDatabase = Callable[..., Awaitable[str]]

A = parse("0001_a", "CREATE TABLE a (id int);")
B = parse("0002_b", "CREATE TABLE b (id int);")


def runner(dsn: str, *migrations: Migration, lock_seconds: float = 4.0) -> Runner:
    return Runner(PostgresTarget(dsn, lock_seconds=lock_seconds), migrations, migration_lock(dsn))


async def tables(dsn: str) -> set[str]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    finally:
        await connection.close()
    return {row[0] for row in rows}


async def description(dsn: str) -> list[tuple[str, ...]]:
    """Everything the catalog says about our objects that does not depend on when they were made."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            """
            SELECT 'column', attrelid::regclass::text, attname::text, format_type(atttypid, atttypmod),
              concat(attnotnull, pg_get_expr(adbin, adrelid), col_description(attrelid, attnum))
            FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
            LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
            WHERE c.relnamespace = 'public'::regnamespace AND attnum > 0
            UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), ''
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
            UNION ALL SELECT 'index', '', '', indexdef, '' FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT 'trigger', '', '', pg_get_triggerdef(t.oid), '' FROM pg_trigger t WHERE NOT tgisinternal
            UNION ALL SELECT 'function', '', proname, pg_get_functiondef(oid), ''
            FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            UNION ALL SELECT 'view', '', viewname, definition, '' FROM pg_views WHERE schemaname = 'public'
            ORDER BY 1, 2, 3, 4, 5"""
        )
    finally:
        await connection.close()
    return [tuple(row) for row in rows]


async def test_parallel_runs_apply_each_file_once(make_database: MakeDatabase) -> None:
    dsn = await make_database()
    applied = await asyncio.gather(*[postgres_runner(dsn).migrate() for _ in range(5)])
    every = [migration.version for migration in load(DIRECTORY)]
    assert sorted(applied) == sorted([[], [], [], [], every])
    await postgres_runner(dsn).check()


async def test_step_by_step_gives_the_same_schema_as_all_at_once(make_database: MakeDatabase) -> None:
    at_once, in_steps = await make_database(), await make_database()
    await postgres_runner(at_once).migrate()
    files = load(DIRECTORY)
    for count in range(1, len(files) + 1):
        assert await runner(in_steps, *files[:count]).migrate() == [files[count - 1].version]
    assert await description(in_steps) == await description(at_once)


async def test_versions_of_prompts_that_were_there_find_their_lineage(make_database: MakeDatabase) -> None:
    dsn = await make_database()
    files = load(DIRECTORY)
    await runner(dsn, *files[:25]).migrate()
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            """
            INSERT INTO ai_prompts (id, name, category, prompt_template, version)
            SELECT gen_random_uuid(), name, category, name || version, version
            FROM (VALUES ('a', 'brief', 1), ('a', 'report', 2), ('b', 'brief', 5)) AS v (name, category, version)"""
        )
        await runner(dsn, *files).migrate()
        rows = await connection.fetch(
            """
            SELECT l.name, l.client_id, l.latest_version, l.category, array_agg(v.version ORDER BY v.version),
              array_agg(v.prompt_template ORDER BY v.version), bool_and(v.category = l.category)
            FROM prompt_lineages l JOIN ai_prompts v ON v.lineage_id = l.id GROUP BY l.id ORDER BY l.name"""
        )
    finally:
        await connection.close()
    assert [tuple(row) for row in rows] == [
        ("a", None, 2, "report", [1, 2], ["a1", "a2"], True),
        ("b", None, 5, "brief", [5], ["b5"], True),
    ]


async def test_a_changed_file_is_refused(make_database: MakeDatabase) -> None:
    dsn = await make_database()
    await runner(dsn, A).migrate()
    changed = runner(dsn, parse("0001_a", A.sql + " "), B)
    with pytest.raises(MigrationChanged, match="0001_a"):
        await changed.migrate()
    with pytest.raises(MigrationChanged):
        await changed.check()
    assert [status.state for status in await changed.status()] == ["changed", "pending"]
    assert "b" not in await tables(dsn)


async def test_a_dry_run_changes_nothing(make_database: MakeDatabase) -> None:
    dsn = await make_database()
    assert await runner(dsn, A, B).migrate(dry_run=True) == ["0001_a", "0002_b"]
    assert await tables(dsn) == set()


async def test_starting_with_pending_migrations_is_refused(make_database: MakeDatabase) -> None:
    dsn = await make_database()
    with pytest.raises(MigrationsPending, match="0001_a, 0002_b"):
        await runner(dsn, A, B).check()
    await runner(dsn, A).migrate()
    with pytest.raises(MigrationsPending, match=r"lacks 0002_b:"):
        await runner(dsn, A, B).check()


async def test_a_newer_database_is_refused(make_database: MakeDatabase) -> None:
    dsn = await make_database()
    await runner(dsn, A, B).migrate()
    older = runner(dsn, A)
    with pytest.raises(DatabaseNewer, match="0002_b"):
        await older.check()
    with pytest.raises(DatabaseNewer):
        await older.migrate()
    assert [(status.version, status.state) for status in await older.status()] == [
        ("0001_a", "applied"),
        ("0002_b", "unknown"),
    ]


async def test_a_file_numbered_below_an_applied_one_is_refused(make_database: MakeDatabase) -> None:
    dsn = await make_database()
    await runner(dsn, B).migrate()
    with pytest.raises(MigrationOrder):
        await runner(dsn, A, B).migrate()


async def test_status_tells_when(make_database: MakeDatabase) -> None:
    dsn = await make_database()
    await runner(dsn, A).migrate()
    applied, pending = await runner(dsn, A, B).status()
    assert (applied.state, pending.state) == ("applied", "pending")
    assert applied.applied_at is not None
    assert applied.applied_at.tzinfo is not None
    assert pending.applied_at is None


async def test_a_failed_file_leaves_nothing_behind(make_database: MakeDatabase) -> None:
    dsn = await make_database()
    broken = parse("0002_b", "CREATE TABLE b (id int);\nSELECT 1 / 0;")
    with pytest.raises(MigrationFailed, match="0002_b"):
        await runner(dsn, A, broken).migrate()
    assert await tables(dsn) == {"a", "schema_migrations", "schema_migrations_pkey"}
    assert await runner(dsn, A, B).migrate() == ["0002_b"]


async def test_a_file_without_transaction_may_build_an_index_concurrently(make_database: MakeDatabase) -> None:
    dsn = await make_database()
    concurrent = parse(
        "0002_i",
        "-- no-transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS i ON a (id);\n"
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS j ON a (id);\n",
    )
    # Others wait for the lock meanwhile: they must not be what the index build waits for.
    async with asyncio.timeout(20):
        applied = await asyncio.gather(*[runner(dsn, A, concurrent).migrate() for _ in range(4)])
    assert sorted(applied) == [[], [], [], ["0001_a", "0002_i"]]
    assert {"i", "j"} <= await tables(dsn)


async def test_a_table_in_use_stops_the_migration_and_not_the_callers(make_database: MakeDatabase) -> None:
    dsn = await make_database()
    await runner(dsn, A).migrate()
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute("SELECT count(*) FROM a")
            alter = parse("0002_c", "ALTER TABLE a ADD x int;")
            with pytest.raises(MigrationFailed, match="55P03"):
                await runner(dsn, A, alter, lock_seconds=0.1).migrate()
    finally:
        await connection.close()


async def test_waiting_for_another_run_ends(make_database: MakeDatabase) -> None:
    dsn = await make_database()

    def impatient() -> AbstractAsyncContextManager[None]:
        return migration_lock(dsn, wait_seconds=0.2)()

    async with migration_lock(dsn)():
        with pytest.raises(MigrationLocked):
            await Runner(PostgresTarget(dsn), [A], impatient).migrate()


async def test_an_unreachable_database_is_told_apart(unused_tcp_port: int) -> None:
    with pytest.raises(StoreUnavailable):
        await postgres_runner(f"postgresql://u:secret@127.0.0.1:{unused_tcp_port}/x").check()
