"""How a process opens what it stands on: schemas that are what the code was written for, stores, keys."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from server.errors import StartError
from server.jobs.handling import Stores
from server.platforms.registry import Platforms
from server.sealing import KeyRing, KeyRingError
from server.search.embedder import Embedders
from server.settings import MilvusSettings, ObjectsSettings, SecretsSettings, Settings
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.target import MIGRATIONS as CLICKHOUSE_MIGRATIONS
from storage.clickhouse.target import ClickHouseTarget
from storage.migrations import MigrationStatus, Runner, load
from storage.milvus.connect import Milvus
from storage.objects.store import Objects, S3Access
from storage.postgres.database import Database
from storage.postgres.migrating import migration_lock, postgres_runner
from storage.redis.signals import Signals


@asynccontextmanager
async def runners(settings: Settings) -> AsyncIterator[dict[str, Runner]]:
    """What migrates each engine, by its name."""
    postgres, dsn = settings.postgres.dsn.get_secret_value(), settings.clickhouse.dsn.get_secret_value()
    clickhouse = ClickHouse(dsn, connections=2)
    try:
        yield {
            "postgresql": postgres_runner(postgres),
            "clickhouse": Runner(
                ClickHouseTarget(clickhouse, dsn), load(CLICKHOUSE_MIGRATIONS), migration_lock(postgres)
            ),
        }
    finally:
        await clickhouse.close()


async def migrate(settings: Settings, *, dry_run: bool = False) -> list[str]:
    """Brings all stores up to this code; returns ``<engine>/<version>`` of what was applied, or would be."""
    async with runners(settings) as each:
        return [
            f"{engine}/{version}"
            for engine, runner in each.items()
            for version in await runner.migrate(dry_run=dry_run)
        ]


async def migration_status(settings: Settings) -> dict[str, list[MigrationStatus]]:
    """How each migration stands, by engine."""
    async with runners(settings) as each:
        return {engine: await runner.status() for engine, runner in each.items()}


async def check_schemas(settings: Settings) -> None:
    """Returns if both engines have this code's schemas.

    Raises:
        storage.errors.StoreUnavailable: A store cannot be reached.
        storage.migrations.MigrationError: A schema is not what this code was written for.
    """
    async with runners(settings) as each:
        for runner in each.values():
            await runner.check()


def object_storage(settings: ObjectsSettings) -> Objects | None:
    """The object storage, if the service has one.

    Raises:
        StartError: It is configured and cannot be used.
    """
    if settings.url is None:
        return None
    access = S3Access(
        settings.endpoint, settings.region, settings.access_key_id, settings.secret_access_key.get_secret_value()
    )
    try:
        return Objects(settings.url, access)
    except (ValueError, OSError) as error:
        raise StartError(f"MRM_OBJECTS__URL: {error if isinstance(error, ValueError) else error.strerror}") from None


def vectors(settings: MilvusSettings) -> Milvus | None:
    """Milvus, if the service has one. It connects when it is first asked."""
    return None if settings.dsn is None else Milvus(settings.dsn.get_secret_value())


def key_ring(settings: SecretsSettings) -> KeyRing:
    """The keys that seal credentials.

    Raises:
        StartError: They are configured and cannot be read.
    """
    try:
        return KeyRing.of(settings)
    except KeyRingError as error:
        raise StartError(str(error)) from None


@asynccontextmanager
async def opened(settings: Settings, application_name: str) -> AsyncIterator[Stores]:
    """Everything that a job may need, for the length of a block.

    Args:
        settings: Where the stores are.
        application_name: Names the process in PostgreSQL's own lists.

    Raises:
        StartError: Object storage or key ring are configured and cannot be used.
        storage.errors.StoreUnavailable: PostgreSQL cannot be reached.
    """
    async with AsyncExitStack() as stack:
        keyring, objects = key_ring(settings.secrets), object_storage(settings.objects)
        if objects is not None:
            stack.push_async_callback(objects.close)
        database = await Database.open(
            settings.postgres.dsn.get_secret_value(),
            min_size=settings.postgres.pool_min,
            max_size=settings.postgres.pool_max,
            statement_cache_size=settings.postgres.statement_cache_size,
            application_name=application_name,
        )
        stack.push_async_callback(database.close)
        clickhouse = ClickHouse(settings.clickhouse.dsn.get_secret_value(), connections=settings.clickhouse.connections)
        stack.push_async_callback(clickhouse.close)
        signals = Signals(settings.redis.durable_dsn.get_secret_value())
        stack.push_async_callback(signals.close)
        platforms = Platforms.open(settings.platforms)
        stack.push_async_callback(platforms.close)
        milvus, embedders = vectors(settings.milvus), Embedders(settings.embedding)
        if milvus is not None:
            stack.push_async_callback(milvus.close)
        stack.push_async_callback(embedders.close)
        yield Stores(database, clickhouse, objects, keyring, signals, settings, platforms, milvus, embedders)
