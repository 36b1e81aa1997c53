"""Who sees what: every reading function, for every kind of caller. And how fast the hottest one finds it."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import orjson
import pytest

from storage.errors import Invalid, StaleRevision
from storage.postgres import campaigns, clients, project_team, projects, streams
from storage.postgres.database import Database
from storage.postgres.ids import new_id
from storage.scope import Scope

SEES_CLIENT = {"everything", "member of the ancestor", "key of the client", "key of the ancestor"}
SEES_PROJECT = SEES_CLIENT | {"teammate"}
SEES_AGENCY = {"everything", "member of the ancestor", "key of the ancestor"}
SEES_OTHER = {"everything", "stranger", "key of the other client"}

Read = Callable[[Database, Scope, Any], Awaitable[object]]

READS: dict[str, tuple[set[str], Read]] = {
    "campaigns.get": (SEES_PROJECT, lambda db, s, w: campaigns.get(db, s, w.campaign.id)),
    "campaigns.get_for_update": (SEES_PROJECT, lambda db, s, w: campaigns.get_for_update(db, s, w.campaign.id)),
    "campaigns.list_page": (SEES_PROJECT, lambda db, s, w: campaigns.list_page(db, s, limit=10)),
    "campaigns.update": (SEES_PROJECT, lambda db, s, w: campaigns.update(db, s, w.campaign)),
    "campaigns.for_dimension ids": (
        SEES_PROJECT,
        lambda db, s, w: campaigns.for_dimension(db, s, campaign_ids=[w.campaign.id]),
    ),
    "campaigns.for_dimension client": (
        SEES_PROJECT,
        lambda db, s, w: campaigns.for_dimension(db, s, client_id=w.advertiser.id),
    ),
    "projects.get": (SEES_PROJECT, lambda db, s, w: projects.get(db, s, w.project.id)),
    "projects.get_for_update": (SEES_PROJECT, lambda db, s, w: projects.get_for_update(db, s, w.project.id)),
    "projects.list_page": (SEES_PROJECT, lambda db, s, w: projects.list_page(db, s, limit=10)),
    "projects.update": (SEES_PROJECT, lambda db, s, w: projects.update(db, s, w.project)),
    "project_team.list_page": (SEES_PROJECT, lambda db, s, w: project_team.list_page(db, s, w.project.id, limit=9)),
    "clients.get": (SEES_CLIENT, lambda db, s, w: clients.get(db, s, w.advertiser.id)),
    "clients.get_for_update": (SEES_CLIENT, lambda db, s, w: clients.get_for_update(db, s, w.advertiser.id)),
    "clients.update": (SEES_CLIENT, lambda db, s, w: clients.update(db, s, w.advertiser)),
    "clients.list_page": (
        SEES_CLIENT,
        lambda db, s, w: clients.list_page(db, s, limit=10, parent_client_id=w.agency.id),
    ),
    "clients.visible_ids": (SEES_CLIENT, lambda db, s, w: clients.visible_ids(db, s, [w.advertiser.id])),
    "clients.get agency": (SEES_AGENCY, lambda db, s, w: clients.get(db, s, w.agency.id)),
    "clients.get other": (SEES_OTHER, lambda db, s, w: clients.get(db, s, w.other.id)),
    "streams.open_stream": (
        SEES_CLIENT,
        lambda db, s, w: streams.open_stream(db, s, w.advertiser.id, "s", w.member.id),
    ),
}


@pytest.mark.parametrize("name", READS)
async def test_matrix(db: Database, world: Any, name: str) -> None:
    allowed, read = READS[name]
    seen = {caller for caller, scope in world.scopes().items() if await read(db, scope, world)}
    assert seen == allowed


async def test_a_stream_is_read_within_scope(db: Database, world: Any) -> None:
    await streams.open_stream(db, Scope(everything=True), world.advertiser.id, "s", world.member.id)
    seen = {
        caller for caller, scope in world.scopes().items() if await streams.get(db, scope, world.advertiser.id, "s")
    }
    assert seen == SEES_CLIENT


async def test_unseen_and_missing_answer_alike(db: Database, world: Any) -> None:
    stranger = world.scopes()["stranger"]
    for campaign_id in (world.campaign.id, new_id()):
        assert await campaigns.get(db, stranger, campaign_id) is None
        assert await campaigns.update(db, stranger, replace(world.campaign, id=campaign_id, revision=99)) is None


async def test_a_move_moves_the_sight(db: Database, world: Any) -> None:
    member = world.scopes()["member of the ancestor"]
    moved = replace(world.advertiser, parent_client_id=world.other.id)
    assert await clients.update(db, Scope(everything=True), moved) is not None
    assert await campaigns.get(db, member, world.campaign.id) is None
    assert await campaigns.get(db, world.scopes()["stranger"], world.campaign.id) is not None


async def test_all_ids_in_scope(db: Database, world: Any) -> None:
    member = world.scopes()["member of the ancestor"]
    assert await clients.visible_ids(db, member) == [world.agency.id, world.advertiser.id]
    assert await clients.visible_ids(db, member, [world.other.id, world.agency.id]) == [world.agency.id]
    assert await clients.visible_ids(db, member, []) == []


async def test_dimensions_carry_the_clients_zone(db: Database, world: Any) -> None:
    zoned = replace(world.advertiser, settings={"timezone": "Asia/Omsk"})
    await clients.update(db, Scope(everything=True), zoned)
    expected = campaigns.CampaignDimension(
        world.campaign.id, world.advertiser.id, world.project.id, "vk_ads", "RUB", "Asia/Omsk"
    )
    assert await campaigns.dimensions_internal(db, [world.campaign.id, new_id()]) == [expected]
    assert await campaigns.dimension_page_internal(db, limit=5) == [expected]
    assert await campaigns.dimension_page_internal(db, limit=5, after=world.campaign.id) == []
    with pytest.raises(ValueError, match="needed"):
        await campaigns.for_dimension(db, Scope(everything=True))


class TestUpdates:
    async def test_what_was_written_comes_back(self, db: Database, world: Any) -> None:
        everything = Scope(everything=True)
        changed = replace(
            world.campaign,
            name="Renamed",
            status="paused",
            budget_daily=Decimal("1.5"),
            budget_total=Decimal("100.000001"),
            configuration={"bid": {"micros": 5}, "list": [1, None, "я"]},
            observed={"state": "ON"},
        )
        stored = await campaigns.update(db, everything, changed)
        assert stored is not None
        assert stored == replace(changed, revision=2, updated_at=stored.updated_at)
        assert await campaigns.get(db, everything, world.campaign.id) == stored

        project = replace(
            world.project, description="d", start_date=date(2026, 1, 1), budget_total=Decimal(5), budget_currency="USD"
        )
        stored_project = await projects.update(db, everything, project)
        assert stored_project is not None
        assert stored_project == replace(project, revision=2, updated_at=stored_project.updated_at)

    async def test_a_stale_revision_is_refused(self, db: Database, world: Any) -> None:
        everything = Scope(everything=True)
        for module, row in ((campaigns, world.campaign), (projects, world.project), (clients, world.advertiser)):
            await module.update(db, everything, replace(row, name="First"))
            with pytest.raises(StaleRevision) as caught:
                await module.update(db, everything, replace(row, name="Second"))
            assert (caught.value.expected, caught.value.found) == (1, 2)
            assert (await module.update(db, everything, replace(row, name="Third"), 2)).revision == 3

    async def test_writing_nothing_new_keeps_the_revision(self, db: Database, world: Any) -> None:
        stored = await campaigns.update(db, Scope(everything=True), world.campaign)
        assert stored == world.campaign

    async def test_a_refused_value_names_its_rule(self, db: Database, world: Any) -> None:
        with pytest.raises(Invalid) as caught:
            await projects.update(db, Scope(everything=True), replace(world.project, budget_total=Decimal("1e12")))
        assert caught.value.constraint in ("projects_budget_total_sign", "value")


class TestPages:
    async def test_they_join_without_gap_or_overlap(self, db: Database, world: Any) -> None:
        scope = world.scopes()["member of the ancestor"]
        made = [world.campaign.id]
        for n in range(6):
            campaign = await campaigns.create(
                db,
                client_id=world.advertiser.id,
                project_id=world.project.id,
                platform="other" if n % 2 else "vk_ads",
                name=f"c{n}",
                currency="RUB",
                status="archived" if n > 3 else "draft",
            )
            made.append(campaign.id)
        pages, after = [], None
        while page := await campaigns.list_page(db, scope, limit=3, after=after):
            pages.append([campaign.id for campaign in page])
            after = page[-1].id
        assert pages == [made[:3], made[3:6], made[6:]]

        async def count(**filters: Any) -> int:
            return len(await campaigns.list_page(db, scope, limit=100, **filters))

        assert await count(platforms=["other"]) == 3
        assert await count(platforms=["other"], statuses=["archived"]) == 1
        assert await count(project_id=world.project.id) == 7
        assert await count(project_id=new_id()) == 0
        assert await count(client_id=world.agency.id) == 0

    async def test_projects_that_overlap_a_period(self, db: Database, world: Any) -> None:
        everything = Scope(everything=True)
        project = await projects.create(
            db, client_id=world.other.id, name="p", start_date=date(2026, 1, 10), end_date=date(2026, 1, 20)
        )

        async def found(ends_from: date | None, starts_until: date | None) -> bool:
            page = await projects.list_page(
                db, everything, limit=9, ends_from=ends_from, starts_until=starts_until, client_id=world.other.id
            )
            return project in page

        assert await found(date(2026, 1, 20), date(2026, 2, 1))
        assert await found(date(2026, 1, 1), date(2026, 1, 10))
        assert not await found(date(2026, 1, 21), None)
        assert not await found(None, date(2026, 1, 9))

    async def test_archived_clients_are_left_out(self, db: Database, world: Any) -> None:
        everything = Scope(everything=True)
        archived = await clients.update(
            db, everything, replace(world.other, archived_at=world.other.created_at, industry="Food")
        )
        assert archived is not None
        assert archived not in await clients.list_page(db, everything, limit=9)
        assert await clients.list_page(db, everything, limit=9, include_archived=True, industry="Food") == [archived]
        assert [c.type for c in await clients.list_page(db, everything, limit=9, type="agency")] == ["agency"]


class TestPlans:
    """The hottest statements must find their rows by indexes however large the tables are."""

    @pytest.fixture
    async def crowded(self, db: Database, world: Any) -> None:
        await db.execute(
            """
            INSERT INTO clients (id, name, type)
            SELECT gen_random_uuid(), 'c' || n, 'agency' FROM generate_series(1, 3000) n"""
        )
        await db.execute(
            """
            INSERT INTO projects (id, client_id, name) SELECT gen_random_uuid(), id, 'p' FROM clients"""
        )
        await db.execute(
            """
            INSERT INTO client_integrations (id, client_id, platform, credentials)
            SELECT gen_random_uuid(), id, 'vk_ads', '{}' FROM clients"""
        )
        await db.execute(
            """
            INSERT INTO campaigns (id, client_id, project_id, platform, name, currency)
            SELECT gen_random_uuid(), client_id, id, 'other', 'c', 'RUB' FROM projects, generate_series(1, 5)"""
        )
        await db.execute(
            """
            INSERT INTO users (id, email, password_hash, role)
            SELECT gen_random_uuid(), n || '@x.ru', '!', 'pm' FROM generate_series(1, 500) n"""
        )
        await db.execute(
            """
            INSERT INTO client_memberships (user_id, client_id)
            SELECT u.id, c.id FROM users u CROSS JOIN LATERAL (SELECT id FROM clients ORDER BY random() LIMIT 10) c
            ON CONFLICT DO NOTHING"""
        )
        await db.execute(
            """
            INSERT INTO project_team (id, project_id, user_id, role)
            SELECT gen_random_uuid(), p.id, u.id, 'pm' FROM projects p
            CROSS JOIN LATERAL (SELECT id FROM users WHERE p.id IS NOT NULL ORDER BY random() LIMIT 2) u"""
        )
        await db.execute("ANALYZE")

    async def nodes(self, db: Database, sql: str, *args: object) -> set[str]:
        """The kinds of scan in the plan, with their tables."""
        found: set[str] = set()

        def walk(node: dict[str, Any]) -> None:
            if "Relation Name" in node:
                found.add(f"{node['Node Type']} on {node['Relation Name']}")
            for child in node.get("Plans", ()):
                walk(child)

        for mode in ("force_custom_plan", "force_generic_plan"):
            async with db.transaction("explain") as tx:
                await tx.execute(f"SET LOCAL plan_cache_mode = {mode}")
                plan = await tx.fetchval(f"EXPLAIN (FORMAT JSON) {sql}", *args)
            walk(orjson.loads(plan)[0]["Plan"])
        return found

    # One test for all callers: the crowd takes longer to make than everything that is asked of it.
    @pytest.mark.usefixtures("crowded")
    async def test_one_campaign(self, db: Database, world: Any) -> None:
        for caller in ("everything", "member of the ancestor", "teammate", "key of the ancestor"):
            scans = await self.nodes(db, campaigns._GET, *world.scopes()[caller].args, world.campaign.id)
            assert scans
            wrong = [scan for scan in scans if not scan.startswith(("Index Scan", "Index Only Scan"))]
            assert not wrong, caller

    async def test_a_job_that_is_due(self, db: Database) -> None:
        await db.execute(
            """
            INSERT INTO jobs (id, type, queue, status, payload, completed_at)
            SELECT gen_random_uuid(), 'send_email', 'email', CASE WHEN n % 50 = 0 THEN 'pending' ELSE 'completed' END,
              '{}', CASE WHEN n % 50 = 0 THEN NULL ELSE now() END FROM generate_series(1, 5000) n"""
        )
        await db.execute("ANALYZE jobs")
        sql = """SELECT id FROM jobs WHERE queue = 'email' AND status = 'pending' AND scheduled_at <= now()
          AND delivered_at IS NULL AND throttle_key IS NULL
          ORDER BY priority DESC, scheduled_at LIMIT 1 FOR UPDATE SKIP LOCKED"""
        assert await self.nodes(db, sql) == {"Index Scan on jobs"}
