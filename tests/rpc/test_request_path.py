"""Every step of the request path, seen from outside."""

import asyncio
import base64
from uuid import uuid4

import grpc
import pytest
from google.protobuf import struct_pb2

from mrm.accounts.v1 import (
    api_key_service_pb2,
    client_pb2,
    client_service_pb2,
    session_service_pb2,
)
from mrm.campaigns.v1 import campaign_service_pb2
from mrm.common.v1 import options_pb2
from mrm.planning.v1 import project_service_pb2
from mrm.statistics.v1 import statistics_service_pb2
from server.rpc.auth import Authenticator, digest
from server.rpc.fences import SessionFences
from server.settings import AuthSettings
from storage.postgres.database import Database
from storage.redis.limits import RateLimiter
from storage.redis.multiplex import MultiplexedRedis
from storage.redis.sessions import SCRIPTS, SessionStore
from tests.conftest import PASSWORD, Failing, World
from tests.planning import plans


async def test_login_opens_a_session_and_logout_ends_it(world: World, failing: Failing) -> None:
    user = await world.user("pm")
    seen = await user.sessions.GetCurrentSession(session_service_pb2.GetCurrentSessionRequest(), metadata=user.auth)
    assert seen.user.user_id == str(user.user_id)
    assert "PROJECTS_WRITE" in seen.permissions
    assert "CLIENTS_WRITE" not in seen.permissions
    await user.sessions.Logout(session_service_pb2.LogoutRequest(), metadata=user.auth)
    failure = await failing(
        user.sessions.GetCurrentSession(session_service_pb2.GetCurrentSessionRequest(), metadata=user.auth)
    )
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")


@pytest.mark.parametrize(
    ("email", "password"),
    [("nobody@example.com", PASSWORD), ("admin@example.com", "wrong"), ("ADMIN@EXAMPLE.COM", "x")],
)
async def test_login_refuses_alike(world: World, failing: Failing, email: str, password: str) -> None:
    request = session_service_pb2.LoginRequest(email=email, password=password)
    failure = await failing(world.caller().sessions.Login(request))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "LOGIN_REFUSED")
    assert password not in failure.message


async def test_login_is_limited_per_address_and_email(world: World, failing: Failing) -> None:
    request = session_service_pb2.LoginRequest(email=f"{uuid4().hex}@example.com", password="wrong")
    failures = [await failing(world.caller().sessions.Login(request)) for _ in range(21)]
    assert {failure.reason for failure in failures[:20]} == {"LOGIN_REFUSED"}
    assert (failures[20].code, failures[20].reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert failures[20].retry_seconds and 0 < failures[20].retry_seconds <= 180


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "CREDENTIALS_MISSING"),
        ((("authorization", "Basic abc"),), "CREDENTIALS_MISSING"),
        ((("authorization", "Bearer mrms_unknown"),), "CREDENTIALS_INVALID"),
        ((("authorization", "Bearer mrmk_unknown"),), "CREDENTIALS_INVALID"),
        ((("authorization", "Bearer something-else"),), "CREDENTIALS_INVALID"),
    ],
)
async def test_without_credentials_nothing_works(
    world: World, failing: Failing, metadata: tuple[tuple[str, str], ...], reason: str
) -> None:
    call = world.caller().clients.ListClients(client_service_pb2.ListClientsRequest(), metadata=metadata)
    failure = await failing(call)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)


