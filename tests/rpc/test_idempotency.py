"""A mutation under one `request_id` happens once, whatever is repeated, at one moment or later."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.accounts.v1 import client_pb2, client_service_pb2
from mrm.planning.v1 import project_service_pb2
from server.app import Application
from server.jobs import retention
from server.jobs.handling import JobContext, Stores
from storage.postgres import idempotency, jobs
from storage.postgres.ids import new_id
from tests.conftest import Failing, World, settings_for

TWINS = 200


def creation(request_id: str, name: str) -> client_service_pb2.CreateClientRequest:
    return client_service_pb2.CreateClientRequest(
        client=client_pb2.Client(display_name=name, type=client_pb2.CLIENT_TYPE_AGENCY), request_id=request_id
    )


@pytest.mark.bar_c
@pytest.mark.timeout(180)
async def test_two_hundred_first_writes_on_two_processes_make_one_row(world: World) -> None:
    other = Application(settings_for(world.connections))
    await other.start()
    name = f"Once {uuid4()}"
    request = creation(str(uuid4()), name)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{other.port}") as channel:
        stubs = [world.admin.clients, type(world.admin)(channel).clients]
        replies = await asyncio.gather(
            *(stubs[n % 2].CreateClient(request, metadata=world.admin.auth, timeout=60) for n in range(TWINS))
        )
    await other.stop()
    assert len(replies) == TWINS
    assert len({reply.SerializeToString(deterministic=True) for reply in replies}) == 1
    for table, column, value in (
        ("clients", "name", name),
        ("audit_log", "resource_id", replies[0].client.client_id),
        ("idempotency_keys", "request_id::text", request.request_id),
    ):
        sql = f"SELECT count(*) FROM {table} WHERE {column} = $1"
        assert await world.database.fetchval(sql, value) == 1, table


async def test_a_replay_is_the_first_reply_whatever_came_after(world: World, failing: Failing) -> None:
    request = creation(str(uuid4()), f"First {uuid4()}")
    first = await world.admin.clients.CreateClient(request, metadata=world.admin.auth)
    rename = client_service_pb2.UpdateClientRequest(
        client=client_pb2.Client(client_id=first.client.client_id, etag=first.client.etag, display_name="Second"),
        update_mask={"paths": ["display_name"]},  # type: ignore[arg-type]
        request_id=str(uuid4()),
    )
    changed = await world.admin.clients.UpdateClient(rename, metadata=world.admin.auth)
    assert await world.admin.clients.CreateClient(request, metadata=world.admin.auth) == first
    # The etag is outdated by now, and the repeated request is answered nevertheless.
    assert await world.admin.clients.UpdateClient(rename, metadata=world.admin.auth) == changed
    rename.client.display_name = "Third"
    failure = await failing(world.admin.clients.UpdateClient(rename, metadata=world.admin.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert failure.fields == {"request_id": "REQUEST_ID_REUSED"}
    # Another caller's and another method's ids are their own.
    manager = await world.user("account_manager")
    other = await manager.clients.CreateClient(request, metadata=manager.auth)
    assert other.client.client_id != first.client.client_id
    project = project_service_pb2.CreateProjectRequest(
        project={"client_id": first.client.client_id, "display_name": "x"},  # type: ignore[arg-type]
        request_id=request.request_id,
    )
    await world.admin.projects.CreateProject(project, metadata=world.admin.auth)


async def test_a_failed_call_does_not_use_the_id_up(world: World, failing: Failing) -> None:
    parent = await world.client(type=client_pb2.CLIENT_TYPE_AGENCY)
    request = creation(str(uuid4()), f"Child {uuid4()}")
    request.client.parent_client_id = str(uuid4())
    failure = await failing(world.admin.clients.CreateClient(request, metadata=world.admin.auth))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    request.client.parent_client_id = parent.client_id
    made = await world.admin.clients.CreateClient(request, metadata=world.admin.auth)
    assert made.client.parent_client_id == parent.client_id
    assert await world.admin.clients.CreateClient(request, metadata=world.admin.auth) == made


async def test_expired_replies_are_forgotten_by_the_job(world: World, stores: Stores) -> None:
    request = creation(str(uuid4()), f"Again {uuid4()}")
    first = await world.admin.clients.CreateClient(request, metadata=world.admin.auth)
    kept = await world.client()
    await world.database.execute(
        "UPDATE idempotency_keys SET expires_at = now() - interval '1 second' WHERE request_id = $1",
        UUID(request.request_id),
    )
    again = await world.admin.clients.CreateClient(request, metadata=world.admin.auth)
    assert again.client.client_id != first.client.client_id, "an id is free again after its time"
    expired, valid = new_id(), new_id()
    async with world.database.transaction("test") as tx:
        for request_id in (expired, valid):
            await idempotency.claim(tx, UUID(kept.client_id), "/test", request_id, b"h")
            await idempotency.store(tx, UUID(kept.client_id), "/test", request_id, b"reply")
        await tx.execute(
            "UPDATE idempotency_keys SET expires_at = now() - interval '1 second' WHERE request_id = $1", expired
        )
    async with world.database.transaction("test") as tx:
        job = await jobs.enqueue_internal(
            tx, type=retention.TYPE, queue=retention.QUEUE, payload={"table": "idempotency_keys"}
        )
    result = await retention.handle(job, JobContext(stores, job, timedelta(seconds=30)))
    await jobs.cancel_internal(world.database, job.id)
    assert result["deleted"] >= 1
    rows = await world.database.fetch(
        "SELECT request_id FROM idempotency_keys WHERE request_id = ANY ($1::uuid[])", [expired, valid]
    )
    assert [row[0] for row in rows] == [valid]
