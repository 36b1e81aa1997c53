"""What the schema refuses, by the hazards of the data model it answers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from storage.errors import Conflict, Invalid
from storage.postgres import clients
from storage.postgres.database import Database, Executor, Transaction, returned
from storage.postgres.ids import new_id

Insert = Callable[..., Awaitable[UUID]]
ENVELOPE = {"alg": "AES-256-GCM", "key_id": "k1", "nonce": "A" * 16, "ciphertext": "B" * 24}


class Undo(Exception):
    """Ends a test's transaction without keeping anything."""


class Within:
    """Statements of one transaction, each undone by itself when it fails."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    async def fetch(self, sql: str, *args: object) -> list[Any]:
        async with self._transaction.savepoint():
            return await self._transaction.fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: object) -> Any:
        async with self._transaction.savepoint():
            return await self._transaction.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: object) -> Any:
        async with self._transaction.savepoint():
            return await self._transaction.fetchval(sql, *args)

    async def execute(self, sql: str, *args: object) -> str:
        async with self._transaction.savepoint():
            return await self._transaction.execute(sql, *args)


@pytest.fixture(scope="module")
async def shared(make_database: Callable[..., Awaitable[str]], migrated: str) -> AsyncIterator[Database]:
    database = await Database.open(await make_database(migrated), min_size=1)
    yield database
    await database.close()


@pytest.fixture
async def db(shared: Database) -> AsyncIterator[Executor]:
    """A transaction that is undone, which is faster than a database for each of so many tests."""
    with suppress(Undo):
        async with shared.transaction("test") as transaction:
            yield Within(transaction)
            raise Undo


async def refused(
    error: type[Exception] | tuple[type[Exception], ...], constraint: str, work: Awaitable[object]
) -> None:
    with pytest.raises(error) as caught:
        await work
    assert getattr(caught.value, "constraint", None) == constraint


class TestH10NothingIsErasedByCascade:
    @pytest.mark.parametrize("table", ["clients", "projects", "campaigns", "users"])
    async def test_a_row_others_refer_to_stays(self, db: Executor, insert: Insert, world: Any, table: str) -> None:
        await insert("campaign_statistics")
        ids = {
            "clients": world.advertiser.id,
            "projects": world.project.id,
            "campaigns": world.campaign.id,
            "users": world.teammate.id,
        }
        with pytest.raises(Conflict):
            await db.execute(f"DELETE FROM {table} WHERE id = $1", ids[table])

    async def test_no_foreign_key_cascades(self, db: Executor, world: Any) -> None:
        kinds = await db.fetch("SELECT DISTINCT confdeltype::text FROM pg_constraint WHERE contype = 'f'")
        assert [row[0] for row in kinds] == ["r"]


class TestH12CredentialsAreSealed:
    @pytest.mark.parametrize(
        "credentials",
        [
            {"token": "PLAINTEXT"},
            {**ENVELOPE, "token": "PLAINTEXT"},
            {key: value for key, value in ENVELOPE.items() if key != "key_id"},
            {**ENVELOPE, "nonce": None},
            {**ENVELOPE, "nonce": "short"},
            {**ENVELOPE, "ciphertext": "not base64 at all, but a plain text"},
            {**ENVELOPE, "ciphertext": {"token": "x"}},
            [ENVELOPE],
            "PLAINTEXT",
            None,
        ],
    )
    async def test_anything_but_an_envelope_is_refused(self, insert: Insert, credentials: object) -> None:
        with pytest.raises(Invalid):
            await insert("client_integrations", credentials=credentials)

    @pytest.mark.parametrize("credentials", [ENVELOPE, {}])
    async def test_an_envelope_or_nothing_is_taken(self, insert: Insert, credentials: object) -> None:
        await insert("client_integrations", credentials=credentials)

    async def test_disconnecting_erases(self, insert: Insert) -> None:
        await refused(
            Invalid,
            "client_integrations_disconnected_erased",
            insert("client_integrations", credentials=ENVELOPE, status="disconnected"),
        )


class TestH16MediaPlans:
    async def test_a_version_exists_once(self, insert: Insert) -> None:
        lineage = await insert("plan_lineages")
        await insert("media_plans", lineage_id=lineage)
        await refused(Conflict, "media_plans_version_key", insert("media_plans", lineage_id=lineage))

    async def test_one_version_is_active(self, insert: Insert, world: Any) -> None:
        lineage = await insert("plan_lineages")
        approved = {"approved_by": world.member.id, "approved_at": "2026-01-01T00:00Z", "status": "active"}
        await insert("media_plans", lineage_id=lineage, version=1, **approved)
        await refused(
            Conflict,
            "media_plans_one_active",
            insert("media_plans", lineage_id=lineage, version=2, **approved),
        )

    async def test_nobody_approves_their_own(self, insert: Insert, world: Any) -> None:
        lineage = await insert("plan_lineages")
        await refused(
            Invalid,
            "media_plans_four_eyes",
            insert(
                "media_plans",
                lineage_id=lineage,
                created_by=world.member.id,
                approved_by=world.member.id,
                approved_at="2026-01-01T00:00Z",
                status="approved",
            ),
        )

    @pytest.mark.parametrize("status", ["approved", "active", "completed"])
    async def test_approval_says_who_and_when(self, insert: Insert, status: str) -> None:
        lineage = await insert("plan_lineages")
        await refused(Invalid, "media_plans_approval_whole", insert("media_plans", lineage_id=lineage, status=status))

    @pytest.mark.parametrize("channels", ['[{"channel": "x"}]', {}, None])
    async def test_channels_are_an_array(self, insert: Insert, channels: object) -> None:
        lineage = await insert("plan_lineages")
        with pytest.raises(Invalid):
            await insert("media_plans", lineage_id=lineage, channels=channels)

    async def test_an_approved_version_is_frozen_and_kept(self, db: Executor, insert: Insert, world: Any) -> None:
        plan = await insert(
            "media_plans",
            lineage_id=await insert("plan_lineages"),
            approved_by=world.member.id,
            approved_at="2026-01-01T00:00Z",
            status="approved",
        )
        await refused(
            Invalid,
            "media_plans_frozen",
            db.execute("UPDATE media_plans SET total_budget = 5 WHERE id = $1", plan),
        )
        await refused(Invalid, "media_plans_kept", db.execute("DELETE FROM media_plans WHERE id = $1", plan))
        await db.execute("UPDATE media_plans SET status = 'active' WHERE id = $1", plan)


class TestH17CampaignsBelongToLineages:
    async def test_a_new_version_keeps_the_campaign_and_an_old_one_cannot_go(
        self, db: Executor, insert: Insert, world: Any
    ) -> None:
        lineage = await insert("plan_lineages")
        first = await insert("media_plans", lineage_id=lineage, version=1)
        approved = {"status": "approved", "approved_by": world.member.id, "approved_at": "2026-01-01T00:00Z"}
        await insert("media_plans", lineage_id=lineage, version=2, **approved)
        await insert("campaigns", plan_lineage_id=lineage, plan_version=1)
        await refused(
            Conflict, "campaigns_plan_version_fkey", db.execute("DELETE FROM media_plans WHERE id = $1", first)
        )

    async def test_the_lineage_is_of_the_same_project(self, insert: Insert, world: Any) -> None:
        elsewhere = await insert("projects", client_id=world.other.id)
        lineage = await insert("plan_lineages", project_id=elsewhere)
        await refused(Invalid, "campaigns_plan_lineage_fkey", insert("campaigns", plan_lineage_id=lineage))


class TestTenantOfACampaign:
    async def test_the_client_is_the_projects(self, insert: Insert, world: Any) -> None:
        await refused(Invalid, "campaigns_project_fkey", insert("campaigns", client_id=world.other.id))

    @pytest.mark.parametrize("column", ["client_id", "project_id", "platform"])
    async def test_what_it_is_never_changes(self, db: Executor, insert: Insert, world: Any, column: str) -> None:
        values = {
            "client_id": world.other.id,
            "project_id": await insert("projects"),
            "platform": "yandex_direct",
        }
        await refused(
            Invalid,
            "campaigns_identity_fixed",
            db.execute(f"UPDATE campaigns SET {column} = $2 WHERE id = $1", world.campaign.id, values[column]),
        )


class TestH18H19Statistics:
    async def test_parts_of_conversions_and_large_counts_are_kept(self, db: Executor, insert: Insert) -> None:
        row = await insert("campaign_statistics", conversions="0.4", clicks=2**40, cost="0.000001")
        stored = returned(
            await db.fetchrow("SELECT conversions, clicks, cost FROM campaign_statistics WHERE id = $1", row)
        )
        assert tuple(stored) == (Decimal("0.4"), 2**40, Decimal("0.000001"))

    async def test_ratios_are_not_stored(self, db: Executor, world: Any) -> None:
        columns = await db.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'campaign_statistics'"
        )
        assert not {"ctr", "cpc", "cr", "cpa", "romi"} & {row[0] for row in columns}

    async def test_small_and_large_ratios_are_exact(self, db: Executor, insert: Insert) -> None:
        await insert("campaign_statistics", impressions=1_000_000, clicks=49, conversions=539, cost=1, revenue=3)
        row = returned(await db.fetchrow("SELECT ctr, cr, cpc, romi, roas FROM campaign_statistics_with_ratios"))
        assert row["ctr"] == Decimal("0.0049")
        assert row["cr"] == 1100
        assert abs(row["cpc"] - Decimal(1) / 49) < Decimal("1e-15")
        assert (row["romi"], row["roas"]) == (200, 3)

    async def test_a_zero_denominator_has_no_ratio(self, db: Executor, insert: Insert) -> None:
        await insert("campaign_statistics")
        row = returned(
            await db.fetchrow("SELECT ctr, cpc, cpm, cr, cpa, romi, roas FROM campaign_statistics_with_ratios")
        )
        assert set(row) == {None}

    async def test_more_clicks_than_impressions_are_allowed(self, insert: Insert) -> None:
        await insert("campaign_statistics", impressions=1, clicks=2)

    async def test_a_day_exists_once(self, insert: Insert) -> None:
        await insert("campaign_statistics")
        await refused(Conflict, "campaign_statistics_day_key", insert("campaign_statistics"))


class TestH27ExternalIds:
    async def test_once_per_account(self, insert: Insert) -> None:
        account = await insert("client_integrations")
        await insert("campaigns", integration_id=account, external_id="7")
        await refused(Conflict, "campaigns_external_key", insert("campaigns", integration_id=account, external_id="7"))

    async def test_agency_and_advertiser_may_track_the_same(self, insert: Insert, world: Any) -> None:
        for client in (world.agency, world.advertiser):
            account = await insert("client_integrations", client_id=client.id)
            await insert("campaigns", integration_id=account, external_id="7")

    async def test_an_import_comes_once(self, insert: Insert) -> None:
        await insert("campaigns", external_id="7")
        await refused(Conflict, "campaigns_imported_key", insert("campaigns", external_id="7"))
        await insert("campaigns", external_id="7", platform="yandex_direct")

    async def test_drafts_have_none(self, insert: Insert) -> None:
        account = await insert("client_integrations")
        for _ in range(2):
            await insert("campaigns", integration_id=account)


class TestH28Accounts:
    async def test_several_on_one_platform(self, insert: Insert) -> None:
        for account in ("one", "two"):
            await insert("client_integrations", platform_account_id=account)
        await refused(
            Conflict,
            "client_integrations_account_key",
            insert("client_integrations", platform_account_id="one"),
        )

    @pytest.mark.parametrize("table", ["client_integrations", "projects", "campaigns", "ai_feedback"])
    async def test_no_orphans(self, insert: Insert, table: str) -> None:
        with pytest.raises(Invalid):
            await insert(table, client_id=None)


class TestH30WordsAreKnown:
    @pytest.mark.parametrize(
        ("table", "column"),
        [
            ("users", "role"),
            ("users", "status"),
            ("clients", "type"),
            ("client_integrations", "platform"),
            ("client_integrations", "status"),
            ("projects", "status"),
            ("project_team", "role"),
            ("project_team", "raci"),
            ("media_plans", "status"),
            ("campaigns", "platform"),
            ("campaigns", "status"),
            ("reports", "type"),
            ("reports", "status"),
            ("reports", "generated_by"),
            ("reports", "format"),
            ("ai_prompts", "category"),
            ("ai_prompts", "status"),
            ("ai_feedback", "user_action"),
            ("jobs", "type"),
            ("jobs", "status"),
            ("jobs", "queue"),
        ],
    )
    @pytest.mark.parametrize("word", ["z", "", "ACTIVE", None])
    async def test_unknown_or_missing(self, insert: Insert, table: str, column: str, word: str | None) -> None:
        needed: dict[str, object] = {}
        if table == "media_plans":
            needed["lineage_id"] = await insert("plan_lineages")
        if table == "ai_feedback":
            needed["prompt_id"] = await insert("ai_prompts")
        await insert(table, **needed)
        with pytest.raises(Invalid):
            await insert(table, **{**needed, column: word})


class TestH31Emails:
    async def test_case_does_not_matter(self, insert: Insert) -> None:
        await insert("users", email="a@x.ru")
        await refused(Conflict, "users_email_key", insert("users", email="A@X.ru"))

    async def test_a_deleted_users_is_free_again(self, insert: Insert) -> None:
        for _ in range(2):
            await insert("users", email="a@x.ru", status="deleted")
        await insert("users", email="A@x.ru")

    @pytest.mark.parametrize("password_hash", ["secret", "", "$2b$12$abc", None])
    async def test_a_password_is_never_stored(self, insert: Insert, password_hash: str | None) -> None:
        with pytest.raises(Invalid):
            await insert("users", password_hash=password_hash)


class TestH33Indexes:
    async def test_every_foreign_key_can_be_looked_up(self, db: Executor, world: Any) -> None:
        bare = await db.fetch(
            """
            SELECT conrelid::regclass::text, conname FROM pg_constraint f
            WHERE contype = 'f' AND NOT EXISTS (
              SELECT FROM pg_index i WHERE i.indrelid = f.conrelid AND i.indisvalid
                AND i.indkey[0] = CASE WHEN cardinality(f.conkey) = 1 THEN f.conkey[1]
                  -- Of a composite key, the column that alone determines the other row.
                  ELSE (SELECT f.conkey[n] FROM generate_subscripts(f.conkey, 1) n
                        JOIN pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = f.confkey[n]
                        WHERE a.attname IN ('id', 'lineage_id', 'experiment_id', 'label_id')
                        ORDER BY a.attname <> 'id' LIMIT 1) END
                -- A partial index serves when its rows are those that have the key at all.
                AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) = format('(%I IS NOT NULL)',
                  (SELECT attname FROM pg_attribute WHERE attrelid = i.indrelid AND attnum = i.indkey[0]))))"""
        )
        assert [tuple(row) for row in bare] == []

    async def test_no_index_is_the_beginning_of_another(self, db: Executor, world: Any) -> None:
        redundant = await db.fetch(
            """
            SELECT a.indexrelid::regclass::text, b.indexrelid::regclass::text
            FROM pg_index a JOIN pg_index b ON a.indrelid = b.indrelid AND a.indexrelid <> b.indexrelid
            JOIN pg_class c ON c.oid = a.indrelid
            WHERE c.relnamespace = 'public'::regnamespace AND NOT a.indisunique
              AND a.indexprs IS NULL AND b.indexprs IS NULL
              AND (SELECT relam FROM pg_class WHERE oid = a.indexrelid) = (SELECT relam FROM pg_class WHERE oid = b.indexrelid)
              AND COALESCE(pg_get_expr(a.indpred, a.indrelid), '') = COALESCE(pg_get_expr(b.indpred, b.indrelid), '')
              AND (b.indkey::text || ' ') LIKE (a.indkey::text || ' %')"""  # noqa: E501
        )
        assert [tuple(row) for row in redundant] == []

    async def test_every_table_says_what_it_is_for(self, db: Executor, world: Any) -> None:
        silent = await db.fetch(
            """
            SELECT relname FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') AND obj_description(oid) IS NULL"""
        )
        assert [row[0] for row in silent] == []

    async def test_every_moment_has_a_time_zone(self, db: Executor, world: Any) -> None:
        assert not await db.fetch(
            "SELECT FROM information_schema.columns WHERE table_schema = 'public'"
            " AND data_type = 'timestamp without time zone'"
        )


