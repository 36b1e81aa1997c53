"""IntegrationService: connect, test, rotate, disconnect, and the keys that credentials are sealed under."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from pydantic import ValidationError

from mrm.accounts.v1 import client_pb2, client_service_pb2, integration_pb2
from mrm.accounts.v1 import integration_service_pb2 as pb
from server.platforms.interface import Account, AuthFailed, PlatformError
from server.platforms.registry import Platforms
from server.sealing import KeyRing, KeyRingError, Unsealable, new_entry, prepend
from server.settings import PlatformsSettings, SecretsSettings
from server.sync.account import bound_to
from storage.postgres import integrations
from tests.conftest import KEYRING, Caller, Failing, World

ROOT = Path(__file__).parents[2]

CONNECTED = integration_pb2.INTEGRATION_STATUS_CONNECTED
DISCONNECTED = integration_pb2.INTEGRATION_STATUS_DISCONNECTED
ERROR = integration_pb2.INTEGRATION_STATUS_ERROR
ACCEPTED = pb.TestIntegrationResponse.OUTCOME_ACCEPTED
REFUSED = pb.TestIntegrationResponse.OUTCOME_REFUSED
UNAVAILABLE = pb.TestIntegrationResponse.OUTCOME_UNAVAILABLE


def credentials(platform: str, token: str) -> integration_pb2.IntegrationCredentials:
    """Credentials of a platform with this token."""
    if platform == "yandex_direct":
        direct = integration_pb2.YandexDirectCredentials(oauth_token=token, client_login="shop")
        return integration_pb2.IntegrationCredentials(yandex_direct=direct)
    if platform == "vk_ads":
        vk = integration_pb2.VkAdsCredentials(access_token=token, refresh_token="refresh-" + token)
        return integration_pb2.IntegrationCredentials(vk_ads=vk)
    metrika = integration_pb2.YandexMetrikaCredentials(oauth_token=token, counter_id=44)
    return integration_pb2.IntegrationCredentials(yandex_metrika=metrika)


async def connect(
    caller: Caller, client_id: str, platform: str = "vk_ads", token: str = "", **fields: Any
) -> integration_pb2.Integration:
    given = credentials(platform, token or secrets.token_hex(8))
    request = pb.ConnectIntegrationRequest(client_id=client_id, credentials=given, **fields)
    return (await caller.integrations.ConnectIntegration(request, metadata=caller.auth)).integration


async def check(caller: Caller, integration_id: str) -> pb.TestIntegrationResponse:
    request = pb.TestIntegrationRequest(integration_id=integration_id)
    return await caller.integrations.TestIntegration(request, metadata=caller.auth)


async def disconnect(caller: Caller, integration_id: str, etag: str = "") -> integration_pb2.Integration:
    request = pb.DisconnectIntegrationRequest(integration_id=integration_id, etag=etag)
    return (await caller.integrations.DisconnectIntegration(request, metadata=caller.auth)).integration


async def rotate(
    caller: Caller, integration_id: str, platform: str, token: str, etag: str = ""
) -> integration_pb2.Integration:
    request = pb.RotateIntegrationCredentialsRequest(
        integration_id=integration_id, credentials=credentials(platform, token), etag=etag
    )
    return (await caller.integrations.RotateIntegrationCredentials(request, metadata=caller.auth)).integration


async def test_an_integration_lives_and_its_secret_dies(world: World, failing: Failing) -> None:
    client = await world.client()
    specialist = await world.user("specialist", client.client_id)
    token = secrets.token_hex(16)
    made = await connect(specialist, client.client_id, "yandex_direct", token)
    assert (made.status, made.platform_account_id) == (CONNECTED, "shop")
    row = await world.database.fetchrow(
        "SELECT credentials, credentials::text FROM client_integrations WHERE id = $1", UUID(made.integration_id)
    )
    assert row is not None
    assert row[0]["alg"] == "AES-256-GCM" and row[0]["key_id"] == "of-tests"
    assert token not in row[1]

    failure = await failing(connect(specialist, client.client_id, "yandex_direct", token))
    assert (failure.code, failure.metadata["integration_id"]) == (grpc.StatusCode.ALREADY_EXISTS, made.integration_id)
    other = await connect(specialist, client.client_id, "yandex_direct", platform_account_id="second")
    request = pb.ListIntegrationsRequest(
        page_size=1, filter=pb.IntegrationFilter(client_id=client.client_id, status=CONNECTED)
    )
    page = await specialist.integrations.ListIntegrations(request, metadata=specialist.auth)
    assert list(page.integrations) == [made]
    request.page_token = page.next_page_token
    page = await specialist.integrations.ListIntegrations(request, metadata=specialist.auth)
    assert (list(page.integrations), page.next_page_token) == ([other], "")

    assert (await failing(disconnect(specialist, made.integration_id, "r9"))).reason == "ETAG_MISMATCH"
    gone = await disconnect(specialist, made.integration_id, made.etag)
    assert gone.status == DISCONNECTED
    left = await world.database.fetchval(
        "SELECT credentials::text FROM client_integrations WHERE id = $1", UUID(made.integration_id)
    )
    assert left == "{}"
    for call in (
        disconnect(specialist, made.integration_id),
        check(specialist, made.integration_id),
        rotate(specialist, made.integration_id, "yandex_direct", "x"),
    ):
        failure = await failing(call)
        assert (failure.reason, failure.metadata["state"]) == ("STATE_FORBIDS", "disconnected")
    again = await connect(specialist, client.client_id, "yandex_direct", token)
    assert (again.integration_id, again.status) == (made.integration_id, CONNECTED)


async def test_rights_and_scope_of_integrations(world: World, failing: Failing) -> None:
    client, foreign = await world.client(), await world.client()
    pm = await world.user("pm", client.client_id)
    planner = await world.user("media_planner", client.client_id)
    stranger = await world.user("specialist", foreign.client_id)
    made = await connect(world.admin, client.client_id)
    request = pb.GetIntegrationRequest(integration_id=made.integration_id)
    assert (await pm.integrations.GetIntegration(request, metadata=pm.auth)).integration == made
    for call in (
        connect(pm, client.client_id, "yandex_metrika"),
        planner.integrations.GetIntegration(request, metadata=planner.auth),
    ):
        assert (await failing(call)).code == grpc.StatusCode.PERMISSION_DENIED
    for call in (
        stranger.integrations.GetIntegration(request, metadata=stranger.auth),
        check(stranger, made.integration_id),
        disconnect(stranger, made.integration_id),
        rotate(stranger, made.integration_id, "vk_ads", "x"),
        connect(stranger, client.client_id),
        connect(world.admin, str(uuid4())),
    ):
        assert (await failing(call)).code == grpc.StatusCode.NOT_FOUND
    empty = pb.ConnectIntegrationRequest(client_id=client.client_id, credentials={})  # type: ignore[arg-type]
    failure = await failing(world.admin.integrations.ConnectIntegration(empty, metadata=world.admin.auth))
    assert "credentials.credentials" in failure.fields
    beyond = credentials("vk_ads", "x")
    beyond.expire_time.seconds = 2**62
    late = pb.ConnectIntegrationRequest(client_id=client.client_id, platform_account_id="beyond", credentials=beyond)
    failure = await failing(world.admin.integrations.ConnectIntegration(late, metadata=world.admin.auth))
    assert failure.reason == "INVALID_FIELDS"


OUTCOMES = [
    ("yandex_direct", "ok", ACCEPTED), ("yandex_direct", "53", REFUSED), ("yandex_direct", "54", REFUSED),
    ("yandex_direct", "52", UNAVAILABLE), ("yandex_direct", "152", UNAVAILABLE), ("yandex_direct", "1000", UNAVAILABLE),
    ("yandex_direct", "garbage", UNAVAILABLE), ("vk_ads", "ok", ACCEPTED), ("vk_ads", "401", REFUSED),
    ("vk_ads", "403", REFUSED), ("vk_ads", "429", UNAVAILABLE), ("vk_ads", "500", UNAVAILABLE),
    ("vk_ads", "redirect", UNAVAILABLE), ("vk_ads", "huge", UNAVAILABLE), ("yandex_metrika", "ok", ACCEPTED),
    ("yandex_metrika", "403", REFUSED), ("yandex_metrika", "unknown", REFUSED), ("yandex_metrika", "429", UNAVAILABLE),
    ("yandex_metrika", "quota", UNAVAILABLE), ("yandex_metrika", "503", UNAVAILABLE),
]  # fmt: skip


async def test_only_a_refusal_is_an_error_and_no_text_of_the_platform_comes_out(world: World) -> None:
    admin = world.admin
    client = await world.client()
    for platform, answer, outcome in OUTCOMES:
        good, token = secrets.token_hex(8), secrets.token_hex(8)
        world.platforms.behaviour |= {good: "ok", token: answer}
        made = await connect(admin, client.client_id, platform, token, platform_account_id=token[:4] + answer)
        result = await check(admin, made.integration_id)
        assert result.outcome == outcome, (platform, answer)
        assert result.integration.status == (ERROR if outcome == REFUSED else CONNECTED)
        assert bool(result.integration.last_error) == (outcome != ACCEPTED)
        assert token not in str(result) and "about" not in str(result)
        if outcome == REFUSED:
            rotated = await rotate(admin, made.integration_id, platform, good, result.integration.etag)
            assert (rotated.status, rotated.last_error) == (CONNECTED, "")
            assert (await check(admin, made.integration_id)).outcome == ACCEPTED
    assert not [each for each in world.platforms.asked if each.path == "/elsewhere"]
    failed = await world.database.fetchval(
        "SELECT count(*) FROM audit_log WHERE client_id = $1 AND action = 'test'", UUID(client.client_id)
    )
    assert failed == sum(outcome == REFUSED for _, _, outcome in OUTCOMES)


async def test_what_the_platform_accepts_again_is_connected_again(world: World, failing: Failing) -> None:
    client = await world.client()
    token = secrets.token_hex(8)
    made = await connect(world.admin, client.client_id, "vk_ads", token)
    assert (await check(world.admin, made.integration_id)).integration.status == ERROR
    world.platforms.behaviour[token] = "429"
    assert (await check(world.admin, made.integration_id)).integration.status == ERROR
    world.platforms.behaviour[token] = "ok"
    assert (await check(world.admin, made.integration_id)).integration.status == CONNECTED
    failure = await failing(rotate(world.admin, made.integration_id, "yandex_metrika", "x"))
    assert failure.fields == {"credentials": "PLATFORM_MISMATCH"}


async def test_integrations_of_archived_clients_rest_but_can_be_disconnected(world: World, failing: Failing) -> None:
    agency = await world.client(type=client_pb2.CLIENT_TYPE_AGENCY)
    client = await world.client(parent_client_id=agency.client_id)
    admin = world.admin
    made = await connect(admin, client.client_id)
    await admin.clients.ArchiveClient(
        client_service_pb2.ArchiveClientRequest(client_id=agency.client_id), metadata=admin.auth
    )
    request = pb.GetIntegrationRequest(integration_id=made.integration_id)
    assert (await admin.integrations.GetIntegration(request, metadata=admin.auth)).integration.paused
    for call in (
        check(admin, made.integration_id),
        rotate(admin, made.integration_id, "vk_ads", "x"),
        connect(admin, client.client_id, "yandex_metrika"),
    ):
        assert (await failing(call)).metadata["state"] == "archived"
    assert (await disconnect(admin, made.integration_id)).status == DISCONNECTED


async def test_a_client_cannot_leave_an_agency_whose_account_it_uses(world: World, failing: Failing) -> None:
    agency = await world.client(type=client_pb2.CLIENT_TYPE_AGENCY)
    client_id, (campaign_id,) = await world.tenant(parent_client_id=agency.client_id)
    made = await connect(world.admin, agency.client_id)
    await world.database.execute(
        "UPDATE campaigns SET integration_id = $1 WHERE id = $2", UUID(made.integration_id), UUID(campaign_id)
    )
    request = client_service_pb2.MoveClientRequest(client_id=client_id)
    failure = await failing(world.admin.clients.MoveClient(request, metadata=world.admin.auth))
    assert (failure.reason, failure.metadata["state"]) == ("STATE_FORBIDS", "account_in_use")
    # With the agency they move together.
    request.client_id = agency.client_id
    await world.admin.clients.MoveClient(request, metadata=world.admin.auth)


async def mrm(world: World, keyring: str, *command: str) -> tuple[int, str]:
    """Runs `mrm` on the same engines with this ring; its exit status and output."""
    environment = {**os.environ, "MRM_POSTGRES__DSN": world.connections.postgres_dsn, "MRM_SECRETS__KEYRING": keyring}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", *command, env={**environment, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output = (await asyncio.wait_for(process.communicate(), 60))[0].decode()
    return process.returncode or 0, output


async def test_keys_rotate_and_an_interrupted_rotation_goes_on(world: World) -> None:
    client = await world.client()
    made = [await connect(world.admin, client.client_id, platform_account_id=str(number)) for number in range(3)]
    next_key = new_entry("next")
    ring = KeyRing.parse(f"{next_key},{KEYRING}")

    async def keys() -> dict[str, int]:
        rows = await world.database.fetch(
            "SELECT credentials->>'key_id', count(*) FROM client_integrations WHERE client_id = $1 GROUP BY 1",
            UUID(client.client_id),
        )
        return dict(rows)

    def reseal(integration_id: UUID, owner: UUID, envelope: Mapping[str, str]) -> dict[str, str] | None:
        if str(owner) != client.client_id:
            return None
        bound = bound_to(integration_id, owner)
        return ring.seal(ring.open(envelope, bound), bound)

    # Someone begins, and stops after one.
    first = UUID(made[0].integration_id)
    async with world.database.transaction("rotate") as tx:
        before = UUID(int=first.int - 1)
        assert await integrations.reseal_internal(tx, "next", reseal, after=before, limit=1) == (first, 1)
    assert await keys() == {"next": 1, "of-tests": 2}
    try:
        code, output = await mrm(world, f"{next_key},{KEYRING}", "keys", "rotate")
        assert code == 0, output
        assert await keys() == {"next": 3}
        code, output = await mrm(world, KEYRING, "keys", "list")
        assert code == 0 and "not in the ring" in output
        assert KEYRING.partition(":")[2] not in output
        code, output = await mrm(world, new_entry("lost"), "keys", "rotate")
        assert code == 1 and "still under key next" in output
        assert await keys() == {"next": 3}
    finally:
        code, output = await mrm(world, f"{KEYRING},{next_key}", "keys", "rotate")
    assert code == 0, output
    # The server, which knows nothing of the other key, opens them again.
    result = await check(world.admin, made[1].integration_id)
    assert result.outcome == REFUSED


@pytest.mark.parametrize("misdeed", ["slow", "huge", "garbage", "redirect"])
async def test_a_misbehaving_platform_costs_bounded_time_and_is_no_refusal(world: World, misdeed: str) -> None:
    settings = world.platforms.settings(timeout=0.3)
    world.platforms.behaviour[misdeed + "-token"] = misdeed
    platforms = Platforms.open(settings)
    try:
        with pytest.raises(PlatformError) as caught:
            await platforms.connector("vk_ads").check(Account("misdeed", credentials("vk_ads", misdeed + "-token")))
    finally:
        await platforms.close()
    assert not isinstance(caught.value, AuthFailed)


@pytest.mark.parametrize(
    "url", ["http://ads.vk.com", "ftp://x", "https://", "https://u:p@x", "https://x/path", "http://127.0.0.1.evil.com"]
)
def test_tokens_leave_this_machine_only_encrypted(url: str) -> None:
    with pytest.raises(ValidationError):
        PlatformsSettings(vk_ads_url=url)


def test_envelopes_open_only_where_they_were_sealed() -> None:
    old = new_entry("old")
    ring = KeyRing.parse(old)
    row, client = uuid4(), uuid4()
    envelope = ring.seal(b"secret", bound_to(row, client))
    later = KeyRing.parse(f"{new_entry('new')}, {old}")
    assert later.open(envelope, bound_to(row, client)) == b"secret"
    assert later.seal(b"secret", b"")["key_id"] == "new"
    assert ring.seal(b"secret", b"") != ring.seal(b"secret", b"")
    for elsewhere in (bound_to(uuid4(), client), bound_to(row, uuid4()), b""):
        with pytest.raises(Unsealable):
            later.open(envelope, elsewhere)
    for damaged in (
        {**envelope, "ciphertext": envelope["ciphertext"][:-4] + "AAA="},
        {**envelope, "nonce": "AAAAAAAAAAAAAAAA"},
        {**envelope, "key_id": "new"},
        {**envelope, "alg": "none"},
        {},
    ):
        with pytest.raises(Unsealable):
            later.open(damaged, bound_to(row, client))
    with pytest.raises(Unsealable):
        KeyRing.parse(new_entry("old")).open(envelope, bound_to(row, client))


@pytest.mark.parametrize(
    "text",
    ["x", "a:AAAA", "a:" + "!" * 44, f"{KEYRING},{KEYRING}", "bad id:" + KEYRING.partition(":")[2]],
    ids=["no id", "short", "no base64", "twice", "bad id"],
)
def test_a_bad_ring_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(KeyRingError) as caught:
        KeyRing.parse(text)
    assert KEYRING.partition(":")[2] not in str(caught.value)


def test_a_ring_file_is_its_owners(tmp_path: Path) -> None:
    file = tmp_path / "keyring"
    prepend(file, new_entry("one"))
    prepend(file, new_entry("two"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert KeyRing.of(SecretsSettings(keyring_file=file)).key_ids == ["two", "one"]
    with pytest.raises(KeyRingError, match="two keys"):
        prepend(file, new_entry("two"))
    file.chmod(0o640)
    with pytest.raises(KeyRingError, match="read by others"):
        KeyRing.of(SecretsSettings(keyring_file=file))
    with pytest.raises(KeyRingError, match="cannot be read"):
        KeyRing.of(SecretsSettings(keyring_file=tmp_path / "none"))
    with pytest.raises(KeyRingError, match="no key ring"):
        KeyRing.of(SecretsSettings()).seal(b"x", b"")
