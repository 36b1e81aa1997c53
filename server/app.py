"""The composition root: opens the stores, builds the services, and closes everything in reverse.

This is the one module that sees all others.
"""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from uuid_utils.compat import uuid7

from mrm.accounts.v1 import (
    api_key_service_pb2,
    client_service_pb2,
    integration_service_pb2,
    permission_service_pb2,
    service_account_service_pb2,
    session_service_pb2,
    user_service_pb2,
)
from mrm.ai.v1 import (
    embedding_service_pb2,
    feedback_service_pb2,
    prompt_experiment_service_pb2,
    prompt_service_pb2,
    search_service_pb2,
    template_service_pb2,
)
from mrm.campaigns.v1 import (
    budget_service_pb2,
    campaign_import_service_pb2,
    campaign_service_pb2,
    sync_service_pb2,
)
from mrm.operations.v1 import (
    alert_service_pb2,
    change_service_pb2,
    email_service_pb2,
    erasure_service_pb2,
    job_service_pb2,
    retention_service_pb2,
    system_service_pb2,
    usage_service_pb2,
)
from mrm.planning.v1 import (
    benchmark_service_pb2,
    forecast_service_pb2,
    media_plan_service_pb2,
    project_service_pb2,
    project_team_service_pb2,
    report_service_pb2,
)
from mrm.statistics.v1 import (
    backfill_service_pb2,
    rollup_service_pb2,
    statistics_file_service_pb2,
    statistics_service_pb2,
)
from mrm_client import is_local
from server.accounts.api_key_service import ApiKeyService
from server.accounts.client_service import ClientService
from server.accounts.integration_service import IntegrationService
from server.accounts.passwords import Passwords
from server.accounts.permission_service import PermissionService
from server.accounts.service_account_service import ServiceAccountService
from server.accounts.session_service import SessionService
from server.accounts.user_service import UserService
from server.campaigns.cache import CampaignCache
from server.campaigns.campaign_service import CampaignService
from server.campaigns.import_service import CampaignImportService
from server.campaigns.links import LinkRpcs
from server.campaigns.mutations import MutationRpcs
from server.errors import StartError
from server.feedback.feedback_service import FeedbackService
from server.feedback.statistics import StatisticsRpcs as FeedbackStatisticsRpcs
from server.forecasting.forecast_service import ForecastRpcs
from server.forecasting.performance import PerformanceRpcs
from server.monitoring.monitor import Monitor, calls
from server.monitoring.usage_service import UsageService
from server.operations.alert_service import AlertService
from server.operations.change_service import ChangeService
from server.operations.email_service import EmailService
from server.operations.feed import ChangeFeed
from server.operations.job_service import JobRpcs
from server.operations.job_watch import JobFeed, JobWatchRpcs
from server.operations.job_work import JobWorkRpcs
from server.operations.system_service import SystemService
from server.pacing.budget_service import BudgetService
from server.planning.benchmark_service import BenchmarkService
from server.planning.lifecycle import LifecycleRpcs
from server.planning.media_plan_service import MediaPlanService
from server.planning.plan_lifecycle import PlanLifecycleRpcs
from server.planning.project_service import ProjectService
from server.planning.project_team_service import ProjectTeamService
from server.platforms.registry import Platforms
from server.prompts.experiment_service import PromptExperimentService
from server.prompts.labels import LabelRpcs
from server.prompts.prompt_service import PromptService
from server.reports.report_service import ReportService
from server.retention.erasure_service import ErasureService
from server.retention.retention_service import RetentionService
from server.rpc import logs
from server.rpc.auth import Authenticator
from server.rpc.fences import SessionFences
from server.rpc.health import HealthMonitor
from server.rpc.metering import CallMeters
from server.rpc.paging import Pager
from server.rpc.pipeline import Deserializer, Pipeline
from server.rpc.preference import ReadPreference
from server.rpc.reflection import CommentedReflection
from server.rpc.streams import StreamRegistry
from server.rpc.tokens import TokenCodec
from server.rpc.tracing import Tracer
from server.rpc.transport import ServerCertificates, TlsFiles, UnusableCertificate
from server.rpc.usage import UsageCounter
from server.search.embedder import Embedders
from server.search.embedding_service import EmbeddingService
from server.search.search_service import SearchService
from server.search.searching import Searcher
from server.search.template_service import TemplateService
from server.settings import GrpcSettings, Settings
from server.statistics.aggregator import Aggregator
from server.statistics.append import IngestRpcs
from server.statistics.backfill import BackfillService
from server.statistics.export import ExportRpcs
from server.statistics.files import ClientFiles, FileRpcs
from server.statistics.hub import WatchHub
from server.statistics.imports import ImportRpcs
from server.statistics.ingest import Ingestor, RawFloor, SaltBook
from server.statistics.quarantine import QuarantineRpcs
from server.statistics.query import QueryRpcs
from server.statistics.relay import CampaignDirectory, CampaignRelay
from server.statistics.rollup_service import RollupService
from server.statistics.snapshots import SnapshotRpcs, SnapshotWriter
from server.statistics.watch import WatchRpcs
from server.statistics.wire import append_request_deserializer, ingest_request_deserializer
from server.stores import check_schemas, key_ring, migration_status, object_storage, vectors
from server.sync.sync_service import SyncService
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.target import set_durability
from storage.errors import StoreUnavailable
from storage.milvus.connect import Milvus
from storage.postgres import token_keys
from storage.postgres.database import Database
from storage.postgres.replica import Replica
from storage.redis.campaign_cache import CampaignListStore
from storage.redis.limits import RateLimiter
from storage.redis.multiplex import MultiplexedRedis
from storage.redis.sessions import SCRIPTS, SessionStore
from storage.redis.signals import Signals