class TestH34Accountable:
    async def test_one_per_project(self, insert: Insert, world: Any) -> None:
        await insert("project_team", raci="A")
        await refused(
            Conflict, "project_team_one_accountable", insert("project_team", user_id=world.stranger.id, raci="A")
        )

    async def test_a_role_is_held_once_and_informs_by_default(self, db: Executor, insert: Insert) -> None:
        row = await insert("project_team")
        assert await db.fetchval("SELECT raci FROM project_team WHERE id = $1", row) == "I"
        await refused(Conflict, "project_team_member_key", insert("project_team"))
        await insert("project_team", role="analyst")

    async def test_nobody_is_admin_of_a_project(self, insert: Insert) -> None:
        await refused(Invalid, "project_team_role_known", insert("project_team", role="admin"))


class TestH36Jobs:
    async def test_one_live_job_per_key(self, insert: Insert) -> None:
        await insert("jobs", unique_key="k", status="completed", completed_at="2026-01-01T00:00Z")
        await insert("jobs", unique_key="k")
        await refused(Conflict, "jobs_unique_key", insert("jobs", unique_key="k"))

    @pytest.mark.parametrize(
        "values",
        [
            {"attempts": 4},
            {"attempts": -1},
            {"max_attempts": 0},
            {"status": "processing"},
            {"status": "completed"},
            {"status": "cancelled"},
            {"lease_holder": "w", "lease_expires_at": "2026-01-01T00:00Z"},
            {"payload": []},
        ],
    )
    async def test_a_job_is_consistent(self, insert: Insert, values: dict[str, object]) -> None:
        with pytest.raises(Invalid):
            await insert("jobs", **values)


