"""The whole service on real engines, started once per run, and what tests need to act on it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
from argon2 import PasswordHasher
from argon2.profiles import CHEAPEST
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from pydantic import SecretStr

from mrm.accounts.v1 import (
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    client_pb2,
    client_service_pb2,
    client_service_pb2_grpc,
    integration_service_pb2_grpc,
    permission_service_pb2_grpc,
    service_account_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    user_service_pb2_grpc,
)
from mrm.ai.v1 import (
    embedding_service_pb2_grpc,
    feedback_service_pb2_grpc,
    prompt_experiment_service_pb2_grpc,
    prompt_service_pb2_grpc,
    search_service_pb2_grpc,
    template_service_pb2_grpc,
)
from mrm.campaigns.v1 import (
    budget_service_pb2_grpc,
    campaign_import_service_pb2_grpc,
    campaign_pb2,
    campaign_service_pb2,
    campaign_service_pb2_grpc,
    sync_service_pb2_grpc,
)
from mrm.common.v1 import options_pb2, platform_pb2
from mrm.operations.v1 import (
    alert_service_pb2_grpc,
    change_service_pb2_grpc,
    email_service_pb2_grpc,
    erasure_service_pb2_grpc,
    job_service_pb2_grpc,
    retention_service_pb2_grpc,
    system_service_pb2_grpc,
    usage_service_pb2_grpc,
)
from mrm.planning.v1 import (
    benchmark_service_pb2_grpc,
    forecast_service_pb2_grpc,
    media_plan_service_pb2_grpc,
    project_member_pb2,
    project_pb2,
    project_service_pb2,
    project_service_pb2_grpc,
    project_team_service_pb2,
    project_team_service_pb2_grpc,
    report_service_pb2_grpc,
)
from mrm.statistics.v1 import (
    backfill_service_pb2_grpc,
    event_pb2,
    rollup_service_pb2_grpc,
    statistics_file_service_pb2_grpc,
    statistics_service_pb2_grpc,
)
from server.app import Application
from server.embedded import Connections, EmbeddedEngines
from server.jobs.handling import Stores
from server.rpc import logs
from server.sandbox.sandbox import Sandbox
from server.sandbox.serving import serving
from server.sealing import new_entry
from server.settings import Settings
from server.stores import migrate, opened
from storage.postgres import clients, users
from storage.postgres.database import Database
from tests.s3 import S3Server

# Files with few tests that take long. They begin first, or one process would still be at them when the others are done.
LONG_FILES = (
    "tests/test_bars.py",
    "tests/test_tour.py",
    "tests/cli/test_commands.py",
    "tests/statistics/test_files.py",
    "tests/operations/test_jobs.py",
    "tests/test_kill.py",
    "tests/rpc/test_transport.py",
    "tests/cli/test_workers.py",
    "tests/cli/test_jobs.py",
    "tests/cli/test_imports.py",
    "tests/backups/test_drill.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what takes long at the beginning."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


# One stall of a busy machine is enough for Hypothesis to call an input slow to make; no test here is about time.
hypothesis_settings.register_profile("mrm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("mrm")

PASSWORD = "correct horse battery staple"
KEYRING = new_entry("of-tests")
PASSWORD_HASH = PasswordHasher.from_parameters(CHEAPEST).hash(PASSWORD)


def settings_for(connections: Connections) -> Settings:
    """Settings of a server on these engines, on any free port."""
    settings = Settings()
    settings.grpc.port = 0
    settings.postgres.dsn = SecretStr(connections.postgres_dsn)
    settings.clickhouse.dsn = SecretStr(connections.clickhouse_dsn)
    settings.redis.durable_dsn = SecretStr(connections.redis_dsn)
    settings.milvus.dsn = SecretStr(connections.milvus_dsn)
    settings.logging.level = "ERROR"
    settings.grpc.drain_delay = 0.0
    settings.secrets.keyring = SecretStr(KEYRING)
    # Full strength is tested on its own; here it would only cost seconds.
    settings.auth.password_memory, settings.auth.password_passes = 64, 1
    # All tests sign in from one address.
    settings.auth.limit_login_address = 1_000_000
    return settings


async def unsynced(connections: Connections) -> None:
    """Spares PostgreSQL the waiting for the disk: what tests kill are processes, not the machine."""
    connection = await asyncpg.connect(connections.postgres_dsn)
    try:
        await connection.execute("ALTER SYSTEM SET fsync = off")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


@dataclass
class Caller:
    """Someone who calls: stubs of every service, and the metadata that says who it is."""

    channel: grpc.aio.Channel
    token: str = ""
    user_id: UUID | None = None
    sessions: session_service_pb2_grpc.SessionServiceAsyncStub = field(init=False)
    users: user_service_pb2_grpc.UserServiceAsyncStub = field(init=False)
    api_keys: api_key_service_pb2_grpc.ApiKeyServiceAsyncStub = field(init=False)
    service_accounts: service_account_service_pb2_grpc.ServiceAccountServiceAsyncStub = field(init=False)
    clients: client_service_pb2_grpc.ClientServiceAsyncStub = field(init=False)
    integrations: integration_service_pb2_grpc.IntegrationServiceAsyncStub = field(init=False)
    permissions: permission_service_pb2_grpc.PermissionServiceAsyncStub = field(init=False)
    projects: project_service_pb2_grpc.ProjectServiceAsyncStub = field(init=False)
    benchmarks: benchmark_service_pb2_grpc.BenchmarkServiceAsyncStub = field(init=False)
    teams: project_team_service_pb2_grpc.ProjectTeamServiceAsyncStub = field(init=False)
    plans: media_plan_service_pb2_grpc.MediaPlanServiceAsyncStub = field(init=False)
    forecasts: forecast_service_pb2_grpc.ForecastServiceAsyncStub = field(init=False)
    campaigns: campaign_service_pb2_grpc.CampaignServiceAsyncStub = field(init=False)
    statistics: statistics_service_pb2_grpc.StatisticsServiceAsyncStub = field(init=False)
    changes: change_service_pb2_grpc.ChangeServiceAsyncStub = field(init=False)
    files: statistics_file_service_pb2_grpc.StatisticsFileServiceAsyncStub = field(init=False)
    rollups: rollup_service_pb2_grpc.RollupServiceAsyncStub = field(init=False)
    alerts: alert_service_pb2_grpc.AlertServiceAsyncStub = field(init=False)
    imports: campaign_import_service_pb2_grpc.CampaignImportServiceAsyncStub = field(init=False)
    backfills: backfill_service_pb2_grpc.BackfillServiceAsyncStub = field(init=False)
    jobs: job_service_pb2_grpc.JobServiceAsyncStub = field(init=False)
    syncs: sync_service_pb2_grpc.SyncServiceAsyncStub = field(init=False)
    retention: retention_service_pb2_grpc.RetentionServiceAsyncStub = field(init=False)
    erasures: erasure_service_pb2_grpc.ErasureServiceAsyncStub = field(init=False)
    emails: email_service_pb2_grpc.EmailServiceAsyncStub = field(init=False)
    budgets: budget_service_pb2_grpc.BudgetServiceAsyncStub = field(init=False)
    reports: report_service_pb2_grpc.ReportServiceAsyncStub = field(init=False)
    embeddings: embedding_service_pb2_grpc.EmbeddingServiceAsyncStub = field(init=False)
    prompts: prompt_service_pb2_grpc.PromptServiceAsyncStub = field(init=False)
    experiments: prompt_experiment_service_pb2_grpc.PromptExperimentServiceAsyncStub = field(init=False)
    feedback: feedback_service_pb2_grpc.FeedbackServiceAsyncStub = field(init=False)
    templates: template_service_pb2_grpc.TemplateServiceAsyncStub = field(init=False)
    search: search_service_pb2_grpc.SearchServiceAsyncStub = field(init=False)
    usage: usage_service_pb2_grpc.UsageServiceAsyncStub = field(init=False)
    system: system_service_pb2_grpc.SystemServiceAsyncStub = field(init=False)

    def __post_init__(self) -> None:
        channel = self.channel
        self.sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        self.users = user_service_pb2_grpc.UserServiceStub(channel)
        self.api_keys = api_key_service_pb2_grpc.ApiKeyServiceStub(channel)
        self.service_accounts = service_account_service_pb2_grpc.ServiceAccountServiceStub(channel)
        self.clients = client_service_pb2_grpc.ClientServiceStub(channel)
        self.integrations = integration_service_pb2_grpc.IntegrationServiceStub(channel)
        self.permissions = permission_service_pb2_grpc.PermissionServiceStub(channel)
        self.projects = project_service_pb2_grpc.ProjectServiceStub(channel)
        self.benchmarks = benchmark_service_pb2_grpc.BenchmarkServiceStub(channel)
        self.teams = project_team_service_pb2_grpc.ProjectTeamServiceStub(channel)
        self.plans = media_plan_service_pb2_grpc.MediaPlanServiceStub(channel)
        self.forecasts = forecast_service_pb2_grpc.ForecastServiceStub(channel)
        self.campaigns = campaign_service_pb2_grpc.CampaignServiceStub(channel)
        self.statistics = statistics_service_pb2_grpc.StatisticsServiceStub(channel)
        self.changes = change_service_pb2_grpc.ChangeServiceStub(channel)
        self.files = statistics_file_service_pb2_grpc.StatisticsFileServiceStub(channel)
        self.rollups = rollup_service_pb2_grpc.RollupServiceStub(channel)
        self.alerts = alert_service_pb2_grpc.AlertServiceStub(channel)
        self.imports = campaign_import_service_pb2_grpc.CampaignImportServiceStub(channel)
        self.backfills = backfill_service_pb2_grpc.BackfillServiceStub(channel)
        self.jobs = job_service_pb2_grpc.JobServiceStub(channel)
        self.syncs = sync_service_pb2_grpc.SyncServiceStub(channel)
        self.retention = retention_service_pb2_grpc.RetentionServiceStub(channel)
        self.erasures = erasure_service_pb2_grpc.ErasureServiceStub(channel)
        self.emails = email_service_pb2_grpc.EmailServiceStub(channel)
        self.budgets = budget_service_pb2_grpc.BudgetServiceStub(channel)
        self.reports = report_service_pb2_grpc.ReportServiceStub(channel)
        self.embeddings = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)
        self.prompts = prompt_service_pb2_grpc.PromptServiceStub(channel)
        self.experiments = prompt_experiment_service_pb2_grpc.PromptExperimentServiceStub(channel)
        self.feedback = feedback_service_pb2_grpc.FeedbackServiceStub(channel)
        self.templates = template_service_pb2_grpc.TemplateServiceStub(channel)
        self.search = search_service_pb2_grpc.SearchServiceStub(channel)
        self.usage = usage_service_pb2_grpc.UsageServiceStub(channel)
        self.system = system_service_pb2_grpc.SystemServiceStub(channel)

    @property
    def auth(self) -> tuple[tuple[str, str], ...]:
        """Metadata to send with each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


