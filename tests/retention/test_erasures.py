"""Purged clients and deleted people are forgotten in every store, and each store says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import grpc
import pytest

from mrm.accounts.v1 import client_service_pb2, user_service_pb2
from mrm.operations.v1 import alert_service_pb2, erasure_service_pb2, retention_pb2, retention_service_pb2
from server.jobs.handling import JobContext, JobPostponed, Stores
from server.retention import archive_job, erase_job
from storage.clickhouse import archived
from storage.objects.store import client_prefix
from storage.postgres import archives, erasures, jobs
from storage.postgres.jobs import Job
from tests.conftest import Failure, World
from tests.every_rpc.conftest import make_target

pytestmark = pytest.mark.bar_h

LEASE = timedelta(seconds=60)
Failing = Callable[[Awaitable[Any]], Awaitable[Failure]]


async def claimed(world: World, type_: str, **payload: object) -> Job:
    """The job of a kind with these things in its payload, begun."""
    row = await world.database.fetchrow(
        "SELECT id FROM jobs WHERE type = $1 AND payload @> $2 AND status = 'pending'", type_, payload
    )
    assert row is not None
    await world.database.execute("UPDATE jobs SET scheduled_at = now() WHERE id = $1", row[0])
    [job] = await jobs.claim_internal(world.database, [row[0]], "test", LEASE)
    return job


async def erased(world: World, stores: Stores, subject_id: str) -> retention_pb2.Erasure:
    """The newest erasure of a client or user, as an administrator sees it."""
    request = erasure_service_pb2.ListErasuresRequest(filter={"subject_id": subject_id})  # type: ignore[arg-type]
    reply = await world.admin.erasures.ListErasures(request, metadata=world.admin.auth)
    found = await world.admin.erasures.GetErasure(
        erasure_service_pb2.GetErasureRequest(erasure_id=reply.erasures[0].erasure_id), metadata=world.admin.auth
    )
    assert found.erasure == reply.erasures[0]
    return found.erasure


async def work_on(world: World, stores: Stores, erasure: retention_pb2.Erasure) -> str:
    """Does the erasure's job until it is done or only waits for what only others can do; what it waits for."""
    job = await claimed(world, "erase_subject", erasure_id=erasure.erasure_id)
    context = JobContext(stores, job, LEASE)
    for _ in range(300):
        try:
            result = await erase_job.handle(job, context)
        except JobPostponed as wait:
            if "relay" in wait.reason or "still being" in wait.reason:
                continue
            await jobs.release_internal(world.database, job.id, job.fence)
            return wait.reason
        await jobs.complete_internal(world.database, [(job.id, job.fence, result)])
        return ""
    raise AssertionError("ClickHouse does not forget")


async def purge(world: World, client_id: str) -> None:
    """Purges a client; the week has gone by."""
    admin, auth = world.admin, world.admin.auth
    await admin.clients.ArchiveClient(client_service_pb2.ArchiveClientRequest(client_id=client_id), metadata=auth)
    ask = client_service_pb2.RequestClientPurgeRequest(client_id=client_id)
    await admin.clients.RequestClientPurge(ask, metadata=auth)
    await world.database.execute(
        "UPDATE clients SET purge_allowed_at = purge_allowed_at - interval '8 days' WHERE id = $1", UUID(client_id)
    )
    token = (await admin.clients.RequestClientPurge(ask, metadata=auth)).confirmation_token
    confirm = client_service_pb2.ConfirmClientPurgeRequest(client_id=client_id, confirmation_token=token)
    await admin.clients.ConfirmClientPurge(confirm, metadata=auth)


async def ids_of(world: World, client_id: UUID) -> set[UUID]:
    """The ids of everything that is a client's own."""
    found = {client_id}
    for table, condition in erasures.GOES.items():
        columns = await world.database.fetch(
            """SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND atttypid = 'uuid'::regtype
               AND attnum > 0 AND attname = 'id'""",
            table,
        )
        if columns:
            found |= {
                row[0] for row in await world.database.fetch(f"SELECT t.id FROM {table} t WHERE {condition}", client_id)
            }
    return found