class TestH45Feedback:
    @pytest.mark.parametrize(
        "values",
        [
            {"edit_distance": -50},
            {"edit_distance": 101},
            {"edit_distance": 0},
            {"user_action": "accepted"},
            {"user_action": "accepted", "edit_distance": 1},
            {"user_action": "accepted", "edit_distance": 0, "edited_output": "x"},
            {"user_action": "rejected", "edit_distance": 1},
            {"user_pseudonym": "00000000-0000-4000-8000-000000000000"},
        ],
    )
    async def test_action_and_edited_share_fit(self, insert: Insert, values: dict[str, object]) -> None:
        prompt = await insert("ai_prompts")
        await insert("ai_feedback", prompt_id=prompt, edit_distance="0.01", edited_output="x")
        with pytest.raises(Invalid):
            await insert("ai_feedback", prompt_id=prompt, **values)

    async def test_a_key_is_used_once_and_what_happened_stays(self, db: Executor, insert: Insert) -> None:
        prompt = await insert("ai_prompts")
        made = await insert("ai_feedback", prompt_id=prompt, key="k")
        await refused(Conflict, "ai_feedback_key", insert("ai_feedback", prompt_id=prompt, key="k"))
        await refused(
            Invalid,
            "ai_feedback_frozen",
            db.execute("UPDATE ai_feedback SET user_action = 'rejected' WHERE id = $1", made),
        )
        await db.execute("UPDATE ai_feedback SET feedback_text = '', output_data = NULL WHERE id = $1", made)