async def test_a_role_without_the_right_is_refused(world: World, failing: Failing) -> None:
    client = await world.client()
    analyst = await world.user("analyst", client.client_id)
    request = project_service_pb2.CreateProjectRequest(
        project={"client_id": client.client_id, "display_name": "x"}  # type: ignore[arg-type]
    )
    failure = await failing(analyst.projects.CreateProject(request, metadata=analyst.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    assert failure.metadata["permission"] == "PROJECTS_WRITE"


async def test_a_foreign_client_answers_like_a_missing_one(world: World, failing: Failing) -> None:
    own, foreign = await world.client(), await world.client()
    user = await world.user("account_manager", own.client_id)
    for client_id in (foreign.client_id, str(uuid4())):
        request = client_service_pb2.GetClientRequest(client_id=client_id)
        failure = await failing(user.clients.GetClient(request, metadata=user.auth))
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
        assert failure.message == "no client with this id"
    visible = await user.clients.ListClients(client_service_pb2.ListClientsRequest(), metadata=user.auth)
    assert [client.client_id for client in visible.clients] == [own.client_id]


async def test_membership_of_an_agency_reaches_its_clients(world: World) -> None:
    agency = await world.client(type=client_pb2.CLIENT_TYPE_AGENCY)
    child = await world.client(parent_client_id=agency.client_id)
    user = await world.user("analyst", agency.client_id)
    request = client_service_pb2.GetClientRequest(client_id=child.client_id)
    assert (await user.clients.GetClient(request, metadata=user.auth)).client.parent_client_id == agency.client_id


async def test_validation_names_every_broken_field(world: World, failing: Failing) -> None:
    request = client_service_pb2.CreateClientRequest(
        client=client_pb2.Client(display_name="", website="x" * 300), request_id="not-a-uuid"
    )
    failure = await failing(world.admin.clients.CreateClient(request, metadata=world.admin.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")
    assert failure.fields == {
        "client.display_name": "STRING_MIN_LEN",
        "client.type": "ENUM_NOT_IN",
        "client.website": "STRING_MAX_LEN",
        "request_id": "STRING_UUID",
    }


async def test_garbage_bytes_are_a_typed_error(world: World, failing: Failing) -> None:
    call = world.channel.unary_unary("/mrm.accounts.v1.ClientService/GetClient")(
        b"\xff\xff\xff", metadata=world.admin.auth
    )
    failure = await failing(call)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_a_repeated_request_id_replays_the_reply_once(world: World, failing: Failing) -> None:
    request = client_service_pb2.CreateClientRequest(
        client=client_pb2.Client(display_name=f"Once {uuid4()}", type=client_pb2.CLIENT_TYPE_AGENCY),
        request_id=str(uuid4()),
    )
    replies = await asyncio.gather(
        *(world.admin.clients.CreateClient(request, metadata=world.admin.auth) for _ in range(8))
    )
    assert len({reply.client.client_id for reply in replies}) == 1
    request.client.display_name = "Another"
    failure = await failing(world.admin.clients.CreateClient(request, metadata=world.admin.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


async def test_a_replayed_reply_holds_no_secret(world: World) -> None:
    client = await world.client()
    request = api_key_service_pb2.CreateApiKeyRequest(
        display_name="tracker",
        permissions=[options_pb2.PERMISSION_STATISTICS_INGEST],
        client_ids=[client.client_id],
        request_id=str(uuid4()),
    )
    first = await world.admin.api_keys.CreateApiKey(request, metadata=world.admin.auth)
    again = await world.admin.api_keys.CreateApiKey(request, metadata=world.admin.auth)
    assert first.secret.startswith("mrmk_")
    assert again.secret == ""
    assert again.api_key == first.api_key
    stored = await world.database.fetchval(
        "SELECT count(*) FROM idempotency_keys WHERE position($1 in response) > 0", first.secret.encode()
    )
    assert stored == 0


async def test_a_failed_mutation_leaves_nothing(world: World, failing: Failing) -> None:
    before = await world.database.fetchval("SELECT count(*) FROM audit_log")
    request = project_service_pb2.CreateProjectRequest(
        project={"client_id": str(uuid4()), "display_name": "x"},  # type: ignore[arg-type]
        request_id=str(uuid4()),
    )
    failure = await failing(world.admin.projects.CreateProject(request, metadata=world.admin.auth))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    assert await world.database.fetchval("SELECT count(*) FROM audit_log") == before
    key = await world.database.fetchval(
        "SELECT count(*) FROM idempotency_keys WHERE request_id = $1::text::uuid", request.request_id
    )
    assert key == 0


async def test_every_change_is_audited_with_its_author(world: World) -> None:
    client = await world.client()
    request = client_service_pb2.UpdateClientRequest(
        client=client_pb2.Client(client_id=client.client_id, industry="retail"),
        update_mask={"paths": ["industry"]},  # type: ignore[arg-type]
    )
    metadata = (*world.admin.auth, ("x-request-id", "trace-1234"))
    await world.admin.clients.UpdateClient(request, metadata=metadata)
    row = await world.database.fetchrow(
        "SELECT actor_kind, actor_id, method, request_id, diff FROM audit_log WHERE client_id = $1::text::uuid"
        " AND action = 'update'",
        client.client_id,
    )
    assert row[0] == "user"
    assert row[1] == world.admin.user_id
    assert row[2] == "/mrm.accounts.v1.ClientService/UpdateClient"
    assert row[3] == "trace-1234"
    assert row[4]["industry"] == [None, "retail"]
    assert "display_name" not in row[4]


async def test_etag_guards_against_lost_updates(world: World, failing: Failing) -> None:
    client = await world.client()
    request = client_service_pb2.UpdateClientRequest(
        client=client_pb2.Client(client_id=client.client_id, etag=client.etag, industry="a"),
        update_mask={"paths": ["industry"]},  # type: ignore[arg-type]
    )
    updated = (await world.admin.clients.UpdateClient(request, metadata=world.admin.auth)).client
    assert updated.etag != client.etag
    failure = await failing(world.admin.clients.UpdateClient(request, metadata=world.admin.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


@pytest.mark.parametrize("path", ["etag", "client_id", "type", "nothing", "settings.nothing", ""])
async def test_update_mask_refuses_what_cannot_be_written(world: World, failing: Failing, path: str) -> None:
    client = await world.client()
    request = client_service_pb2.UpdateClientRequest(client=client, update_mask={"paths": [path]})  # type: ignore[arg-type]
    failure = await failing(world.admin.clients.UpdateClient(request, metadata=world.admin.auth))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "update_mask" in failure.fields


async def test_page_tokens_walk_the_list_and_work_for_nobody_else(world: World, failing: Failing) -> None:
    agency = await world.client(type=client_pb2.CLIENT_TYPE_AGENCY)
    children = [(await world.client(parent_client_id=agency.client_id)).client_id for _ in range(5)]
    request = client_service_pb2.ListClientsRequest(page_size=2)
    request.filter.parent_client_id = agency.client_id
    seen: list[str] = []
    while True:
        page = await world.admin.clients.ListClients(request, metadata=world.admin.auth)
        seen += [client.client_id for client in page.clients]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == children
    other = await world.user("analyst", agency.client_id)
    failure = await failing(other.clients.ListClients(request, metadata=other.auth))
    assert failure.reason == "PAGE_TOKEN_INVALID"
    request.filter.industry = "retail"
    failure = await failing(world.admin.clients.ListClients(request, metadata=world.admin.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_replies_carry_request_id_and_limits(world: World) -> None:
    call = world.admin.clients.ListClients(client_service_pb2.ListClientsRequest(), metadata=world.admin.auth)
    await call
    trailer = {key: value for key, value in await call.trailing_metadata()}
    assert trailer["ratelimit-limit"] == "3600"
    assert int(trailer["ratelimit-remaining"]) < 3600
    assert trailer["x-request-id"]


async def test_rate_limit_refuses_with_the_time_to_wait(world: World) -> None:
    redis = await MultiplexedRedis.open(world.connections.redis_dsn, scripts=SCRIPTS)
    database = await Database.open(world.connections.postgres_dsn, min_size=1, max_size=1)
    user = await world.user("analyst")
    settings = AuthSettings(limit_light=3)
    fences = SessionFences(database, settings.session_ttl, settings.session_poll, lambda: None)
    tight = Authenticator(SessionStore(redis), fences, RateLimiter(redis), database, settings)
    admitted = [await tight.admit(f"Bearer {user.token}", "some.Service/Method", "LIGHT") for _ in range(3)]
    assert [admission.remaining for admission in admitted] == [2, 1, 0]
    from server.rpc.errors import ResourceExhausted

    with pytest.raises(ResourceExhausted) as caught:
        await tight.admit(f"Bearer {user.token}", "some.Service/Method", "LIGHT")
    assert caught.value.retry_after and 0 < caught.value.retry_after <= 1200
    keys = await redis.execute("TTL", f"ratelimit:{user.user_id}:some.Service/Method")
    assert 0 < keys <= 3600
    await database.close()
    await redis.close()


async def test_session_is_stored_as_the_source_says(world: World) -> None:
    user = await world.user("specialist")
    redis = await MultiplexedRedis.open(world.connections.redis_dsn)
    fields = await redis.execute("HGETALL", f"session:{digest(user.token)}")
    pairs = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    assert {key.decode() for key in pairs} == {"user_id", "email", "role", "created_at"}
    assert 86000 < await redis.execute("TTL", f"session:{digest(user.token)}") <= 86400
    await redis.close()


async def test_a_client_deadline_is_honoured(world: World) -> None:
    request = campaign_service_pb2.GetCampaignRequest(campaign_id=str(uuid4()))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.admin.campaigns.GetCampaign(request, metadata=world.admin.auth, timeout=0.00001)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_revoking_a_key_ends_it(world: World, failing: Failing) -> None:
    client = await world.client()
    key = await world.key([client.client_id], options_pb2.PERMISSION_CLIENTS_READ)
    seen = await key.sessions.GetCurrentSession(session_service_pb2.GetCurrentSessionRequest(), metadata=key.auth)
    assert list(seen.permissions) == ["CLIENTS_READ"]
    await world.admin.api_keys.RevokeApiKey(
        api_key_service_pb2.RevokeApiKeyRequest(api_key_id=seen.api_key_id), metadata=world.admin.auth
    )
    failure = await failing(
        key.sessions.GetCurrentSession(session_service_pb2.GetCurrentSessionRequest(), metadata=key.auth)
    )
    assert failure.reason == "CREDENTIALS_INVALID"


async def test_people_may_not_ingest(world: World, failing: Failing) -> None:
    request = statistics_service_pb2.IngestEventsRequest(client_id=str(uuid4()))
    failure = await failing(world.admin.statistics.IngestEvents(request, metadata=world.admin.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")


async def test_metadata_that_is_not_text_is_no_credential(world: World, failing: Failing) -> None:
    metadata = (("authorization-bin", base64.b64encode(b"\xff")),)
    call = world.caller().clients.ListClients(client_service_pb2.ListClientsRequest(), metadata=metadata)
    assert (await failing(call)).reason == "CREDENTIALS_MISSING"


async def test_a_number_that_json_does_not_have_is_the_callers_mistake(world: World, failing: Failing) -> None:
    infinite = struct_pb2.Struct()
    infinite.fields["bid"].number_value = float("inf")
    client = await world.client()
    project = await world.project(client.client_id)
    for call, field in (
        (world.client(settings={"extra": infinite}), "client.settings.extra"),
        (world.project(client.client_id, brief={"extra": infinite}), "project.brief"),
        (world.campaign(project.project_id, configuration=infinite), "campaign.configuration"),
        (
            plans.create(
                world.admin, project.project_id, channels=[plans.channel(1, extra=infinite)], targeting={"geo": ["RU"]}
            ),
            "media_plan.channels[0].extra",
        ),
    ):
        failure = await failing(call)
        assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {field: "NUMBER_INVALID"})
