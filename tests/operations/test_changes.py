"""ChangeService: the record of changes as a list and as a feed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
import redis.asyncio as redis
from google.protobuf import duration_pb2, field_mask_pb2, json_format

from mrm.accounts.v1 import api_key_service_pb2, client_pb2, client_service_pb2
from mrm.common.v1 import options_pb2, time_pb2
from mrm.operations.v1 import change_pb2
from mrm.operations.v1 import change_service_pb2 as pb
from server.app import Application
from server.rpc.auditing import SYSTEM, append_to, recorder
from server.rpc.call import AuditEntry
from storage.postgres import audit
from tests.conftest import settings_for

if TYPE_CHECKING:
    from tests.conftest import Caller, Failing, World

pytestmark = pytest.mark.bar_c

Call = grpc.aio.UnaryStreamCall[pb.WatchChangesRequest, pb.WatchChangesResponse]


async def listed(caller: Caller, page_size: int = 0, **fields: object) -> list[change_pb2.Change]:
    """All pages of a list."""
    request = pb.ListChangesRequest(page_size=page_size, **fields)  # type: ignore[arg-type]
    found: list[change_pb2.Change] = []
    while True:
        reply = await caller.changes.ListChanges(request, metadata=caller.auth)
        found += reply.changes
        if not reply.next_page_token:
            return found
        request.page_token = reply.next_page_token


def of(client_id: str, **fields: object) -> pb.ChangeFilter:
    return pb.ChangeFilter(client_id=client_id, **fields)  # type: ignore[arg-type]


def ids(changes: Iterable[change_pb2.Change]) -> list[str]:
    return [change.resource_id for change in changes]


@asynccontextmanager
async def watching(
    caller: Caller, wanted: pb.ChangeFilter, token: str = "", heartbeat: float = 1.0
) -> AsyncIterator[Call]:
    request = pb.WatchChangesRequest(filter=wanted, resume_token=token)
    request.heartbeat_interval.CopyFrom(duration_pb2.Duration(seconds=int(heartbeat), nanos=int(heartbeat % 1 * 1e9)))
    call = caller.changes.WatchChanges(request, metadata=caller.auth)
    try:
        yield call
    finally:
        call.cancel()


async def read(call: Call) -> pb.WatchChangesResponse:
    async with asyncio.timeout(15):
        message = await call.read()
    assert isinstance(message, pb.WatchChangesResponse), await call.code()
    return message


async def changes_of(call: Call, count: int) -> tuple[list[change_pb2.Change], str]:
    """The next changes of a watch, and the token after the last message read."""
    found: list[change_pb2.Change] = []
    while len(found) < count:
        message = await read(call)
        found += message.batch.changes
        token = message.resume_token
    return found, token


async def append(db: object, client_id: str, resource_id: str) -> None:
    await audit.append(
        db,  # type: ignore[arg-type]
        audit.Record(
            actor_kind="system",
            actor_id=None,
            action="create",
            resource_type="campaign",
            resource_id=resource_id,
            client_id=UUID(client_id),
        ),
    )


class TestList:
    async def test_a_change_tells_who_what_and_why(self, world: World) -> None:
        client = await world.client(settings=client_pb2.ClientSettings(time_zone="Europe/Moscow"))
        changed = client_pb2.Client(client_id=client.client_id)
        changed.settings.time_zone = "Asia/Omsk"
        changed.settings.extra.update({"colour": "red"})
        mask = field_mask_pb2.FieldMask(paths=["settings.time_zone", "settings.extra"])
        await world.admin.clients.UpdateClient(
            client_service_pb2.UpdateClientRequest(client=changed, update_mask=mask),
            metadata=(*world.admin.auth, ("x-request-id", "request-of-the-test")),
        )
        update, create = await listed(world.admin, filter=of(client.client_id))
        assert (create.action, update.action) == ("create", "update")
        assert update.resource_type == "client"
        assert update.resource_id == update.client_id == client.client_id
        assert update.actor.kind == change_pb2.CHANGE_ACTOR_KIND_USER
        assert update.actor.actor_id == str(world.admin.user_id)
        assert update.cause.kind == change_pb2.CHANGE_CAUSE_KIND_USER
        assert update.method == "/mrm.accounts.v1.ClientService/UpdateClient"
        assert update.request_id == "request-of-the-test"
        assert abs(update.change_time.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(minutes=1)
        assert {field.path: json_format.MessageToDict(field) for field in update.fields} == {
            "settings.extra.colour": {"path": "settings.extra.colour", "after": "red"},
            "settings.time_zone": {"path": "settings.time_zone", "before": "Europe/Moscow", "after": "Asia/Omsk"},
        }
        assert "display_name" in [field.path for field in create.fields]
        assert not any(field.HasField("before") for field in create.fields)

    async def test_a_secret_is_never_recorded(self, world: World) -> None:
        reply = await world.admin.api_keys.CreateApiKey(
            api_key_service_pb2.CreateApiKeyRequest(
                display_name="audited", permissions=[options_pb2.PERMISSION_CHANGES_READ], all_clients=True
            ),
            metadata=world.admin.auth,
        )
        (change,) = await listed(world.admin, filter=pb.ChangeFilter(resource_id=reply.api_key.api_key_id))
        assert change.action == "create"
        assert reply.secret not in str(change)

    async def test_filters_select(self, world: World) -> None:
        client = await world.client()
        project = await world.project(client.client_id)
        campaign = await world.campaign(project.project_id)
        async with world.database.transaction("job") as tx:
            record = recorder(append_to(tx), SYSTEM, cause=audit.Cause("job", "17", "the budget is spent"))
            entry = AuditEntry(
                "pause",
                "campaign",
                UUID(campaign.campaign_id),
                UUID(client.client_id),
                UUID(project.project_id),
                campaign,
                None,
            )
            await record(entry)
        made = {
            "client": client.client_id,
            "project": project.project_id,
            "campaign": campaign.campaign_id,
        }
        now = datetime.now(UTC)
        for expected, wanted in [
            (["campaign", "campaign", "project", "client"], {}),
            (["campaign", "campaign", "project"], {"project_id": project.project_id}),
            (["campaign", "campaign"], {"resource_types": ["campaign"]}),
            (["project", "client"], {"resource_types": ["client", "project"]}),
            (["project"], {"resource_id": project.project_id.upper()}),
            (["campaign"], {"actions": ["pause", "resume"]}),
            (["campaign"], {"actor_kind": change_pb2.CHANGE_ACTOR_KIND_SYSTEM}),
            (["campaign", "project", "client"], {"actor_id": str(world.admin.user_id)}),
            ([], {"actor_id": str(uuid4())}),
        ]:
            found = await listed(world.admin, filter=of(client.client_id, **wanted))
            assert ids(found) == [made[kind] for kind in expected], wanted
        (stopped,) = await listed(world.admin, filter=of(client.client_id, actions=["pause"]))
        assert stopped.actor == change_pb2.ChangeActor(kind=change_pb2.CHANGE_ACTOR_KIND_SYSTEM)
        assert stopped.cause == change_pb2.ChangeCause(
            kind=change_pb2.CHANGE_CAUSE_KIND_JOB, cause_id="17", description="the budget is spent"
        )
        assert all(field.HasField("before") and not field.HasField("after") for field in stopped.fields)
        for begin, expected_count in [(-60, 4), (-3600, 0)]:
            times = time_pb2.TimeRange()
            times.start_time.FromDatetime(now + timedelta(seconds=begin))
            times.end_time.FromDatetime(now + timedelta(seconds=begin + 120))
            assert len(await listed(world.admin, filter=of(client.client_id), times=times)) == expected_count

    async def test_pages_hold_every_change_once_in_both_directions(self, world: World, failing: Failing) -> None:
        client = await world.client()
        added = [str(uuid4()) for _ in range(25)]
        for resource_id in added:
            await append(world.database, client.client_id, resource_id)
        wanted = of(client.client_id, actions=["create"], resource_types=["campaign"])
        newest = await listed(world.admin, filter=wanted, page_size=4)
        assert ids(newest) == added[::-1]
        oldest = await listed(world.admin, filter=wanted, page_size=7, order=pb.CHANGE_ORDER_OLDEST_FIRST)
        assert ids(oldest) == added
        request = pb.ListChangesRequest(filter=wanted, page_size=4)
        page = await world.admin.changes.ListChanges(request, metadata=world.admin.auth)
        await append(world.database, client.client_id, str(uuid4()))
        request.page_token = page.next_page_token
        following = await world.admin.changes.ListChanges(request, metadata=world.admin.auth)
        assert ids(following.changes) == added[::-1][4:8], "a new change must not shift the pages"
        stranger = await world.user("pm", client.client_id)
        for caller, changed in [
            (stranger, request),
            (world.admin, pb.ListChangesRequest(filter=of(client.client_id), page_token=page.next_page_token)),
        ]:
            failure = await failing(caller.changes.ListChanges(changed, metadata=caller.auth))
            assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")

    async def test_large_changes_make_smaller_pages(self, world: World) -> None:
        client = await world.client()
        for _ in range(5):
            await audit.append(
                world.database,
                audit.Record(
                    actor_kind="system",
                    actor_id=None,
                    action="update",
                    resource_type="client",
                    resource_id=client.client_id,
                    client_id=UUID(client.client_id),
                    diff={"text": [None, "x" * 400_000]},
                ),
            )
        page = await world.admin.changes.ListChanges(
            pb.ListChangesRequest(filter=of(client.client_id, actions=["update"])), metadata=world.admin.auth
        )
        assert len(page.changes) == 2
        assert page.next_page_token
        assert len(await listed(world.admin, filter=of(client.client_id, actions=["update"]))) == 5


class TestScope:
    async def test_a_caller_sees_the_own_clients_the_readable_kinds_and_the_own_account(self, world: World) -> None:
        mine, other = await world.client(), await world.client()
        pm = await world.user("pm", mine.client_id)
        analyst = await world.user("analyst", mine.client_id)
        nobody = await world.user("pm")
        for kind, client_id in [
            ("client", mine.client_id),
            ("integration", mine.client_id),
            ("something_new", mine.client_id),
            ("client", other.client_id),
        ]:
            await audit.append(
                world.database,
                audit.Record(
                    actor_kind="system",
                    actor_id=None,
                    action="probe",
                    resource_type=kind,
                    resource_id=uuid4(),
                    client_id=UUID(client_id),
                ),
            )
        for subject in (pm, nobody):
            await audit.append(
                world.database,
                audit.Record(
                    actor_kind="system",
                    actor_id=None,
                    action="probe",
                    resource_type="user",
                    resource_id=str(subject.user_id),
                ),
            )
        probes = pb.ChangeFilter(actions=["probe"])
        seen = {
            name: {(change.resource_type, change.client_id) for change in await listed(caller, filter=probes)}
            for name, caller in {"pm": pm, "analyst": analyst, "nobody": nobody, "admin": world.admin}.items()
        }
        of_mine = {("client", mine.client_id), ("integration", mine.client_id)}
        assert seen["pm"] == of_mine | {("user", "")}
        assert seen["analyst"] == {("client", mine.client_id)}
        assert seen["nobody"] == {("user", "")}
        unknown = ("something_new", mine.client_id)
        assert seen["admin"] >= of_mine | {unknown, ("client", other.client_id), ("user", "")}
        own = await listed(pm, filter=pb.ChangeFilter(actions=["probe"], resource_types=["user"]))
        assert ids(own) == [str(pm.user_id)]
        assert await listed(pm, filter=of(other.client_id)) == []

    async def test_a_key_sees_its_clients_and_what_it_may_read(self, world: World, failing: Failing) -> None:
        mine, other = await world.client(), await world.client()
        project = await world.project(mine.client_id)
        await world.project(other.client_id)
        key = await world.key(
            [mine.client_id], options_pb2.PERMISSION_CHANGES_READ, options_pb2.PERMISSION_PROJECTS_READ
        )
        assert ids(await listed(key)) == [project.project_id]
        without = await world.key([mine.client_id], options_pb2.PERMISSION_PROJECTS_READ)
        failure = await failing(without.changes.ListChanges(pb.ListChangesRequest(), metadata=without.auth))
        assert failure.code is grpc.StatusCode.PERMISSION_DENIED

    async def test_a_watch_sends_nothing_of_others_and_obeys_a_lost_membership(self, world: World) -> None:
        mine, other = await world.client(), await world.client()
        member = await world.user("pm", mine.client_id)
        async with watching(member, pb.ChangeFilter()) as call:
            assert (await read(call)).WhichOneof("kind") == "checkpoint"
            await world.project(other.client_id)
            project = await world.project(mine.client_id)
            found, _ = await changes_of(call, 1)
            assert ids(found) == [project.project_id]
            await world.database.execute("DELETE FROM client_memberships WHERE user_id = $1", member.user_id)
            await world.project(mine.client_id)
            for _ in range(3):
                assert not (await read(call)).HasField("batch")


class TestWatch:
    async def test_changes_come_soon_and_silence_is_broken(self, world: World) -> None:
        client = await world.client()
        async with watching(world.admin, of(client.client_id)) as call:
            first = await read(call)
            assert first.WhichOneof("kind") == "checkpoint"
            assert first.resume_token
            begun = asyncio.get_running_loop().time()
            project = await world.project(client.client_id)
            found, token = await changes_of(call, 1)
            assert asyncio.get_running_loop().time() - begun < 1.5, "a signal wakes the feed, not the poll"
            assert ids(found) == [project.project_id]
            quiet = await read(call)
            assert quiet.WhichOneof("kind") == "heartbeat"
            assert quiet.resume_token == token
            assert not quiet.HasField("lag")
            await world.client()
            elsewhere = await read(call)
            assert elsewhere.WhichOneof("kind") == "checkpoint", "nothing matched, but the token moves on"
            assert elsewhere.resume_token != token

    async def test_a_late_commit_is_not_skipped(self, world: World) -> None:
        client = await world.client()
        late, early = str(uuid4()), str(uuid4())
        async with watching(world.admin, of(client.client_id)) as call:
            await read(call)
            async with world.database.transaction("slow") as slow:
                await append(slow, client.client_id, late)
                await append(world.database, client.client_id, early)
                held = await read(call)
                while held.lag.ToTimedelta() < timedelta(seconds=1):
                    assert not held.HasField("batch")
                    held = await read(call)
            found, _ = await changes_of(call, 2)
            assert ids(found) == [late, early], "in the order of their numbers"

    async def test_foreign_transactions_hold_nothing_back(self, world: World) -> None:
        client = await world.client()
        async with world.database.transaction("foreign") as foreign:
            # It writes, and so has a transaction id older than that of the change.
            await foreign.execute("CREATE TEMP TABLE elsewhere AS SELECT 1 AS one")
            async with watching(world.admin, of(client.client_id)) as call:
                await read(call)
                project = await world.project(client.client_id)
                found, _ = await changes_of(call, 1)
            assert ids(found) == [project.project_id]
            await foreign.execute("DROP TABLE elsewhere")

    async def test_resuming_under_concurrent_writers_loses_and_repeats_nothing(self, world: World) -> None:
        client = await world.client()
        written: list[str] = []
        connects = 0

        async def write(number: int) -> None:
            pool = await asyncpg.connect(world.connections.postgres_dsn)
            try:
                for step in count():
                    if step >= 20 and connects > 8:
                        return
                    transaction = pool.transaction()
                    await transaction.start()
                    made = [str(uuid4()) for _ in range(1 + (number + step) % 3)]
                    for resource_id in made:
                        await pool.execute(
                            "INSERT INTO audit_log (actor_kind, resource_type, resource_id, action, client_id)"
                            " VALUES ('system', 'campaign', $1, 'create', $2)",
                            resource_id,
                            UUID(client.client_id),
                        )
                        await asyncio.sleep(0.003 * ((number * step) % 5))
                    if (number + step) % 7 == 0:
                        await transaction.rollback()
                    else:
                        await transaction.commit()
                        written.extend(made)
            finally:
                await pool.close()

        wanted = of(client.client_id, resource_types=["campaign"])
        seen: list[change_pb2.Change] = []
        token = (
            await world.admin.changes.GetOldestChangeToken(
                pb.GetOldestChangeTokenRequest(filter=wanted), metadata=world.admin.auth
            )
        ).resume_token
        writing = asyncio.gather(*(write(number) for number in range(6)))
        async with asyncio.timeout(60):
            while not writing.done() or len(seen) < len(written):
                connects += 1
                async with watching(world.admin, wanted, token) as call:
                    for _ in range(2 + connects % 3):
                        message = await read(call)
                        seen += message.batch.changes
                        token = message.resume_token
        await writing
        assert len(written) > 100
        assert len(seen) == len(written), "no repetition"
        assert set(ids(seen)) == set(written), "no gap"
        order = [int(change.change_id) for change in seen]
        assert order == sorted(order)

    async def test_losing_the_signal_connection_delays_but_loses_nothing(self, world: World) -> None:
        client = await world.client()
        async with watching(world.admin, of(client.client_id)) as call:
            await read(call)
            await _kill_subscribers(world)
            made = []
            for _ in range(5):
                # Written past this server, which therefore has no word of it but by the poll.
                made.append(str(uuid4()))
                await append(world.database, client.client_id, made[-1])
            found, _ = await changes_of(call, 5)
            assert ids(found) == made

    async def test_another_process_hears_of_a_change_at_once(self, world: World, failing: Failing) -> None:
        client = await world.client()
        settings = settings_for(world.connections)
        # Its own look would come too late.
        settings.watch.poll = 60.0
        second = Application(settings)
        await second.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{second.port}") as channel:
                there = type(world.admin)(channel, world.admin.token)
                async with watching(there, of(client.client_id)) as call:
                    token = (await read(call)).resume_token
                    project = await world.project(client.client_id)
                    found, _ = await changes_of(call, 1)
                    assert ids(found) == [project.project_id]
                async with watching(world.admin, of(client.client_id), token) as call:
                    found, token = await changes_of(call, 1)
                    assert ids(found) == [project.project_id], "a token of one process works in every other"
                async with watching(there, of(client.client_id), token, heartbeat=30) as call:
                    await read(call)
                    await second.stop()
                    async with asyncio.timeout(5):
                        failure = await failing(call.read())
                    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        finally:
            await second.stop()


class TestTokens:
    async def token(self, caller: Caller, wanted: pb.ChangeFilter) -> str:
        request = pb.GetOldestChangeTokenRequest(filter=wanted)
        return (await caller.changes.GetOldestChangeToken(request, metadata=caller.auth)).resume_token

    async def refused(self, caller: Caller, wanted: pb.ChangeFilter, token: str, failing: Failing) -> tuple[str, str]:
        async with watching(caller, wanted, token) as call:
            failure = await failing(call.read())
        return failure.code.name, failure.reason

    async def test_a_token_passes_for_its_caller_and_filter_only(self, world: World, failing: Failing) -> None:
        client = await world.client()
        member = await world.user("pm", client.client_id)
        wanted = of(client.client_id, resource_types=["campaign", "client"])
        token = await self.token(member, wanted)
        invalid = ("INVALID_ARGUMENT", "RESUME_TOKEN_INVALID")
        assert await self.refused(world.admin, wanted, token, failing) == invalid
        assert await self.refused(member, of(client.client_id), token, failing) == invalid
        assert await self.refused(member, wanted, token[:-2] + "AA", failing) == invalid
        spelled = of(client.client_id.upper(), resource_types=["client", "campaign"])
        async with watching(member, spelled, token) as call:
            found, _ = await changes_of(call, 1)
            assert ids(found) == [client.client_id]

    async def test_the_oldest_token_begins_with_all_there_is(self, world: World) -> None:
        client = await world.client()
        project = await world.project(client.client_id)
        request = pb.GetOldestChangeTokenRequest(filter=of(client.client_id))
        reply = await world.admin.changes.GetOldestChangeToken(request, metadata=world.admin.auth)
        assert reply.HasField("oldest_change_time")
        async with watching(world.admin, of(client.client_id), reply.resume_token) as call:
            found, _ = await changes_of(call, 2)
        assert ids(found) == [client.client_id, project.project_id]
        assert found[0].change_time == reply.oldest_change_time
        empty = pb.GetOldestChangeTokenRequest(filter=of(str(uuid4())))
        reply = await world.admin.changes.GetOldestChangeToken(empty, metadata=world.admin.auth)
        assert not reply.HasField("oldest_change_time")

    async def test_a_token_from_before_the_floor_or_beyond_the_end_is_out_of_range(
        self, world: World, failing: Failing
    ) -> None:
        client = await world.client()
        wanted = of(client.client_id)
        old = await self.token(world.admin, wanted)
        async with watching(world.admin, wanted) as call:
            present = (await read(call)).resume_token
        top = await world.database.fetchval("SELECT max(seq) FROM audit_log")
        await world.database.execute("UPDATE change_feed SET floor = $1", top)
        gone = ("OUT_OF_RANGE", "CHANGES_GONE")
        assert await self.refused(world.admin, wanted, old, failing) == gone
        async with watching(world.admin, wanted, present) as call:
            project = await world.project(client.client_id)
            assert ids((await changes_of(call, 1))[0]) == [project.project_id]
            fresh = await self.token(world.admin, wanted)
        async with watching(world.admin, wanted, fresh) as call:
            assert ids((await changes_of(call, 1))[0]) == [project.project_id]


async def _kill_subscribers(world: World) -> None:
    client = redis.Redis.from_url(world.connections.redis_dsn)
    try:
        assert await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") > 0  # type: ignore[no-untyped-call]
    finally:
        await client.aclose()