class TestH46Prompts:
    async def test_a_version_never_changes(self, db: Executor, insert: Insert) -> None:
        prompt = await insert("ai_prompts")
        await refused(
            Invalid,
            "ai_prompts_frozen",
            db.execute("UPDATE ai_prompts SET prompt_template = 'x' WHERE id = $1", prompt),
        )
        await db.execute("UPDATE ai_prompts SET status = 'deprecated' WHERE id = $1", prompt)

    async def test_a_name_is_the_agencys_or_a_clients_once(self, insert: Insert, world: Any) -> None:
        for client_id in (None, world.advertiser.id, world.other.id):
            await insert("prompt_lineages", client_id=client_id)
        for client_id in (None, world.advertiser.id):
            with pytest.raises(Conflict):
                await insert("prompt_lineages", client_id=client_id)

    async def test_no_label_is_anywhere_without_its_moves(self, db: Executor, insert: Insert) -> None:
        first = await insert("ai_prompts")
        lineage, name = returned(await db.fetchrow("SELECT lineage_id, name FROM ai_prompts WHERE id = $1", first))
        second = await insert("ai_prompts", lineage_id=lineage, name=name, version=2)
        label = new_id()

        async def moved(number: int, origin: UUID | None, end: UUID) -> None:
            sql = """INSERT INTO prompt_label_moves (id, label_id, number, kind, from_version_id, to_version_id, reason)
              VALUES ($1, $2, $3, 'move', $4, $5, 'x')"""
            await db.execute(sql, new_id(), label, number, origin, end)

        await db.execute(
            "INSERT INTO prompt_labels (id, lineage_id, name, version_id) VALUES ($1, $2, 'staging', $3)",
            label, lineage, first,
        )  # fmt: skip
        await refused(Invalid, "prompt_labels_moved_fkey", db.execute("SET CONSTRAINTS ALL IMMEDIATE"))
        await moved(1, None, first)
        await db.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for number, origin, end, rule in (
            (2, second, first, "prompt_label_moves_unbroken"),
            (3, first, second, "prompt_label_moves_unbroken"),
            (2, None, second, "prompt_label_moves_first"),
            (1, None, second, "prompt_label_moves_number_key"),
        ):
            await refused((Invalid, Conflict), rule, moved(number, origin, end))
        point = "UPDATE prompt_labels SET version_id = $2, move_count = 2 WHERE id = $1"
        await refused(Invalid, "prompt_labels_moved_fkey", db.execute(point, label, second))
        await moved(2, first, second)
        await db.execute(point, label, second)
        change = "UPDATE prompt_label_moves SET reason = $2 WHERE label_id = $1"
        await refused(Invalid, "prompt_label_moves_fixed", db.execute(change, label, "other"))
        delete = "DELETE FROM prompt_label_moves WHERE label_id = $1"
        await refused(Invalid, "prompt_label_moves_kept", db.execute(delete, label))


