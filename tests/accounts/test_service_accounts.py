"""Service accounts, and what belongs to a key that is one of several: bounds, rotation, the end of all at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.accounts.v1 import (
    api_key_pb2,
    api_key_service_pb2,
    client_pb2,
    client_service_pb2,
    service_account_pb2,
    service_account_service_pb2,
    session_service_pb2,
)
from mrm.common.v1 import options_pb2
from mrm.statistics.v1 import statistics_service_pb2
from server.app import Application
from tests.conftest import Caller, Failing, World, settings_for

pb = service_account_service_pb2
keys_pb = api_key_service_pb2
WHO = session_service_pb2.GetCurrentSessionRequest()
READ = options_pb2.PERMISSION_CLIENTS_READ
KEYS = options_pb2.PERMISSION_API_KEYS_WRITE


async def account(world: World, **fields: Any) -> service_account_pb2.ServiceAccount:
    values = {"display_name": f"Program {uuid4()}", **fields}
    request = pb.CreateServiceAccountRequest(service_account=service_account_pb2.ServiceAccount(**values))
    return (await world.admin.service_accounts.CreateServiceAccount(request, metadata=world.admin.auth)).service_account


async def key(world: World, maker: Caller | None = None, **fields: Any) -> tuple[api_key_pb2.ApiKey, Caller]:
    maker = maker or world.admin
    values = {"display_name": "test", "permissions": [READ], **fields}
    values.setdefault("all_clients", "client_ids" not in values)
    reply = await maker.api_keys.CreateApiKey(keys_pb.CreateApiKeyRequest(**values), metadata=maker.auth)
    return reply.api_key, world.caller(reply.secret)


async def works(caller: Caller) -> bool:
    try:
        await caller.sessions.GetCurrentSession(WHO, metadata=caller.auth)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.UNAUTHENTICATED:
            raise
        return False
    return True


@pytest.fixture
async def second(world: World) -> AsyncIterator[Caller]:
    """The same engines through another server process's eyes."""
    application = Application(settings_for(world.connections))
    await application.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        yield Caller(channel)
    await application.stop()


async def test_an_account_lives(world: World, failing: Failing) -> None:
    admin = world.admin
    made = await account(world, description="Counts clicks")
    assert made.etag
    assert not made.HasField("disable_time")
    named = pb.GetServiceAccountRequest(service_account_id=made.service_account_id)
    assert (await admin.service_accounts.GetServiceAccount(named, metadata=admin.auth)).service_account == made
    change = service_account_pb2.ServiceAccount(
        service_account_id=made.service_account_id, etag=made.etag, description="Counts views"
    )
    request = pb.UpdateServiceAccountRequest(service_account=change, update_mask={"paths": ["description"]})  # type: ignore[arg-type]
    updated = (await admin.service_accounts.UpdateServiceAccount(request, metadata=admin.auth)).service_account
    assert (updated.display_name, updated.description) == (made.display_name, "Counts views")
    stale = await failing(admin.service_accounts.UpdateServiceAccount(request, metadata=admin.auth))
    assert stale.reason == "ETAG_MISMATCH"
    disable = pb.DisableServiceAccountRequest(service_account_id=made.service_account_id, etag=made.etag)
    stale = await failing(admin.service_accounts.DisableServiceAccount(disable, metadata=admin.auth))
    assert stale.reason == "ETAG_MISMATCH"
    disable.etag = updated.etag
    disabled = (await admin.service_accounts.DisableServiceAccount(disable, metadata=admin.auth)).service_account
    disable.etag = ""
    again = (await admin.service_accounts.DisableServiceAccount(disable, metadata=admin.auth)).service_account
    assert again == disabled
    assert disabled.HasField("disable_time")
    enabled = pb.ListServiceAccountsRequest(page_size=500, filter={"enabled_only": True})  # type: ignore[arg-type]
    for request_, listed in ((enabled, False), (pb.ListServiceAccountsRequest(page_size=500), True)):
        page = await admin.service_accounts.ListServiceAccounts(request_, metadata=admin.auth)
        assert (disabled in page.service_accounts) == listed
    delete = pb.DeleteServiceAccountRequest(service_account_id=made.service_account_id)
    await admin.service_accounts.DeleteServiceAccount(delete, metadata=admin.auth)
    gone = await failing(admin.service_accounts.GetServiceAccount(named, metadata=admin.auth))
    assert gone.code == grpc.StatusCode.NOT_FOUND
    rows = await world.database.fetch(
        "SELECT action FROM audit_log WHERE resource_id = $1 ORDER BY seq", made.service_account_id
    )
    assert [row[0] for row in rows] == ["create", "update", "disable", "delete"]
    await account(world, display_name=made.display_name)