@dataclass
class World:
    """A running server and ways to fill it. Tests keep apart by having clients of their own."""

    engines: EmbeddedEngines
    connections: Connections
    settings: Settings
    application: Application
    channel: grpc.aio.Channel
    database: Database
    platforms: Sandbox
    admin: Caller
    clickhouse_backups: Path
    _names: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def target(self) -> str:
        """Address of the server."""
        return f"127.0.0.1:{self.application.port}"

    def caller(self, token: str = "", user_id: UUID | None = None) -> Caller:
        """Someone with a session token or API key, or nobody."""
        return Caller(self.channel, token, user_id)

    async def user(self, role: str, *client_ids: str) -> Caller:
        """A signed-in user with a role, a member of these clients."""
        row = await users.create(
            self.database, email=f"{role}-{uuid4().hex}@example.com", password_hash=PASSWORD_HASH, role=role
        )
        for client_id in client_ids:
            await clients.add_membership(self.database, user_id=row.id, client_id=UUID(client_id))
        return await self.sign_in(row.email)

    async def sign_in(self, email: str) -> Caller:
        """A session of an existing user."""
        reply = await self.caller().sessions.Login(session_service_pb2.LoginRequest(email=email, password=PASSWORD))
        return self.caller(reply.session_token, UUID(reply.user.user_id))

    async def client(self, **fields: object) -> client_pb2.Client:
        """A client of its own."""
        values = {
            "display_name": f"Client {next(self._names)}",
            "type": client_pb2.CLIENT_TYPE_DIRECT_ADVERTISER,
            **fields,
        }
        request = client_service_pb2.CreateClientRequest(client=client_pb2.Client(**values))  # type: ignore[arg-type]
        return (await self.admin.clients.CreateClient(request, metadata=self.admin.auth)).client

    async def project(self, client_id: str, **fields: object) -> project_pb2.Project:
        """A project of a client."""
        values = {"client_id": client_id, "display_name": f"Project {next(self._names)}", **fields}
        request = project_service_pb2.CreateProjectRequest(project=project_pb2.Project(**values))  # type: ignore[arg-type]
        return (await self.admin.projects.CreateProject(request, metadata=self.admin.auth)).project

    async def campaign(self, project_id: str, **fields: object) -> campaign_pb2.Campaign:
        """A campaign of a project."""
        values = {
            "project_id": project_id,
            "platform": platform_pb2.PLATFORM_OTHER,
            "display_name": f"Campaign {next(self._names)}",
            **fields,
        }
        request = campaign_service_pb2.CreateCampaignRequest(campaign=campaign_pb2.Campaign(**values))  # type: ignore[arg-type]
        return (await self.admin.campaigns.CreateCampaign(request, metadata=self.admin.auth)).campaign

    async def member(self, project_id: str, user_id: UUID, role: int, raci: int) -> project_member_pb2.ProjectMember:
        """A place in a project's team."""
        member = project_member_pb2.ProjectMember(
            project_id=project_id,
            user_id=str(user_id),
            role=role,  # type: ignore[arg-type]
            raci=raci,  # type: ignore[arg-type]
        )
        request = project_team_service_pb2.AddProjectMemberRequest(project_member=member)
        return (await self.admin.teams.AddProjectMember(request, metadata=self.admin.auth)).project_member

    async def tenant(self, campaigns: int = 1, **client_fields: object) -> tuple[str, list[str]]:
        """A client with a project and campaigns: the client's id and the campaigns' ids."""
        client = await self.client(**client_fields)
        project = await self.project(client.client_id)
        made = [await self.campaign(project.project_id) for _ in range(campaigns)]
        return client.client_id, [campaign.campaign_id for campaign in made]

    async def key(self, client_ids: list[str], *permissions: int) -> Caller:
        """A program with an API key."""
        request = api_key_service_pb2.CreateApiKeyRequest(
            display_name="test",
            permissions=list(permissions) or [options_pb2.PERMISSION_STATISTICS_INGEST],  # type: ignore[list-item]
            client_ids=client_ids,
            all_clients=not client_ids,
        )
        reply = await self.admin.api_keys.CreateApiKey(request, metadata=self.admin.auth)
        return self.caller(reply.secret)