SERVICES = (
    session_service_pb2.DESCRIPTOR.services_by_name["SessionService"],
    api_key_service_pb2.DESCRIPTOR.services_by_name["ApiKeyService"],
    client_service_pb2.DESCRIPTOR.services_by_name["ClientService"],
    project_service_pb2.DESCRIPTOR.services_by_name["ProjectService"],
    campaign_service_pb2.DESCRIPTOR.services_by_name["CampaignService"],
    statistics_service_pb2.DESCRIPTOR.services_by_name["StatisticsService"],
    benchmark_service_pb2.DESCRIPTOR.services_by_name["BenchmarkService"],
    media_plan_service_pb2.DESCRIPTOR.services_by_name["MediaPlanService"],
    service_account_service_pb2.DESCRIPTOR.services_by_name["ServiceAccountService"],
    change_service_pb2.DESCRIPTOR.services_by_name["ChangeService"],
    statistics_file_service_pb2.DESCRIPTOR.services_by_name["StatisticsFileService"],
    rollup_service_pb2.DESCRIPTOR.services_by_name["RollupService"],
    permission_service_pb2.DESCRIPTOR.services_by_name["PermissionService"],
    project_team_service_pb2.DESCRIPTOR.services_by_name["ProjectTeamService"],
    integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"],
    user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
    alert_service_pb2.DESCRIPTOR.services_by_name["AlertService"],
    campaign_import_service_pb2.DESCRIPTOR.services_by_name["CampaignImportService"],
    backfill_service_pb2.DESCRIPTOR.services_by_name["BackfillService"],
    job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
    sync_service_pb2.DESCRIPTOR.services_by_name["SyncService"],
    email_service_pb2.DESCRIPTOR.services_by_name["EmailService"],
    erasure_service_pb2.DESCRIPTOR.services_by_name["ErasureService"],
    retention_service_pb2.DESCRIPTOR.services_by_name["RetentionService"],
    budget_service_pb2.DESCRIPTOR.services_by_name["BudgetService"],
    forecast_service_pb2.DESCRIPTOR.services_by_name["ForecastService"],
    report_service_pb2.DESCRIPTOR.services_by_name["ReportService"],
    prompt_service_pb2.DESCRIPTOR.services_by_name["PromptService"],
    embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"],
    prompt_experiment_service_pb2.DESCRIPTOR.services_by_name["PromptExperimentService"],
    feedback_service_pb2.DESCRIPTOR.services_by_name["FeedbackService"],
    template_service_pb2.DESCRIPTOR.services_by_name["TemplateService"],
    search_service_pb2.DESCRIPTOR.services_by_name["SearchService"],
    usage_service_pb2.DESCRIPTOR.services_by_name["UsageService"],
    system_service_pb2.DESCRIPTOR.services_by_name["SystemService"],
)