async def test_two_accounts_never_have_one_name(world: World, failing: Failing) -> None:
    made = await account(world)
    other = await account(world)
    request = pb.CreateServiceAccountRequest(
        service_account=service_account_pb2.ServiceAccount(display_name=made.display_name.upper())
    )
    failure = await failing(world.admin.service_accounts.CreateServiceAccount(request, metadata=world.admin.auth))
    assert (failure.code, failure.metadata["field"]) == (grpc.StatusCode.ALREADY_EXISTS, "display_name")
    other.display_name = made.display_name
    update = pb.UpdateServiceAccountRequest(service_account=other, update_mask={"paths": ["display_name"]})  # type: ignore[arg-type]
    failure = await failing(world.admin.service_accounts.UpdateServiceAccount(update, metadata=world.admin.auth))
    assert failure.reason == "RESOURCE_EXISTS"


async def test_whoever_is_limited_to_clients_manages_no_accounts(world: World, failing: Failing) -> None:
    made = await account(world)
    client = await world.client()
    _, limited = await key(
        world, client_ids=[client.client_id], permissions=[KEYS, options_pb2.PERMISSION_API_KEYS_READ]
    )
    named = {"service_account_id": made.service_account_id}
    stub = limited.service_accounts
    for call in (
        stub.GetServiceAccount(pb.GetServiceAccountRequest(**named), metadata=limited.auth),
        stub.ListServiceAccounts(pb.ListServiceAccountsRequest(), metadata=limited.auth),
        stub.DisableServiceAccount(pb.DisableServiceAccountRequest(**named), metadata=limited.auth),
        stub.DeleteServiceAccount(pb.DeleteServiceAccountRequest(**named), metadata=limited.auth),
    ):
        failure = await failing(call)
        assert (failure.reason, failure.metadata["permission"]) == ("PERMISSION_MISSING", "ALL_CLIENTS")
    request = keys_pb.CreateApiKeyRequest(display_name="x", permissions=[KEYS], client_ids=[client.client_id], **named)
    assert (await failing(limited.api_keys.CreateApiKey(request, metadata=limited.auth))).code.name == "NOT_FOUND"


async def test_disabling_ends_all_keys_and_their_streams_everywhere(world: World, second: Caller) -> None:
    client_id, _ = await world.tenant()
    made = await account(world)
    named = {"service_account_id": made.service_account_id}
    owned = [
        await key(world, client_ids=[client_id], permissions=[options_pb2.PERMISSION_STATISTICS_READ], **named)
        for _ in range(2)
    ]
    assert all(key.service_account_id == made.service_account_id for key, _ in owned)
    listed = await world.admin.api_keys.ListApiKeys(keys_pb.ListApiKeysRequest(**named), metadata=world.admin.auth)
    assert list(listed.api_keys) == [key for key, _ in owned]
    _, other = await key(world)
    watch = statistics_service_pb2.WatchMetricsRequest(client_id=client_id)
    streams = [
        server.statistics.WatchMetrics(watch, metadata=caller.auth)
        for server, (_, caller) in zip((world.admin, second), owned, strict=True)
    ]
    for stream in streams:
        await stream.read()

    begun = time.monotonic()
    ends = [asyncio.create_task(_ended(stream)) for stream in streams]
    await world.admin.service_accounts.DisableServiceAccount(
        pb.DisableServiceAccountRequest(**named), metadata=world.admin.auth
    )
    for code, moment in await asyncio.gather(*ends):
        assert code == grpc.StatusCode.UNAUTHENTICATED
        assert moment - begun < 3, "half a second and a busy machine"
    assert [await works(caller) for caller in (owned[0][1], owned[1][1], other)] == [False, False, True]
    await world.admin.service_accounts.EnableServiceAccount(
        pb.EnableServiceAccountRequest(**named), metadata=world.admin.auth
    )
    assert [await works(caller) for _, caller in owned] == [True, True]
    await world.admin.service_accounts.DeleteServiceAccount(
        pb.DeleteServiceAccountRequest(**named), metadata=world.admin.auth
    )
    assert [await works(caller) for _, caller in owned] == [False, False]
    ended = await world.admin.api_keys.GetApiKey(
        keys_pb.GetApiKeyRequest(api_key_id=owned[0][0].api_key_id), metadata=world.admin.auth
    )
    assert ended.api_key.HasField("revoke_time")