class TestH47Reports:
    async def test_the_period_runs_forward(self, insert: Insert) -> None:
        await refused(Invalid, "reports_period_order", insert("reports", period_end="2025-12-31"))

    async def test_a_ready_report_is_whole_and_frozen(self, db: Executor, insert: Insert) -> None:
        ready = {"status": "ready", "data": {}, "generated_at": "2026-02-01T00:00Z"}
        await refused(Invalid, "reports_ready_whole", insert("reports", status="ready"))
        await refused(Invalid, "reports_ready_whole", insert("reports", **ready, format="pdf"))
        report = await insert("reports", **ready)
        await refused(
            Invalid, "reports_frozen", db.execute("UPDATE reports SET data = '{\"a\":1}' WHERE id = $1", report)
        )


class TestH52Audit:
    @pytest.mark.parametrize(
        "sql", ["UPDATE audit_log SET action = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
    )
    async def test_it_only_grows(self, db: Executor, sql: str) -> None:
        await refused(Invalid, "audit_log_append_only", db.execute(sql))


class TestH53Revisions:
    @pytest.mark.parametrize("change", ["name = name", "budget_spent = 5", "last_synced_at = now()", "revision = 9"])
    async def test_bookkeeping_is_no_edit(self, db: Executor, world: Any, change: str) -> None:
        sql = f"UPDATE campaigns SET {change} WHERE id = $1 RETURNING revision"
        assert await db.fetchval(sql, world.campaign.id) in (1, 2)
        if "revision" not in change:
            assert await db.fetchval("SELECT revision FROM campaigns WHERE id = $1", world.campaign.id) == 1


class TestH60Values:
    @pytest.mark.parametrize(
        ("table", "column", "value"),
        [
            *[
                (table, column, value)
                for table, columns in {
                    "projects": ["budget_total", "budget_spent"],
                    "media_plans": ["total_budget"],
                    "campaigns": ["budget_daily", "budget_total", "budget_spent"],
                    "campaign_statistics": ["cost", "revenue", "conversions"],
                }.items()
                for column in columns
                for value in ("-5", "-0.000001", "NaN", "Infinity", "1000000000000")
            ],
            *[
                (table, column, value)
                for table, column in {
                    "projects": "budget_currency",
                    "media_plans": "currency",
                    "campaigns": "currency",
                    "campaign_statistics": "currency",
                }.items()
                for value in ("xx", "rub", "RUBL", "R U", "", "РУБ")
            ],
            ("projects", "start_date", "infinity"),
            ("projects", "end_date", "-infinity"),
            ("campaign_statistics", "date", "infinity"),
            ("campaign_statistics", "impressions", -1),
            ("campaign_statistics", "clicks", -1),
            ("campaign_statistics", "time_zone", "MSK"),
            ("campaign_statistics", "source_version", -1),
            ("media_plans", "version", 0),
            ("ai_prompts", "version", 0),
            ("clients", "name", "  "),
            ("projects", "name", ""),
            ("campaigns", "name", "   "),
            ("campaigns", "name", "x" * 256),
            ("campaigns", "external_id", ""),
            ("campaigns", "configuration", []),
            ("campaigns", "observed", "text"),
            ("users", "email", "nobody"),
        ],
    )
    async def test_bad_values(self, insert: Insert, table: str, column: str, value: object) -> None:
        needed = {"lineage_id": await insert("plan_lineages")} if table == "media_plans" else {}
        with pytest.raises(Invalid):
            await insert(table, **{**needed, column: value})

    async def test_a_period_does_not_end_before_it_begins(self, insert: Insert) -> None:
        await refused(
            Invalid,
            "projects_dates_order",
            insert("projects", start_date="2026-02-01", end_date="2026-01-31"),
        )
        await insert("projects", start_date="2026-02-01", end_date="2026-02-01")

    async def test_a_day_costs_no_more_than_everything(self, insert: Insert) -> None:
        await refused(Invalid, "campaigns_budget_order", insert("campaigns", budget_daily=2, budget_total=1))

    @pytest.mark.parametrize(
        "settings",
        [
            {"timezone": "Mars/Olympus"},
            {"timezone": "MSK"},
            {"timezone": "UTC+3"},
            {"timezone": "europe/moscow"},
            {"timezone": None},
            {"currency": "rub"},
            {"currency": 643},
            {"language": "русский"},
            {"language": None},
        ],
    )
    async def test_a_clients_settings_are_valid(self, db: Executor, settings: dict[str, object]) -> None:
        with pytest.raises(Invalid):
            await clients.create(db, name="x", type="agency", settings=settings)

    @pytest.mark.parametrize("zone", ["UTC", "Asia/Vladivostok", "America/Argentina/Buenos_Aires", "Etc/GMT+3"])
    async def test_iana_zones_are_known(self, db: Executor, zone: str) -> None:
        client = await clients.create(db, name="x", type="agency", settings={"timezone": zone, "theme": "dark"})
        assert client.settings == {"timezone": zone, "currency": "RUB", "language": "ru", "theme": "dark"}


class TestRawFloor:
    async def test_it_cannot_be_lowered_or_lost(self, db: Executor) -> None:
        now = datetime(2026, 1, 1, tzinfo=UTC)
        await db.execute("UPDATE metric_settings SET raw_floor = $1", now)
        await refused(
            Invalid, "metric_settings_floor_rises", db.execute("UPDATE metric_settings SET raw_floor = 'epoch'")
        )
        await refused(Invalid, "metric_settings_kept", db.execute("DELETE FROM metric_settings"))