# Requests whose events are not to be decoded.
_DESERIALIZERS: dict[str, dict[str, Deserializer]] = {
    "StatisticsService": {
        "AppendEvents": append_request_deserializer,
        "IngestEvents": ingest_request_deserializer,
    }
}

# Each value is explained where it was learned, in the notes on grpc.aio in ARCHITECTURE.md.
CHANNEL_OPTIONS = (
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", 4 * 2**20),
)


_RESTART_SECONDS = 1.0
_WARM_SECONDS = 10.0
# New objects before a collection of the young, and how many of those come before one of the older generations.
_GC_THRESHOLDS = (20_000, 20, 100)


class Application:
    """One server process.

    Args:
        settings: Where the stores are, and everything else that can be set.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._server: grpc.aio.Server | None = None
        self._warming: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._log = logs.get("app")
        self._monitor: Monitor | None = None
        self.port = 0

    @property
    def monitoring_port(self) -> int:
        """Where this process answers Prometheus; 0 if it does not."""
        return self._monitor.port if self._monitor else 0

    async def start(self) -> None:
        """Opens the stores, checks their schemas and begins to serve.

        Raises:
            StartError: The address cannot be bound.
            storage.errors.StoreUnavailable: A store cannot be reached.
            storage.migrations.MigrationError: A schema is not what this code was written for.
        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        settings = self._settings
        await check_schemas(settings)
        kinds = _store_kinds(settings)
        tracer = await self._tracer()
        database = await self._opened(
            kinds.database.open(
                settings.postgres.dsn.get_secret_value(),
                min_size=settings.postgres.pool_min,
                max_size=settings.postgres.pool_max,
                statement_cache_size=settings.postgres.statement_cache_size,
            )
        )
        # A storm of calls must not keep the leases, on which all figures depend, waiting for a connection.
        background = await self._opened(
            Database.open(
                settings.postgres.dsn.get_secret_value(),
                min_size=1,
                max_size=4,
                statement_cache_size=settings.postgres.statement_cache_size,
                application_name="mrm-background",
            )
        )
        preference, pools = None, {"calls": database, "background": background}
        if settings.postgres.replica_dsn is not None:
            staleness = settings.postgres.replica_staleness
            reads = await self._opened(_replica(settings, kinds.database))
            pools["reads"] = reads
            replica = Replica(background, reads, staleness)
            database.read_from(replica)
            self._background(replica.run)
            preference = ReadPreference(staleness)
        redis = await self._opened(kinds.redis.open(settings.redis.durable_dsn.get_secret_value(), scripts=SCRIPTS))
        volatile = redis
        if settings.redis.volatile_dsn is not None:
            volatile = await self._opened(kinds.redis.open(settings.redis.volatile_dsn.get_secret_value()))
        clickhouse = kinds.clickhouse(
            settings.clickhouse.dsn.get_secret_value(), connections=settings.clickhouse.connections
        )
        self._stack.push_async_callback(clickhouse.close)
        await set_durability(clickhouse, settings.clickhouse.fsync_after_insert)

        sessions, limiter = SessionStore(redis, settings.auth.session_ttl), RateLimiter(redis)
        fences = SessionFences(
            background, settings.auth.session_ttl, settings.auth.session_poll, lambda: self._streams.wake()
        )
        authenticator = Authenticator(sessions, fences, limiter, database, settings.auth)
        self._streams = StreamRegistry(authenticator.alive, settings.watch.recheck)
        signals = await self._opened(_signals(settings))
        job_feed = JobFeed(background, settings.watch.tick, self._streams.draining)
        feed = ChangeFeed(background, signals, settings.watch, self._streams.draining)
        await fences.read()
        usage = UsageCounter(background)
        self._stack.push_async_callback(usage.close)
        meters = None if settings.monitoring.port is None else CallMeters()
        self._pipeline = Pipeline(
            authenticator,
            database,
            self._streams,
            feed.announce,
            preference,
            meters=meters,
            tracer=tracer,
            usage=usage,
        )
        configured = settings.auth.token_key
        key = configured.get_secret_value().encode() if configured else await token_keys.shared_key(database)
        codec = TokenCodec(key)
        pager = Pager(codec)
        keyring = key_ring(settings.secrets)
        passwords = Passwords(settings.auth.password_memory, settings.auth.password_passes)
        objects = object_storage(settings.objects)
        if objects is not None:
            self._stack.push_async_callback(objects.close)
        probes = {"postgresql": _postgres_probe(database), "redis": _redis_probe(redis), "clickhouse": clickhouse.ping}
        if objects is not None:
            probes["objects"] = objects.ping
        milvus, embedders = vectors(settings.milvus), Embedders(settings.embedding)
        self._stack.push_async_callback(embedders.close)
        if milvus is not None:
            self._stack.push_async_callback(milvus.close)
            probes["milvus"] = milvus.ping
            self._warming = partial(_warmed, milvus, embedders)
        self._health = HealthMonitor(
            probes,
            {service.full_name: _needs(service.name) for service in SERVICES},
            # Search answers UNAVAILABLE without it, and nobody should be sent elsewhere for the rest.
            spared=frozenset({"milvus"}),
        )

        server = self._server = grpc.aio.server(
            options=(*CHANNEL_OPTIONS, ("grpc.so_reuseport", int(settings.grpc.reuse_port)))
        )
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid7()}"
        directory = CampaignDirectory(database, clickhouse)
        ingestor = Ingestor(clickhouse, directory, RawFloor(database), SaltBook(database), settings.ingest)
        hub = WatchHub(background, clickhouse, signals, settings.watch)
        snapshots = SnapshotWriter(database, clickhouse, directory, signals, settings.rollup)
        files = ClientFiles(database, objects, settings.objects)
        platforms = await self._opened(_platforms(settings))
        servicers: dict[str, list[object]] = {
            "AlertService": [AlertService(database, pager)],
            "ApiKeyService": [ApiKeyService(database, pager)],
            "BackfillService": [BackfillService(database, clickhouse, snapshots)],
            "BenchmarkService": [BenchmarkService(database, pager)],
            "CampaignImportService": [CampaignImportService(database, pager, feed.announce)],
            "CampaignService": [
                CampaignService(database, pager, CampaignCache(database, CampaignListStore(volatile))),
                MutationRpcs(),
                LinkRpcs(),
            ],
            "BudgetService": [BudgetService(database, clickhouse, settings.alerts)],
            "ChangeService": [ChangeService(database, feed, codec, settings.watch)],
            "EmbeddingService": [EmbeddingService(database, milvus, embedders)],
            "ClientService": [
                ClientService(database, pager, codec, settings.clients.purge_delay, settings.retention.erasure_deadline)
            ],
            "ErasureService": [ErasureService(database, pager, settings.retention.erasure_deadline)],
            "RetentionService": [RetentionService(database, clickhouse, pager, settings)],
            "EmailService": [EmailService(database, limiter, codec, pager, settings.auth.limit_login_address)],
            "FeedbackService": [FeedbackService(database, pager), FeedbackStatisticsRpcs(database)],
            "ForecastService": [ForecastRpcs(database, clickhouse), PerformanceRpcs(database, clickhouse)],
            "IntegrationService": [
                IntegrationService(database, pager, keyring, platforms, settings.alerts, feed.announce)
            ],
            "JobService": [
                JobRpcs(database, pager),
                JobWatchRpcs(database, job_feed, settings.watch),
                JobWorkRpcs(database, settings.jobs),
            ],
            "MediaPlanService": [MediaPlanService(database, pager), PlanLifecycleRpcs(database, pager)],
            "PermissionService": [PermissionService(database, pager)],
            "ProjectService": [ProjectService(database, pager), LifecycleRpcs()],
            "ProjectTeamService": [ProjectTeamService(database, pager)],
            "PromptExperimentService": [PromptExperimentService(database, pager, settings.prompts)],
            "PromptService": [
                PromptService(database, pager, settings.prompts),
                LabelRpcs(database, pager, settings.prompts),
            ],
            "ReportService": [ReportService(database, pager, files, settings.watch)],
            "RollupService": [RollupService(database, codec)],
            "SearchService": [SearchService(database, pager, Searcher(database, milvus, embedders))],
            "ServiceAccountService": [ServiceAccountService(database, pager)],
            "SessionService": [SessionService(database, sessions, fences, limiter, passwords, pager, settings.auth)],
            "StatisticsFileService": [
                FileRpcs(files, database, clickhouse, codec, settings.watch),
                ImportRpcs(files, ingestor, directory, snapshots, codec, settings.watch),
            ],
            "StatisticsService": [
                IngestRpcs(database, ingestor, settings.ingest),
                SnapshotRpcs(snapshots),
                QuarantineRpcs(database, clickhouse, codec),
                ExportRpcs(database, clickhouse, codec, settings.watch),
                QueryRpcs(database, clickhouse, settings.query),
                WatchRpcs(database, hub, codec, settings.watch),
            ],
            "SyncService": [SyncService(database, pager)],
            "SystemService": [SystemService(lambda: migration_status(settings))],
            "TemplateService": [TemplateService(database, pager, embedders, feed.announce)],
            "UsageService": [UsageService(database, clickhouse)],
            "UserService": [
                UserService(
                    database, sessions, limiter, passwords, pager, settings.auth, settings.retention.erasure_deadline
                )
            ],
        }
        for service in SERVICES:
            self._pipeline.register(server, service, servicers[service.name], _DESERIALIZERS.get(service.name))
        relay = CampaignRelay(background, clickhouse, holder=holder, lease_ttl=settings.metrics.lease_ttl)
        aggregator = Aggregator(
            background, clickhouse, signals, settings.metrics, holder=holder, rollup=settings.rollup
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, server)
        if settings.grpc.reflection:
            names = [service.full_name for service in SERVICES]
            health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
            servicer = CommentedReflection([*names, health_name, reflection.SERVICE_NAME])
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
        self.port = _bind(server, settings.grpc)
        await self._health.check()
        self._background(self._health.run)
        self._background(self._streams.run)
        for task in (relay, aggregator, hub, feed, job_feed, fences, usage):
            self._background(task.run)
        if meters is not None:
            self._watch_over(meters, pools, ingestor, hub)
        await server.start()
        self._log.info("serving", host=settings.grpc.host, port=self.port)

    async def run_until_signal(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains. The process is expected to do nothing else."""
        _collect_garbage_less()
        if self._warming is not None:
            self._stack.push_async_callback(_cancelled, asyncio.create_task(self._warming()))
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await stop.wait()
        await self.stop()

    async def stop(self) -> None:
        """Drains: health says so, streams end with what a caller needs to resume, running calls finish.

        Harmless when it is done already.
        """
        server, self._server = self._server, None
        if server is None:
            return
        self._log.info("draining")
        await self._health.drain()
        self._streams.draining.set()
        # Calls already on their way would be cut off by the end of the connection.
        await asyncio.sleep(self._settings.grpc.drain_delay)
        await server.stop(self._settings.grpc.drain_seconds)
        # grpc's stop does not wait for handlers to leave their finally blocks.
        await self._pipeline.wait_idle(self._settings.grpc.drain_seconds)
        await self._stack.aclose()
        self._log.info("stopped")

    def _watch_over(self, meters: CallMeters, pools: Mapping[str, Database], ingestor: Ingestor, hub: WatchHub) -> None:
        """Begins to answer Prometheus."""
        monitor = Monitor(self._settings.monitoring, pools["background"])
        for name, database in pools.items():
            monitor.pool(name, database)
        monitor.add(lambda: calls(meters))
        monitor.stores(lambda: self._health.answering)
        queued = "Bytes of batches that wait or are being stored"
        monitor.gauge("mrm_ingest_queued_bytes", queued, lambda: ingestor.queued_bytes)
        monitor.gauge("mrm_watchers", "Callers who watch figures on this process", lambda: hub.watchers)
        monitor.gauge("mrm_watch_lag_seconds", "Time since what they watch was last read", lambda: hub.lag)
        monitor.start()
        self._monitor = monitor
        self._stack.push_async_callback(monitor.close)
        self._background(monitor.run)

    async def _tracer(self) -> Tracer | None:
        """Whom to tell of calls, if a collector is named."""
        if self._settings.tracing.endpoint is None:
            return None
        from server.monitoring.tracing import OtlpTracer

        tracer = OtlpTracer(self._settings.tracing, version("mrm-ai-platform"))
        self._stack.push_async_callback(asyncio.to_thread, tracer.close)
        return tracer

    async def _opened(self, opening: Coroutine[Any, Any, Any]) -> Any:
        """Awaits a store and has it closed at the end."""
        store = await opening
        self._stack.push_async_callback(store.close)
        return store

    def _background(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a task until the end, again if it dies; it is stopped before the stores that it uses."""

        async def keep() -> None:
            while True:
                try:
                    await work()
                except Exception as error:
                    self._log.error("background_task_died", exc_info=error)
                await asyncio.sleep(_RESTART_SECONDS)

        self._stack.push_async_callback(_cancelled, asyncio.create_task(keep()))


def _needs(service: str) -> frozenset[str]:
    entities = frozenset({"postgresql", "redis"})
    match service:
        case "StatisticsService" | "BackfillService" | "BudgetService" | "ForecastService" | "UsageService":
            return entities | {"clickhouse"}
        case "SearchService":
            return entities | {"milvus"}
        case "StatisticsFileService":
            return entities | {"clickhouse", "objects"}
        case _:
            return entities


class _StoreKinds(NamedTuple):
    """What opens the stores."""

    database: type[Database] = Database
    redis: type[MultiplexedRedis] = MultiplexedRedis
    clickhouse: type[ClickHouse] = ClickHouse


def _store_kinds(settings: Settings) -> _StoreKinds:
    """Stores that tell a collector what they are asked, if one is named; else those that spend nothing on it."""
    if settings.tracing.endpoint is None:
        return _StoreKinds()
    try:
        from server.monitoring import tracing
    except ImportError:
        raise StartError(
            "MRM_TRACING__ENDPOINT is set and OpenTelemetry is not installed: pip install 'mrm-ai-platform[tracing]'"
        ) from None
    return _StoreKinds(tracing.TracedDatabase, tracing.TracedRedis, tracing.TracedClickHouse)


async def _signals(settings: Settings) -> Signals:
    return Signals(settings.redis.durable_dsn.get_secret_value())


async def _replica(settings: Settings, kind: type[Database]) -> Database:
    dsn = settings.postgres.replica_dsn
    assert dsn is not None
    # It need not be there yet.
    return await kind.open(
        dsn.get_secret_value(),
        min_size=0,
        max_size=settings.postgres.pool_max,
        statement_cache_size=settings.postgres.statement_cache_size,
        application_name="mrm-reads",
    )


async def _platforms(settings: Settings) -> Platforms:
    return Platforms.open(settings.platforms)


def _bind(server: grpc.aio.Server, settings: GrpcSettings) -> int:
    address = f"{settings.host}:{settings.port}"
    credentials = _credentials(settings)
    try:
        return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        raise StartError(f"cannot listen on {address}: is another server running there?") from None


def _credentials(settings: GrpcSettings) -> grpc.ServerCredentials | None:
    """What the port encrypts with; None for plaintext, where that is allowed."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate and key:
        try:
            return ServerCertificates(TlsFiles(certificate, key, settings.tls_client_ca)).credentials()
        except UnusableCertificate as error:
            raise StartError(str(error)) from None
    if certificate or key or settings.tls_client_ca:
        raise StartError("TLS needs both MRM_GRPC__TLS_CERTIFICATE and MRM_GRPC__TLS_KEY")
    if not settings.allow_plaintext and not is_local(f"{settings.host}:{settings.port}"):
        raise StartError(
            f"refusing to serve in the clear on {settings.host}, where other machines can listen in: set "
            "MRM_GRPC__TLS_CERTIFICATE and MRM_GRPC__TLS_KEY, or MRM_GRPC__ALLOW_PLAINTEXT=true if something in front "
            "encrypts"
        )
    return None


def _postgres_probe(database: Database) -> Callable[[], Awaitable[None]]:
    async def probe() -> None:
        await database.fetchval("SELECT 1")

    return probe


def _redis_probe(redis: MultiplexedRedis) -> Callable[[], Awaitable[None]]:
    async def probe() -> None:
        await redis.execute("PING")

    return probe


def _collect_garbage_less() -> None:
    """Keeps full collections, which hold all calls for 0.2 s under 2 000 watchers, from coming every three seconds."""
    gc.collect()
    # Modules, descriptors and stores stay until the end: nothing of them need be looked at again.
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


async def _warmed(milvus: Milvus, embedders: Embedders) -> None:
    """Loads the model once Milvus is there. That takes a core for a second, which a start needs itself."""
    while True:
        await asyncio.sleep(_WARM_SECONDS)
        with suppress(StoreUnavailable):
            await milvus.ping()
            return await embedders.warm()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