async def _ended(stream: Any) -> tuple[grpc.StatusCode, float]:
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code(), time.monotonic()
    return await stream.code(), time.monotonic()


async def test_a_key_of_an_account_makes_only_its_like(world: World, failing: Failing) -> None:
    made, foreign = await account(world), await account(world)
    client = await world.client()
    end = datetime.now(UTC) + timedelta(hours=1)
    _, maker = await key(
        world,
        client_ids=[client.client_id],
        permissions=[KEYS, READ],
        service_account_id=made.service_account_id,
        expire_time=end,
    )
    child, _ = await key(world, maker, client_ids=[client.client_id], expire_time=end - timedelta(minutes=1))
    assert child.service_account_id == made.service_account_id
    cases: list[tuple[dict[str, Any], str]] = [
        ({"expire_time": end + timedelta(minutes=1)}, "INVALID_ARGUMENT"),
        ({"expire_time": None}, "INVALID_ARGUMENT"),
        ({"service_account_id": foreign.service_account_id}, "NOT_FOUND"),
        ({"permissions": [options_pb2.PERMISSION_STATISTICS_INGEST]}, "PERMISSION_DENIED"),
        ({"client_ids": [(await world.client()).client_id]}, "NOT_FOUND"),
        ({"client_ids": [], "all_clients": True}, "PERMISSION_DENIED"),
    ]
    for fields, code in cases:
        values = {"permissions": [READ], "client_ids": [client.client_id], "expire_time": end, **fields}
        request = keys_pb.CreateApiKeyRequest(display_name="x", **values)
        assert (await failing(maker.api_keys.CreateApiKey(request, metadata=maker.auth))).code.name == code, fields


@pytest.mark.parametrize("right", ["USERS_WRITE", "CLIENTS_PURGE", "MEDIA_PLANS_APPROVE"])
async def test_rights_of_people_are_not_given_to_keys(world: World, failing: Failing, right: str) -> None:
    request = keys_pb.CreateApiKeyRequest(
        display_name="x", permissions=[READ, options_pb2.Permission.Value(f"PERMISSION_{right}")], all_clients=True
    )
    failure = await failing(world.admin.api_keys.CreateApiKey(request, metadata=world.admin.auth))
    assert failure.fields == {"permissions[1]": "PEOPLE_ONLY"}
    # A key that was made before this rule keeps its other rights only.
    made, caller = await key(world)
    await world.database.execute(
        "UPDATE api_keys SET permissions = permissions || $2::text WHERE id = $1", UUID(made.api_key_id), right
    )
    seen = await caller.sessions.GetCurrentSession(WHO, metadata=caller.auth)
    assert list(seen.permissions) == ["CLIENTS_READ"]


async def test_keys_of_other_clients_are_out_of_reach(world: World, failing: Failing) -> None:
    agency = await world.client(type=client_pb2.CLIENT_TYPE_AGENCY)
    child = await world.client(parent_client_id=agency.client_id)
    other = await world.client()
    rights = [KEYS, options_pb2.PERMISSION_API_KEYS_READ, READ]
    own, manager = await key(world, client_ids=[agency.client_id], permissions=rights)
    below, _ = await key(world, client_ids=[child.client_id])
    beside, _ = await key(world, client_ids=[child.client_id, other.client_id])
    everywhere, _ = await key(world)
    listed = await manager.api_keys.ListApiKeys(keys_pb.ListApiKeysRequest(), metadata=manager.auth)
    assert list(listed.api_keys)[1:] == [below]
    assert listed.api_keys[0].api_key_id == own.api_key_id
    for unseen in (beside, everywhere):
        named = {"api_key_id": unseen.api_key_id}
        for call in (
            manager.api_keys.GetApiKey(keys_pb.GetApiKeyRequest(**named), metadata=manager.auth),
            manager.api_keys.RotateApiKey(keys_pb.RotateApiKeyRequest(**named), metadata=manager.auth),
            manager.api_keys.RevokeApiKey(keys_pb.RevokeApiKeyRequest(**named), metadata=manager.auth),
        ):
            assert (await failing(call)).code == grpc.StatusCode.NOT_FOUND
    stronger, _ = await key(world, client_ids=[child.client_id], permissions=[options_pb2.PERMISSION_STATISTICS_INGEST])
    rotate = keys_pb.RotateApiKeyRequest(api_key_id=stronger.api_key_id)
    failure = await failing(manager.api_keys.RotateApiKey(rotate, metadata=manager.auth))
    assert failure.metadata["permission"] == "STATISTICS_INGEST", "its secret would be a right that the caller lacks"


