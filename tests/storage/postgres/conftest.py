"""A real PostgreSQL that tests may kill, and a migrated database of its own for each test."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from server.embedded.directory import DataDirectory
from storage.postgres import campaigns, clients, project_team, projects, users
from storage.postgres.database import Database, Executor
from storage.postgres.ids import new_id
from storage.postgres.migrating import postgres_runner
from storage.scope import Scope
from tests.postgres_server import Server


@pytest.fixture(scope="session")
def data_directory() -> Iterator[DataDirectory]:
    # Not below pytest's own directory, which only root may enter.
    path = Path(tempfile.mkdtemp(prefix="mrm-pg-"))
    path.chmod(0o711)
    directory = DataDirectory(path)
    directory.open()
    yield directory
    directory.close()
    shutil.rmtree(path)


@pytest.fixture(scope="session")
async def server(data_directory: DataDirectory) -> AsyncIterator[Server]:
    server = Server(data_directory)
    await server.start()
    yield server
    await server.kill()


MakeDatabase = Callable[..., Awaitable[str]]


@pytest.fixture(scope="session")
async def make_database(server: Server) -> MakeDatabase:
    """Makes a database, empty or from a template, and returns its DSN."""

    async def make(template: str = "template0") -> str:
        name = f"t{new_id().hex}"
        connection = await asyncpg.connect(server.dsn("postgres"))
        try:
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        finally:
            await connection.close()
        return server.dsn(name)

    return make


@pytest.fixture(scope="session")
async def migrated(make_database: MakeDatabase) -> str:
    """Name of a migrated database, to copy."""
    dsn = await make_database()
    await postgres_runner(dsn).migrate()
    return dsn.rsplit("/", 1)[1]


@pytest.fixture
async def dsn(make_database: MakeDatabase, migrated: str) -> str:
    """A migrated database of the test's own."""
    return await make_database(migrated)


@pytest.fixture
async def db(dsn: str) -> AsyncIterator[Database]:
    database = await Database.open(dsn, min_size=1)
    yield database
    await database.close()


@dataclass
class World:
    """An agency with an advertiser under it, and a client that has nothing to do with them.

    The member belongs to the agency, the teammate only to the advertiser's project, the stranger to the other client.
    """

    agency: clients.Client
    advertiser: clients.Client
    other: clients.Client
    project: projects.Project
    campaign: campaigns.Campaign
    member: users.User
    teammate: users.User
    stranger: users.User

    def scopes(self) -> dict[str, Scope]:
        return {
            "everything": Scope(everything=True),
            "member of the ancestor": Scope(user_id=self.member.id),
            "teammate": Scope(user_id=self.teammate.id),
            "stranger": Scope(user_id=self.stranger.id),
            "key of the client": Scope(client_ids=(self.advertiser.id,)),
            "key of the ancestor": Scope(client_ids=(self.agency.id,)),
            "key of the other client": Scope(client_ids=(self.other.id,)),
            "nobody": Scope(),
            "unknown user": Scope(user_id=new_id()),
        }


async def _user(db: Executor, name: str) -> users.User:
    return await users.create(db, email=f"{name}@example.com", password_hash="!", role="specialist")


@pytest.fixture
async def world(db: Executor) -> World:
    agency = await clients.create(db, name="Agency", type="agency")
    advertiser = await clients.create(db, name="Advertiser", type="direct_advertiser", parent_client_id=agency.id)
    other = await clients.create(db, name="Other", type="direct_advertiser")
    member, teammate, stranger = [await _user(db, name) for name in ("member", "teammate", "stranger")]
    project = await projects.create(db, client_id=advertiser.id, name="Project", created_by=member.id)
    campaign = await campaigns.create(
        db, client_id=advertiser.id, project_id=project.id, platform="vk_ads", name="Campaign", currency="RUB"
    )
    await clients.add_membership(db, user_id=member.id, client_id=agency.id)
    await clients.add_membership(db, user_id=stranger.id, client_id=other.id)
    await project_team.add(db, project_id=project.id, user_id=teammate.id, role="specialist")
    return World(agency, advertiser, other, project, campaign, member, teammate, stranger)


Insert = Callable[..., Awaitable[UUID]]


@pytest.fixture
def insert(db: Executor, world: World) -> Insert:
    """Inserts a row of any table straight into it: sensible values, replaced by what the test says."""
    defaults: dict[str, dict[str, object]] = {
        "users": {"email": "new@example.com", "password_hash": "!", "role": "pm"},
        "clients": {"name": "New", "type": "agency"},
        "client_integrations": {"client_id": world.advertiser.id, "platform": "vk_ads", "credentials": {}},
        "projects": {"client_id": world.advertiser.id, "name": "New"},
        "project_team": {"project_id": world.project.id, "user_id": world.member.id, "role": "pm"},
        "plan_lineages": {"project_id": world.project.id, "name": "Plan"},
        "media_plans": {"project_id": world.project.id, "name": "Plan", "channels": []},
        "campaigns": {
            "client_id": world.advertiser.id,
            "project_id": world.project.id,
            "platform": "vk_ads",
            "name": "New",
            "currency": "RUB",
        },
        "campaign_statistics": {
            "campaign_id": world.campaign.id,
            "date": "2026-01-01",
            "currency": "RUB",
            "time_zone": "Europe/Moscow",
            "source_version": 1,
        },
        "reports": {
            "project_id": world.project.id,
            "type": "performance",
            "period_start": "2026-01-01",
            "period_end": "2026-01-31",
        },
        "prompt_lineages": {"name": "brief", "category": "brief"},
        "ai_prompts": {"name": "brief", "category": "brief", "prompt_template": "..."},
        "ai_feedback": {"client_id": world.advertiser.id, "user_id": world.member.id, "user_action": "edited"},
        "jobs": {"type": "send_email", "queue": "email", "payload": {}},
    }

    async def insert(table: str, **values: object) -> UUID:
        if table == "ai_prompts" and "lineage_id" not in values:
            values = {"name": f"brief {new_id()}", **values}
            values["lineage_id"] = await insert("prompt_lineages", name=values["name"])
        row = {"id": new_id(), **defaults[table], **values}
        if table == "ai_feedback":
            row = {"key": str(row["id"]), **row}
        # The database casts texts, so that a test may say any value in words.
        columns = ", ".join(row)
        typed = f"jsonb_populate_record(NULL::{table}, $1)"
        sql = f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {typed} RETURNING id"
        row_id: UUID = await db.fetchval(sql, row)
        return row_id

    return insert