async def test_nothing_in_any_store_is_left_of_a_purged_client(world: World, stores: Stores, failing: Failing) -> None:
    target = await make_target(world)
    client_id = UUID(target.client_id)
    await world.database.execute("UPDATE clients SET parent_client_id = NULL WHERE parent_client_id = $1", client_id)
    campaign = UUID(target.campaign_id)
    for statement in (
        """INSERT INTO campaign_statistics (id, campaign_id, date, cost, currency, time_zone, source_version)
           SELECT gen_random_uuid(), $1, '2020-02-03', 5, 'RUB', 'UTC', 1""",
        "INSERT INTO archived_spend SELECT $1, 5",
        """INSERT INTO restatements OVERRIDING SYSTEM VALUE
           SELECT client_id, nextval(pg_get_serial_sequence('restatements', 'seq')), id, '2020-02-03', 'RUB',
             0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 'events', 'events', 1, 1, 'requested', gen_random_uuid()
           FROM campaigns WHERE id = $1""",
        """INSERT INTO rollup_marks (client_id, date) SELECT client_id, '2020-02-03' FROM campaigns WHERE id = $1
           ON CONFLICT DO NOTHING""",
    ):
        await world.database.execute(statement, campaign)
    assert stores.objects is not None
    table = archived.events(stores.clickhouse)
    old = date(2019, 5, 1)
    await world.database.execute(
        """INSERT INTO archive_partitions (id, table_name, month, state)
           VALUES (gen_random_uuid(), 'campaign_events', $1, 'dropped')""",
        old,
    )
    found = await archives.get(world.database, table.name, old)
    assert found is not None
    key = f"{client_prefix(client_id)}archive/x.parquet"
    sha256 = await stores.objects.put(key, b"x")
    await archives.note_internal(
        world.database, found.id, client_id, key=key, found=archived.Digest(1, 1), size=1, sha256=sha256
    )
    own = await ids_of(world, client_id)
    assert len(own) > 15

    hold = retention_service_pb2.SetLegalHoldRequest(client_id=target.client_id, reason="court")
    await world.admin.retention.SetLegalHold(hold, metadata=world.admin.auth)
    assert (await failing(purge(world, target.client_id))).reason == "LEGAL_HOLD"
    lift = retention_service_pb2.LiftLegalHoldRequest(client_id=target.client_id)
    await world.admin.retention.LiftLegalHold(lift, metadata=world.admin.auth)
    await world.database.execute(
        "UPDATE clients SET archived_at = NULL, purge_allowed_at = NULL WHERE id = $1", client_id
    )
    await purge(world, target.client_id)

    erasure = await erased(world, stores, target.client_id)
    assert erasure.missing_stores == list(erasures.STORES["client"])
    waits = await work_on(world, stores, erasure)
    assert waits == "milvus: the job that embeds has not come to it"
    await world.database.execute(
        "UPDATE outbox SET processed_at = now() WHERE topic = 'vector_erasure' AND key = $1", target.client_id
    )
    assert await work_on(world, stores, erasure) == ""
    erasure = await erased(world, stores, target.client_id)
    assert {each.store for each in erasure.receipts} == set(erasures.STORES["client"])
    assert erasure.HasField("complete_time")
    assert erasure.missing_stores == []

    # Calls of before are counted a while later.
    usage = world.application._pipeline._usage
    assert usage is not None
    await usage.flush()
    left = set()
    for name, column in await world.database.fetch(
        """SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
           WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
             AND a.atttypid = 'uuid'::regtype"""
    ):
        if await world.database.fetchval(f"SELECT count(*) FROM {name} WHERE {column} = ANY ($1::uuid[])", list(own)):
            left.add(name)
    assert left - erasures.STAYS.keys() == set()
    assert "archives" not in left
    for (name,) in await stores.clickhouse.fetch(
        """SELECT DISTINCT table FROM system.columns WHERE database = currentDatabase() AND name = 'client_id'
             AND table IN (
               SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree')"""
    ):
        question = f"SELECT count() FROM {name} WHERE client_id = {{id:UUID}}"
        assert await stores.clickhouse.fetch(question, {"id": client_id}) == [(0,)], name
    assert await stores.objects.list(client_prefix(client_id), limit=10) == []


