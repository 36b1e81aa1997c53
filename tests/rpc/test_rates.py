"""Every RPC of every rate class tells what is left of its limit, and when to come back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from mrm.accounts.v1 import session_service_pb2
from mrm.common.v1 import options_pb2
from server.app import SERVICES, Application
from server.rpc.policy import read_policy
from storage.postgres import users
from tests.conftest import PASSWORD, PASSWORD_HASH, Caller, World, failure_of, settings_for

METHODS = [method for service in SERVICES for method in service.methods]
LIMITED = [method for method in METHODS if read_policy(method).permission != "PUBLIC"]


@pytest.fixture(scope="module")
async def tight(world: World) -> AsyncIterator[Caller]:
    """A server that grants each caller one call an hour of each RPC, and a key that may hardly do anything."""
    key = await world.key([], options_pb2.PERMISSION_CLIENTS_READ)
    settings = settings_for(world.connections)
    classes = ("login", "light", "heavy", "ingest", "stream", "work")
    settings.auth = settings.auth.model_copy(update={f"limit_{name}": 1 for name in classes})
    application = Application(settings)
    await application.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        yield Caller(channel, key.token)
    await application.stop()


async def empty_call(caller: Caller, method: MethodDescriptor) -> tuple[grpc.StatusCode, dict[str, str], Any]:
    """Sends nothing but credentials; returns how it ended."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    call: Any
    if method.client_streaming:
        call = caller.channel.stream_stream(path)(metadata=caller.auth)
        await call.done_writing()
        reply = call.read()
    elif method.server_streaming:
        call = caller.channel.unary_stream(path)(b"", metadata=caller.auth)
        reply = call.read()
    else:
        call = caller.channel.unary_unary(path)(b"", metadata=caller.auth)
        reply = call
    failure = None
    try:
        await reply
    except grpc.aio.AioRpcError as error:
        failure = failure_of(error)
    return await call.code(), {key: value for key, value in await call.trailing_metadata()}, failure


@pytest.mark.parametrize("method", LIMITED, ids=lambda method: method.full_name)
async def test_every_rpc_counts_and_tells(tight: Caller, method: MethodDescriptor) -> None:
    code, trailer, _ = await empty_call(tight, method)
    assert code != grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (trailer["ratelimit-limit"], trailer["ratelimit-remaining"]) == ("1", "0")
    assert 3590 <= int(trailer["ratelimit-reset"]) <= 3600
    code, trailer, failure = await empty_call(tight, method)
    assert (code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert 3500 < failure.retry_seconds <= 3600
    assert (trailer["ratelimit-limit"], trailer["ratelimit-remaining"]) == ("1", "0")
    assert 3500 < int(trailer["ratelimit-reset"]) <= 3600
    assert trailer["x-request-id"] == failure.metadata["request_id"]


def test_every_rate_class_is_walked() -> None:
    walked = {read_policy(method).rate_class for method in LIMITED}
    assert walked | {"LOGIN"} == {"LOGIN", "LIGHT", "HEAVY", "INGEST", "STREAM", "WORK"}


@pytest.mark.parametrize("password", [PASSWORD, "wrong"])
async def test_signing_in_counts_and_tells(world: World, tight: Caller, password: str) -> None:
    email = f"{uuid4()}@example.com"
    await users.create(world.database, email=email, password_hash=PASSWORD_HASH, role="analyst")
    request = session_service_pb2.LoginRequest(email=email, password=password)
    first = tight.sessions.Login(request)
    assert await first.code() == (grpc.StatusCode.OK if password == PASSWORD else grpc.StatusCode.UNAUTHENTICATED)
    second = tight.sessions.Login(request)
    assert await second.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in (first, second):
        trailer = {key: value for key, value in await call.trailing_metadata()}
        assert (trailer["ratelimit-limit"], trailer["ratelimit-remaining"]) == ("1", "0")
        assert 3500 < int(trailer["ratelimit-reset"]) <= 3600
        assert trailer["x-request-id"]


async def test_whoever_is_unknown_is_told_no_limit(tight: Caller) -> None:
    stranger = Caller(tight.channel, f"mrmk_{uuid4()}")
    code, trailer, failure = await empty_call(stranger, LIMITED[0])
    assert (code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")
    assert trailer["x-request-id"]
    assert not any(key.startswith("ratelimit") for key in trailer)
