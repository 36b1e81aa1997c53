"""ClientService and ApiKeyService over gRPC, beyond what the request path's own tests need."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import grpc
import pytest
from google.protobuf import struct_pb2

from mrm.accounts.v1 import api_key_service_pb2, client_pb2, client_service_pb2
from mrm.common.v1 import options_pb2
from tests.conftest import Failing, World


async def test_settings_have_defaults_and_keep_unknown_keys(world: World) -> None:
    plain = await world.client()
    assert plain.settings.time_zone == "Europe/Moscow"
    assert (plain.settings.currency_code, plain.settings.language_code) == ("RUB", "ru")
    extra = struct_pb2.Struct()
    extra.update({"erp_code": "A-17"})
    client = await world.client(settings=client_pb2.ClientSettings(time_zone="Asia/Vladivostok", extra=extra))
    change = client_pb2.Client(client_id=client.client_id)
    change.settings.language_code = "en"
    request = client_service_pb2.UpdateClientRequest(
        client=change,
        update_mask={"paths": ["settings.language_code"]},  # type: ignore[arg-type]
    )
    updated = (await world.admin.clients.UpdateClient(request, metadata=world.admin.auth)).client
    assert updated.settings.language_code == "en"
    assert updated.settings.time_zone == "Asia/Vladivostok"
    assert updated.settings.extra == extra


@pytest.mark.parametrize("zone", ["Mars/Olympus", "Asia/Kolkata", "Asia/Kathmandu", "../etc/passwd"])
async def test_zones_whose_days_cannot_be_cut_are_refused(world: World, failing: Failing, zone: str) -> None:
    client = client_pb2.Client(
        display_name="x",
        type=client_pb2.CLIENT_TYPE_AGENCY,
        settings=client_pb2.ClientSettings(time_zone=zone),
    )
    request = client_service_pb2.CreateClientRequest(client=client)
    failure = await failing(world.admin.clients.CreateClient(request, metadata=world.admin.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TIME_ZONE_UNSUPPORTED")
    assert "client.settings.time_zone" in failure.fields


async def test_who_makes_a_client_sees_it(world: World) -> None:
    manager = await world.user("account_manager")
    request = client_service_pb2.CreateClientRequest(
        client=client_pb2.Client(display_name="Mine", type=client_pb2.CLIENT_TYPE_AGENCY)
    )
    made = (await manager.clients.CreateClient(request, metadata=manager.auth)).client
    listed = await manager.clients.ListClients(client_service_pb2.ListClientsRequest(), metadata=manager.auth)
    assert [client.client_id for client in listed.clients] == [made.client_id]


async def test_only_agencies_have_clients_under_them(world: World, failing: Failing) -> None:
    advertiser = await world.client()
    for parent, code in ((advertiser.client_id, "INVALID_ARGUMENT"), (str(uuid4()), "NOT_FOUND")):
        request = client_service_pb2.CreateClientRequest(
            client=client_pb2.Client(
                display_name="x", type=client_pb2.CLIENT_TYPE_DIRECT_ADVERTISER, parent_client_id=parent
            )
        )
        failure = await failing(world.admin.clients.CreateClient(request, metadata=world.admin.auth))
        assert failure.code.name == code


async def test_keys_cannot_outgrow_their_maker(world: World, failing: Failing) -> None:
    client = await world.client()
    key = await world.key([client.client_id], options_pb2.PERMISSION_API_KEYS_WRITE)
    request = api_key_service_pb2.CreateApiKeyRequest(
        display_name="x", permissions=[options_pb2.PERMISSION_CLIENTS_WRITE], client_ids=[client.client_id]
    )
    failure = await failing(key.api_keys.CreateApiKey(request, metadata=key.auth))
    assert failure.metadata["permission"] == "CLIENTS_WRITE"
    request.permissions[:] = [options_pb2.PERMISSION_STATISTICS_INGEST]
    failure = await failing(key.api_keys.CreateApiKey(request, metadata=key.auth))
    assert failure.metadata["permission"] == "STATISTICS_INGEST", "only people give keys what only keys have"
    request.permissions[:] = [options_pb2.PERMISSION_API_KEYS_WRITE]
    request.client_ids[:] = [(await world.client()).client_id]
    assert (await failing(key.api_keys.CreateApiKey(request, metadata=key.auth))).code == grpc.StatusCode.NOT_FOUND
    request.client_ids[:] = []
    request.all_clients = True
    failure = await failing(key.api_keys.CreateApiKey(request, metadata=key.auth))
    assert failure.code == grpc.StatusCode.PERMISSION_DENIED


async def test_key_requests_are_checked(world: World, failing: Failing) -> None:
    request = api_key_service_pb2.CreateApiKeyRequest(
        display_name="x", permissions=[options_pb2.PERMISSION_PUBLIC], all_clients=True, client_ids=[str(uuid4())]
    )
    request.expire_time.FromDatetime(datetime.now(UTC) - timedelta(days=1))
    failure = await failing(world.admin.api_keys.CreateApiKey(request, metadata=world.admin.auth))
    assert {"permissions[0]", "expire_time", "request"} <= set(failure.fields)


async def test_keys_are_listed_without_secrets(world: World) -> None:
    client = await world.client()
    await world.key([client.client_id])
    listed = await world.admin.api_keys.ListApiKeys(
        api_key_service_pb2.ListApiKeysRequest(page_size=500), metadata=world.admin.auth
    )
    mine = [key for key in listed.api_keys if list(key.client_ids) == [client.client_id]]
    assert len(mine) == 1
    assert mine[0].prefix.startswith("mrmk_")
    assert len(mine[0].prefix) < 12