async def test_every_table_that_hangs_on_clients_is_spoken_for(world: World) -> None:
    rows = await world.database.fetch(
        """WITH RECURSIVE below AS (
             SELECT 'clients'::regclass::oid AS id
             UNION SELECT c.conrelid FROM pg_constraint c JOIN below b ON c.confrelid = b.id WHERE c.contype = 'f')
           SELECT id::regclass::text FROM below"""
    )
    below = {row[0] for row in rows}
    assert below - erasures.GOES.keys() - erasures.STAYS.keys() == set()
    assert {"campaign_statistics", "restatements", "reports"} <= below


async def test_a_deleted_person_is_nobody_anywhere(world: World, stores: Stores) -> None:
    caller = await world.user("analyst")
    address = await world.database.fetchval("SELECT email FROM users WHERE id = $1", caller.user_id)
    await world.database.execute(
        """INSERT INTO emails (id, template, language, address, user_id, event_id, content)
           VALUES (gen_random_uuid(), 'x', 'en', $1, $2, 'e', '{"name": "N"}'),
             (gen_random_uuid(), 'x', 'en', $1, NULL, 'f', '{}')""",
        address, caller.user_id,
    )  # fmt: skip
    request = user_service_pb2.DeleteUserRequest(user_id=str(caller.user_id))
    await world.admin.users.DeleteUser(request, metadata=world.admin.auth)
    erasure = await erased(world, stores, str(caller.user_id))
    assert await work_on(world, stores, erasure) == ""
    done = await erased(world, stores, str(caller.user_id))
    assert {each.store for each in done.receipts} == {"postgresql", "redis"}
    for name, column in await world.database.fetch(
        """SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
           WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
             AND a.atttypid IN ('text'::regtype, 'varchar'::regtype, 'jsonb'::regtype)"""
    ):
        question = f"SELECT count(*) FROM {name} WHERE position($1 IN {column}::text) > 0"
        assert await world.database.fetchval(question, address) == 0, (name, column)


async def test_user_ids_become_unlinkable(world: World, stores: Stores, failing: Failing) -> None:
    client_id, _ = await world.tenant()
    await world.database.execute("INSERT INTO user_id_salts VALUES ($1, $2)", UUID(client_id), bytes(16))
    request = erasure_service_pb2.EraseUserIdsRequest(client_id=client_id)
    hold = retention_service_pb2.SetLegalHoldRequest(client_id=client_id, reason="court")
    held = (await world.admin.retention.SetLegalHold(hold, metadata=world.admin.auth)).legal_hold
    listed = await world.admin.retention.ListLegalHolds(
        retention_service_pb2.ListLegalHoldsRequest(page_size=500), metadata=world.admin.auth
    )
    assert held in listed.legal_holds
    assert (await failing(world.admin.erasures.EraseUserIds(request, metadata=world.admin.auth))).reason == "LEGAL_HOLD"
    lift = retention_service_pb2.LiftLegalHoldRequest(client_id=client_id)
    await world.admin.retention.LiftLegalHold(lift, metadata=world.admin.auth)
    failure = await failing(world.admin.retention.LiftLegalHold(lift, metadata=world.admin.auth))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    erasure = (await world.admin.erasures.EraseUserIds(request, metadata=world.admin.auth)).erasure
    assert (
        await world.database.fetchval("SELECT count(*) FROM user_id_salts WHERE client_id = $1", UUID(client_id)) == 0
    )
    assert "servers still know the salt" in await work_on(world, stores, erasure)
    assert (await erased(world, stores, client_id)).missing_stores == ["clickhouse", "archives"]
    await world.database.execute(
        "UPDATE erasures SET requested_at = now() - interval '4 minutes' WHERE id = $1", UUID(erasure.erasure_id)
    )
    assert await work_on(world, stores, erasure) == ""