async def test_rotation_overlaps(world: World, failing: Failing) -> None:
    made = await account(world)
    old, before = await key(
        world,
        service_account_id=made.service_account_id,
        permissions=[READ, options_pb2.PERMISSION_CLIENTS_WRITE],
        expire_time=datetime.now(UTC) + timedelta(days=10),
    )
    write = client_service_pb2.CreateClientRequest(
        client=client_pb2.Client(display_name="Once", type=client_pb2.CLIENT_TYPE_AGENCY), request_id=str(uuid4())
    )
    first = await before.clients.CreateClient(write, metadata=before.auth)
    pages = client_service_pb2.ListClientsRequest(page_size=1)
    pages.page_token = (await before.clients.ListClients(pages, metadata=before.auth)).next_page_token
    request = keys_pb.RotateApiKeyRequest(api_key_id=old.api_key_id, overlap=timedelta(hours=1))
    reply = await world.admin.api_keys.RotateApiKey(request, metadata=world.admin.auth)
    after = world.caller(reply.secret)
    assert [await works(caller) for caller in (before, after)] == [True, True]
    assert reply.replaced_api_key.successor_api_key_id == reply.api_key.api_key_id
    left = reply.replaced_api_key.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(minutes=55) < left <= timedelta(hours=1)
    life = reply.api_key.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(days=9) < life <= timedelta(days=10)
    assert reply.api_key.service_account_id == made.service_account_id
    assert list(reply.api_key.permissions) == list(old.permissions)
    # A retry and a page that began with the old key go on with the new one.
    assert (await after.clients.CreateClient(write, metadata=after.auth)) == first
    await after.clients.ListClients(pages, metadata=after.auth)
    failure = await failing(world.admin.api_keys.RotateApiKey(request, metadata=world.admin.auth))
    assert (failure.reason, failure.metadata["state"]) == ("STATE_FORBIDS", "rotated")
    # Replayed without the secret; a lost one is replaced by rotating again.
    again = keys_pb.RotateApiKeyRequest(api_key_id=reply.api_key.api_key_id, overlap={}, request_id=str(uuid4()))  # type: ignore[arg-type]
    third = await world.admin.api_keys.RotateApiKey(again, metadata=world.admin.auth)
    replay = await world.admin.api_keys.RotateApiKey(again, metadata=world.admin.auth)
    assert (replay.secret, replay.api_key) == ("", third.api_key)
    assert [await works(caller) for caller in (before, after, world.caller(third.secret))] == [True, False, True]
    assert (
        await world.caller(third.secret).clients.CreateClient(write, metadata=world.caller(third.secret).auth)
    ) == first, "all keys of a chain are one program"
    for state, named in (("expired", reply.api_key), ("revoked", third.api_key)):
        if state == "revoked":
            revoke = keys_pb.RevokeApiKeyRequest(api_key_id=named.api_key_id)
            await world.admin.api_keys.RevokeApiKey(revoke, metadata=world.admin.auth)
        await world.database.execute("UPDATE api_keys SET successor_id = NULL WHERE id = $1", UUID(named.api_key_id))
        request = keys_pb.RotateApiKeyRequest(api_key_id=named.api_key_id)
        failure = await failing(world.admin.api_keys.RotateApiKey(request, metadata=world.admin.auth))
        assert (failure.reason, failure.metadata["state"]) == ("STATE_FORBIDS", state)


async def test_revoking_twice_is_recorded_once(world: World) -> None:
    made, caller = await key(world)
    request = keys_pb.RevokeApiKeyRequest(api_key_id=made.api_key_id)
    replies = [await world.admin.api_keys.RevokeApiKey(request, metadata=world.admin.auth) for _ in range(2)]
    assert replies[0] == replies[1]
    assert not await works(caller)
    recorded = await world.database.fetchval(
        "SELECT count(*) FROM audit_log WHERE resource_id = $1 AND action = 'revoke'", made.api_key_id
    )
    assert recorded == 1