@pytest.fixture(scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The running service."""
    logs.configure("ERROR")
    async with AsyncExitStack() as stack:
        # Milvus takes longer to start than all others, and few tests need it: these begin it themselves.
        folder = tmp_path_factory.mktemp("world") / "data"
        engines = EmbeddedEngines(folder, behind=False)
        stack.push_async_callback(engines.stop)
        connections = await engines.start()
        await unsynced(connections)
        settings = settings_for(connections)
        settings.objects.url = (tmp_path_factory.mktemp("objects") / "files").as_uri()
        platforms = await stack.enter_async_context(serving(Sandbox()))
        settings.platforms = platforms.settings()
        await migrate(settings)
        application = Application(settings)
        stack.push_async_callback(application.stop)
        await application.start()
        database = await Database.open(connections.postgres_dsn, min_size=1, max_size=4)
        stack.push_async_callback(database.close)
        await users.create(database, email="admin@example.com", password_hash=PASSWORD_HASH, role="admin")
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{application.port}"))
        admin, backups = Caller(channel), folder / "clickhouse" / "backups"
        world = World(engines, connections, settings, application, channel, database, platforms, admin, backups)
        world.admin = await world.sign_in("admin@example.com")
        yield world


@pytest.fixture(scope="session")
async def stores(world: World) -> AsyncIterator[Stores]:
    """What a handler of jobs is given, on the engines of the service."""
    async with opened(world.settings, "mrm-tests") as stores:
        yield stores


@pytest.fixture(scope="session")
async def s3(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[S3Server]:
    """An S3 server."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    await server.start()
    yield server
    await server.stop()


@dataclass(frozen=True)
class Failure:
    """An error as a caller sees it."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str]
    fields: dict[str, str]
    retry_seconds: float | None


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """Unpacks the google.rpc details of an error."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    found_retry = False
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    for detail in status.details if status else ():
        detail.Unpack(info)
        detail.Unpack(bad)
        found_retry |= detail.Unpack(retry)
    return Failure(
        error.code(),
        info.reason,
        error.details() or "",
        dict(info.metadata),
        {violation.field: violation.reason for violation in bad.field_violations},
        retry.retry_delay.ToTimedelta().total_seconds() if found_retry else None,
    )


Failing = Callable[[Awaitable[object]], Awaitable[Failure]]


@pytest.fixture(scope="session")
def failing() -> Failing:
    """Awaits a call that must fail and returns what the caller learns."""

    async def check(call: Awaitable[object]) -> Failure:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return failure_of(caught.value)

    return check


def impression(campaign_id: str, moment: datetime | None = None, **fields: object) -> event_pb2.Event:
    """An event, now unless a time is given."""
    event = event_pb2.Event(
        event_id=str(uuid4()), campaign_id=campaign_id, event_type=event_pb2.EVENT_TYPE_IMPRESSION, **fields
    )  # type: ignore[arg-type]
    event.event_time.FromDatetime(moment or datetime.now(UTC))
    return event