async def test_retention_runs_by_rpc_and_what_is_overdue_is_an_alert(
    world: World, stores: Stores, failing: Failing
) -> None:
    admin, auth = world.admin, world.admin.auth
    month = date(2018, 7, 1)
    client_id, [campaign] = await world.tenant()
    await world.database.execute(
        """INSERT INTO campaign_statistics (id, campaign_id, date, cost, currency, time_zone, source_version)
           VALUES (gen_random_uuid(), $1, '2018-07-09', 5, 'RUB', 'UTC', 1)""",
        UUID(campaign),
    )
    status = await admin.retention.GetRetentionStatus(retention_service_pb2.GetRetentionStatusRequest(), metadata=auth)
    [rule] = [each for each in status.rules if each.data == "campaign_statistics"]
    assert rule.due_month_count >= 1
    assert status.has_object_storage
    restore = retention_service_pb2.RestoreArchiveMonthRequest(
        table=retention_pb2.ARCHIVE_TABLE_CAMPAIGN_STATISTICS, month="2018-07"
    )
    assert (await failing(admin.retention.RestoreArchiveMonth(restore, metadata=auth))).metadata["state"] == "absent"
    run = await admin.retention.RunRetention(retention_service_pb2.RunRetentionRequest(), metadata=auth)
    plan = await claimed(world, "archive_partition", action="plan")
    assert str(plan.id) == run.job_id
    # Closed long ago, and still there; and somebody waits for an erasure.
    await world.database.execute(
        """INSERT INTO archive_partitions (id, table_name, month, closed_at)
           VALUES (gen_random_uuid(), 'campaign_statistics', $1, now() - interval '9 days')""",
        month,
    )
    async with world.database.transaction("late") as tx:
        late = await erasures.request(tx, "user", UUID(int=7), timedelta(0))
    result = await archive_job.handle(plan, JobContext(stores, plan, LEASE))
    assert f"retention:campaign_statistics:{month}" in result["overdue"]
    assert result["overdue_erasures"] >= 1
    listed = await admin.alerts.ListAlerts(alert_service_pb2.ListAlertsRequest(page_size=100), metadata=auth)
    own = {each.summary: each for each in listed.alerts if not each.client_id}
    assert any("2018-07 should have left" in summary for summary in own)
    [alert] = [each for summary, each in own.items() if "lacks the receipts of postgresql, redis" in summary]
    resolved = await admin.alerts.AcknowledgeAlert(
        alert_service_pb2.AcknowledgeAlertRequest(alert_id=alert.alert_id, etag=alert.etag), metadata=auth
    )
    assert resolved.alert.acknowledger_id
    manager = await world.user("account_manager", client_id)
    seen = await manager.alerts.ListAlerts(alert_service_pb2.ListAlertsRequest(page_size=100), metadata=manager.auth)
    assert [each for each in seen.alerts if not each.client_id] == []

    leave = await claimed(world, "archive_partition", action="let_go", month=str(month))
    assert await archive_job.handle(leave, JobContext(stores, leave, LEASE)) == {"outcome": "dropped"}
    await jobs.complete_internal(world.database, [(leave.id, leave.fence, {}), (plan.id, plan.fence, {})])
    await world.database.execute("DELETE FROM erasures WHERE id = $1", late.id)
    await admin.retention.RunRetention(retention_service_pb2.RunRetentionRequest(), metadata=auth)
    plan = await claimed(world, "archive_partition", action="plan")
    assert (
        f"retention:campaign_statistics:{month}"
        not in (await archive_job.handle(plan, JobContext(stores, plan, LEASE)))["overdue"]
    )
    await jobs.complete_internal(world.database, [(plan.id, plan.fence, {})])
    listed = await admin.alerts.ListAlerts(alert_service_pb2.ListAlertsRequest(page_size=100), metadata=auth)
    [alert] = [each for each in listed.alerts if "2018-07 should have left" in each.summary]
    assert alert.HasField("resolve_time")

    reply = await admin.retention.RestoreArchiveMonth(restore, metadata=auth)
    back = await claimed(world, "archive_partition", action="restore", month=str(month))
    assert str(back.id) == reply.job_id
    assert await archive_job.handle(back, JobContext(stores, back, LEASE)) == {"rows": 1}
    page = await admin.retention.ListArchiveMonths(
        retention_service_pb2.ListArchiveMonthsRequest(
            filter={"table": "ARCHIVE_TABLE_CAMPAIGN_STATISTICS", "state": "ARCHIVE_STATE_RESTORED"}  # type: ignore[arg-type]
        ),
        metadata=auth,
    )
    assert [(each.month, each.row_count, each.client_count) for each in page.archive_months] == [("2018-07", 1, 1)]
