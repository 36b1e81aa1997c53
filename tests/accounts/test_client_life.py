"""The life of clients: the tree, the archive, the two steps of a purge, and who may see them."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.accounts.v1 import client_pb2
from mrm.accounts.v1 import client_service_pb2 as pb
from mrm.campaigns.v1 import campaign_service_pb2
from mrm.common.v1 import options_pb2
from mrm.planning.v1 import project_service_pb2
from mrm.statistics.v1 import statistics_service_pb2
from server.accounts.client_service import PURGE_TOPICS
from storage.clickhouse.connect import ClickHouse
from tests.campaigns import importing
from tests.conftest import Caller, Failing, World, impression

AGENCY = client_pb2.CLIENT_TYPE_AGENCY
MASK: Any = {"paths": ["display_name"]}


async def archive(world: World, client_id: str) -> client_pb2.Client:
    request = pb.ArchiveClientRequest(client_id=client_id)
    return (await world.admin.clients.ArchiveClient(request, metadata=world.admin.auth)).client


async def get(caller: Caller, client_id: str) -> client_pb2.Client:
    request = pb.GetClientRequest(client_id=client_id)
    return (await caller.clients.GetClient(request, metadata=caller.auth)).client


async def listed(caller: Caller, **fields: Any) -> list[str]:
    """Names of the clients of a list, over all its pages."""
    names: list[str] = []
    token = ""
    while True:
        request = pb.ListClientsRequest(page_size=2, page_token=token, **fields)
        page = await caller.clients.ListClients(request, metadata=caller.auth)
        names += [client.display_name for client in page.clients]
        token = page.next_page_token
        if not token:
            return names


async def test_lists_are_searched_and_ordered(world: World) -> None:
    agency = await world.client(type=AGENCY)
    for name in ("beta", "Alpha", "gamma", "ALPHA two", "delta"):
        await world.client(parent_client_id=agency.client_id, display_name=name)
    under: dict[str, Any] = {"parent_client_id": agency.client_id}
    assert await listed(world.admin, filter=under) == ["beta", "Alpha", "gamma", "ALPHA two", "delta"]
    newest = await listed(world.admin, filter=under, order=pb.CLIENT_ORDER_CREATE_TIME_DESC)
    assert newest == ["delta", "ALPHA two", "gamma", "Alpha", "beta"]
    by_name = await listed(world.admin, filter=under, order=pb.CLIENT_ORDER_DISPLAY_NAME)
    assert by_name == ["Alpha", "ALPHA two", "beta", "delta", "gamma"]
    assert await listed(world.admin, filter={**under, "display_name_contains": "lpha"}) == ["Alpha", "ALPHA two"]
    assert await listed(world.admin, filter={**under, "display_name_contains": "%"}) == []


async def test_a_client_moves_with_everything_under_it(world: World, failing: Failing) -> None:
    old, new = await world.client(type=AGENCY), await world.client(type=AGENCY)
    branch = await world.client(type=AGENCY, parent_client_id=old.client_id)
    leaf = await world.client(parent_client_id=branch.client_id)
    of_old = await world.user("account_manager", old.client_id)
    of_new = await world.user("analyst", new.client_id)
    admin = world.admin

    async def move(caller: Caller, client_id: str, parent: str, etag: str = "") -> client_pb2.Client:
        request = pb.MoveClientRequest(client_id=client_id, parent_client_id=parent, etag=etag)
        return (await caller.clients.MoveClient(request, metadata=caller.auth)).client

    for parent in (leaf.client_id, str(uuid4())):
        assert (await failing(move(admin, branch.client_id, parent))).code in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
        )
    cycle = await world.client(type=AGENCY, parent_client_id=branch.client_id)
    for parent in (cycle.client_id, branch.client_id):
        failure = await failing(move(admin, branch.client_id, parent))
        assert failure.fields == {"parent_client_id": "PARENT_CYCLE"}
    assert (await failing(move(of_old, branch.client_id, new.client_id))).code == grpc.StatusCode.NOT_FOUND
    failure = await failing(move(of_old, branch.client_id, ""))
    assert (failure.code, failure.metadata["permission"]) == (grpc.StatusCode.PERMISSION_DENIED, "ALL_CLIENTS")
    assert (await failing(move(admin, branch.client_id, new.client_id, "r99"))).reason == "ETAG_MISMATCH"

    moved = await move(admin, branch.client_id, new.client_id, branch.etag)
    assert moved.parent_client_id == new.client_id
    assert (await get(of_new, leaf.client_id)).client_id == leaf.client_id
    assert (await failing(get(of_old, leaf.client_id))).code == grpc.StatusCode.NOT_FOUND
    assert (await move(admin, branch.client_id, "")).parent_client_id == ""
    assert (await failing(get(of_new, leaf.client_id))).code == grpc.StatusCode.NOT_FOUND


async def test_the_archive_is_read_only_for_everything_under_it(world: World, failing: Failing) -> None:
    agency = await world.client(type=AGENCY)
    child = await world.client(parent_client_id=agency.client_id)
    project = await world.project(child.client_id)
    campaign = await world.campaign(project.project_id)
    admin = world.admin
    archived = await archive(world, agency.client_id)
    assert archived.read_only and archived.HasField("archive_time")
    seen = await get(admin, child.client_id)
    assert seen.read_only and not seen.HasField("archive_time")

    writes: dict[str, Any] = {
        "update": lambda: admin.clients.UpdateClient(
            pb.UpdateClientRequest(client={"client_id": child.client_id, "display_name": "x"}, update_mask=MASK),  # type: ignore[arg-type]
            metadata=admin.auth,
        ),
        "child": lambda: admin.clients.CreateClient(
            pb.CreateClientRequest(
                client=client_pb2.Client(display_name="x", type=AGENCY, parent_client_id=agency.client_id)
            ),
            metadata=admin.auth,
        ),
        "move": lambda: admin.clients.MoveClient(pb.MoveClientRequest(client_id=child.client_id), metadata=admin.auth),
        "member": lambda: admin.clients.AddClientMember(
            pb.AddClientMemberRequest(client_id=child.client_id, user_id=str(admin.user_id)), metadata=admin.auth
        ),
        "archive": lambda: admin.clients.ArchiveClient(
            pb.ArchiveClientRequest(client_id=agency.client_id), metadata=admin.auth
        ),
        "project": lambda: admin.projects.CreateProject(
            project_service_pb2.CreateProjectRequest(project={"client_id": child.client_id, "display_name": "x"}),  # type: ignore[arg-type]
            metadata=admin.auth,
        ),
        "update project": lambda: admin.projects.UpdateProject(
            project_service_pb2.UpdateProjectRequest(
                project={"project_id": project.project_id, "display_name": "x"},  # type: ignore[arg-type]
                update_mask=MASK,
            ),
            metadata=admin.auth,
        ),
        "campaign": lambda: admin.campaigns.CreateCampaign(
            campaign_service_pb2.CreateCampaignRequest(
                campaign={"project_id": project.project_id, "platform": "PLATFORM_OTHER", "display_name": "x"}  # type: ignore[arg-type]
            ),
            metadata=admin.auth,
        ),
        "update campaign": lambda: admin.campaigns.UpdateCampaign(
            campaign_service_pb2.UpdateCampaignRequest(
                campaign={"campaign_id": campaign.campaign_id, "display_name": "x"},  # type: ignore[arg-type]
                update_mask=MASK,
            ),
            metadata=admin.auth,
        ),
    }

    for name, write in writes.items():
        failure = await failing(write())
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATE_FORBIDS"), name
        assert failure.metadata["state"] == "archived", name
    # The jobs that keep figures are no callers, and go on.
    tag = await world.database.execute(
        "UPDATE campaigns SET budget_spent = 1 WHERE id = $1", UUID(campaign.campaign_id)
    )
    assert tag == "UPDATE 1"

    request = pb.RestoreClientRequest(client_id=agency.client_id, etag=archived.etag)
    restored = (await admin.clients.RestoreClient(request, metadata=admin.auth)).client
    assert not restored.read_only and not restored.HasField("archive_time")
    for name in ("update", "project", "update project", "campaign", "update campaign"):
        await writes[name]()
    assert (await failing(admin.clients.RestoreClient(request, metadata=admin.auth))).reason == "ETAG_MISMATCH"
    request.etag = ""
    failure = await failing(admin.clients.RestoreClient(request, metadata=admin.auth))
    assert (failure.reason, failure.metadata["state"]) == ("STATE_FORBIDS", "active")


async def test_a_purge_has_two_steps_and_leaves_nothing_to_see(world: World, failing: Failing) -> None:
    agency = await world.client(type=AGENCY)
    child = await world.client(parent_client_id=agency.client_id, display_name="Secretive Ltd", industry="retail")
    project = await world.project(child.client_id)
    campaign = await world.campaign(project.project_id)
    await importing.bring(world.admin, project.project_id, [[importing.row(1, "x")]], source_name="Secretive.csv")
    member = await world.user("account_manager", agency.client_id)
    admin = world.admin
    producer = await world.key([agency.client_id])
    events = statistics_service_pb2.IngestEventsRequest(client_id=child.client_id)
    events.batch.events.append(impression(campaign.campaign_id))
    await producer.statistics.IngestEvents(events, metadata=producer.auth)

    async def ask(client_id: str) -> pb.RequestClientPurgeResponse:
        request = pb.RequestClientPurgeRequest(client_id=client_id)
        return await admin.clients.RequestClientPurge(request, metadata=admin.auth)

    async def confirm(token: str, caller: Caller = admin) -> client_pb2.Client:
        request = pb.ConfirmClientPurgeRequest(client_id=child.client_id, confirmation_token=token)
        return (await caller.clients.ConfirmClientPurge(request, metadata=caller.auth)).client

    assert (await failing(ask(child.client_id))).metadata["state"] == "active"
    await archive(world, child.client_id)
    await archive(world, agency.client_id)
    assert (await failing(ask(agency.client_id))).metadata["state"] == "has_clients"
    failure = await failing(confirm("x"))
    assert (failure.reason, failure.metadata["wanted"]) == ("STATE_FORBIDS", "purge_requested")

    first = await ask(child.client_id)
    assert first.client.HasField("purge_allowed_time")
    assert (await ask(child.client_id)).confirmation_token == first.confirmation_token
    failure = await failing(confirm(first.confirmation_token))
    assert (failure.reason, failure.metadata["state"]) == ("STATE_FORBIDS", "purge_requested")
    assert failure.retry_seconds == pytest.approx(7 * 86400, abs=600)
    assert (await failing(confirm(first.confirmation_token, member))).code == grpc.StatusCode.PERMISSION_DENIED
    # Withdrawn and asked again, the first token is worth nothing.
    await admin.clients.RestoreClient(pb.RestoreClientRequest(client_id=child.client_id), metadata=admin.auth)
    await archive(world, child.client_id)
    # A week goes by.
    await ask(child.client_id)
    await world.database.execute(
        "UPDATE clients SET purge_allowed_at = purge_allowed_at - interval '7 days' WHERE id = $1",
        UUID(child.client_id),
    )
    second = await ask(child.client_id)
    for token in (first.confirmation_token, "x"):
        assert (await failing(confirm(token))).fields == {"confirmation_token": "CONFIRMATION_TOKEN_INVALID"}

    purged = await confirm(second.confirmation_token)
    assert purged.HasField("purge_time") and purged.display_name == "purged" and purged.industry == ""
    for caller in (admin, member):
        for call in (
            get(caller, child.client_id),
            caller.projects.GetProject(
                project_service_pb2.GetProjectRequest(project_id=project.project_id), metadata=caller.auth
            ),
            caller.campaigns.GetCampaign(
                campaign_service_pb2.GetCampaignRequest(campaign_id=campaign.campaign_id), metadata=caller.auth
            ),
        ):
            assert (await failing(call)).code == grpc.StatusCode.NOT_FOUND
    names = await world.database.fetchrow(
        """SELECT cl.name, p.name, c.name FROM clients cl JOIN projects p ON p.client_id = cl.id
           JOIN campaigns c ON c.project_id = p.id WHERE cl.id = $1""",
        UUID(child.client_id),
    )
    assert set(names or ()) == {"purged"}
    file = await world.database.fetchval(
        "SELECT source_name FROM campaign_imports WHERE client_id = $1", UUID(child.client_id)
    )
    assert file == ""
    waiting = await world.database.fetchval(
        "SELECT count(*) FROM outbox WHERE topic = ANY ($1) AND key = $2", list(PURGE_TOPICS), child.client_id
    )
    assert waiting == len(PURGE_TOPICS)
    failure = await failing(producer.statistics.IngestEvents(events, metadata=producer.auth))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    clickhouse = ClickHouse(world.connections.clickhouse_dsn, connections=1)
    try:
        async with asyncio.timeout(30):
            for table in ("campaign_events", "campaign_metrics_hourly", "campaigns_dim"):
                question = f"SELECT count() FROM {table} WHERE client_id = {{client:UUID}}"
                while (await clickhouse.fetch(question, {"client": UUID(child.client_id)}))[0][0]:
                    await asyncio.sleep(0.2)
    finally:
        await clickhouse.close()
    # With its last child gone, the agency may follow.
    assert (await ask(agency.client_id)).client.HasField("purge_allowed_time")


async def test_members_come_and_go(world: World, failing: Failing) -> None:
    client, other = await world.client(), await world.client()
    user = await world.user("analyst", other.client_id)
    manager = await world.user("account_manager", client.client_id)

    async def add(caller: Caller, client_id: str, user_id: str) -> client_pb2.ClientMember:
        request = pb.AddClientMemberRequest(client_id=client_id, user_id=user_id)
        return (await caller.clients.AddClientMember(request, metadata=caller.auth)).member

    async def members(caller: Caller, client_id: str) -> list[str]:
        request = pb.ListClientMembersRequest(client_id=client_id)
        page = await caller.clients.ListClientMembers(request, metadata=caller.auth)
        return [each.user_id for each in page.members]

    assert (await failing(add(manager, other.client_id, str(user.user_id)))).code == grpc.StatusCode.NOT_FOUND
    assert (await failing(add(manager, client.client_id, str(uuid4())))).metadata["resource_type"] == "user"
    assert (await failing(add(user, other.client_id, str(user.user_id)))).code == grpc.StatusCode.PERMISSION_DENIED
    added = await add(manager, client.client_id, str(user.user_id))
    assert added.email.startswith("analyst-")
    assert await add(manager, client.client_id, str(user.user_id)) == added
    assert await members(user, client.client_id) == sorted([str(manager.user_id), str(user.user_id)])
    assert (await failing(members(manager, other.client_id))).code == grpc.StatusCode.NOT_FOUND
    assert len(await listed(world.admin, filter={"member_user_id": str(user.user_id)})) == 2
    recorded = await world.database.fetchval(
        "SELECT count(*) FROM audit_log WHERE client_id = $1 AND action = 'add_member'", UUID(client.client_id)
    )
    assert recorded == 1

    request = pb.RemoveClientMemberRequest(client_id=client.client_id, user_id=str(user.user_id))
    removed = (await manager.clients.RemoveClientMember(request, metadata=manager.auth)).member
    assert removed == added
    assert (await failing(get(user, client.client_id))).code == grpc.StatusCode.NOT_FOUND
    failure = await failing(manager.clients.RemoveClientMember(request, metadata=manager.auth))
    assert failure.metadata["resource_type"] == "client_member"


@pytest.mark.bar_c
async def test_an_open_watch_ends_within_a_second_of_its_membership(world: World, failing: Failing) -> None:
    agency = await world.client(type=AGENCY)
    client_id, _ = await world.tenant(parent_client_id=agency.client_id)
    admin = world.admin
    user = await world.user("analyst", agency.client_id, client_id)
    by_key = await world.key([agency.client_id], options_pb2.PERMISSION_STATISTICS_READ)

    async def watch(caller: Caller) -> Any:
        stream = caller.statistics.WatchMetrics(
            statistics_service_pb2.WatchMetricsRequest(client_id=client_id), metadata=caller.auth
        )
        await stream.read()
        return stream

    async def drained(stream: Any) -> None:
        while await stream.read() is not grpc.aio.EOF:
            pass

    async def remove(of: str) -> None:
        request = pb.RemoveClientMemberRequest(client_id=of, user_id=str(user.user_id))
        await admin.clients.RemoveClientMember(request, metadata=admin.auth)

    watching, keyed, watched_by_all = await watch(user), await watch(by_key), await watch(admin)
    await remove(agency.client_id)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(reading := asyncio.create_task(drained(watching))), 1.2)
    begun = time.monotonic()
    await remove(client_id)
    failure = await failing(reading)
    assert time.monotonic() - begun < 1.0
    assert (failure.code, failure.metadata["resource_id"]) == (grpc.StatusCode.NOT_FOUND, client_id)

    # A key's reach ends when the client leaves the agency it is for.
    begun = time.monotonic()
    await admin.clients.MoveClient(pb.MoveClientRequest(client_id=client_id), metadata=admin.auth)
    assert (await failing(drained(keyed))).code == grpc.StatusCode.NOT_FOUND
    assert time.monotonic() - begun < 1.0
    watched_by_all.cancel()
