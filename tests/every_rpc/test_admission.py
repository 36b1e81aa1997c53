"""Bar: on every RPC, whoever is nobody, has not the right, or has it elsewhere, is refused with the right code.

The walks go by descriptor. A new RPC without a case in `cases.py` fails them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from server.rpc.policy import read_policy
from tests.conftest import Caller, Failure, World, failure_of
from tests.every_rpc.cases import CASES, EMPTY, METHODS, OWN, WITHIN, Case, Fields, message
from tests.every_rpc.conftest import Tenancy

pytestmark = pytest.mark.bar_c

# A stream that tells a stranger nothing says so by its silence, or by a message without data.
_SILENCE_SECONDS = 0.5

PRIVATE = [name for name, method in METHODS.items() if read_policy(method).permission != "PUBLIC"]
RIGHTS = [name for name in PRIVATE if read_policy(METHODS[name]).permission != "AUTHENTICATED"]
# An import's token needs an import that works: tests/statistics/test_files.py.
RESUMED = [
    name
    for name in RIGHTS
    if "resume_token" in METHODS[name].input_type.fields_by_name and not METHODS[name].name.startswith("Import")
]
PAGED = [name for name in PRIVATE if "page_token" in METHODS[name].input_type.fields_by_name]


async def call(caller: Caller, name: str, fields: Fields) -> Message | None:
    """Makes a call; the first reply, or None if a stream stays silent."""
    method = METHODS[name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    request, parse = message(name, fields), GetMessageClass(method.output_type).FromString
    serialize = type(request).SerializeToString
    if not method.client_streaming and not method.server_streaming:
        unary = caller.channel.unary_unary(path, serialize, parse)
        return await unary(request, metadata=caller.auth, timeout=20)  # type: ignore[no-any-return]
    if method.client_streaming:
        stream: Any = caller.channel.stream_stream(path, serialize, parse)(_once(request), metadata=caller.auth)
    else:
        stream = caller.channel.unary_stream(path, serialize, parse)(request, metadata=caller.auth)
    try:
        # One that refuses does so at once; the first reply of one that works may take a while.
        async with asyncio.timeout(_SILENCE_SECONDS if CASES[name].foreign == EMPTY else 20):
            reply = await stream.read()
    except TimeoutError:
        return None
    finally:
        stream.cancel()
    return None if reply is grpc.aio.EOF else reply


async def _once(request: Message) -> AsyncIterator[Message]:
    yield request
    await asyncio.sleep(20)


async def refusal(attempt: Awaitable[object]) -> Failure | None:
    """What a call is refused with, None if it is not."""
    try:
        await attempt
    except grpc.aio.AioRpcError as error:
        return failure_of(error)
    return None


def holds_nothing(reply: Message | None) -> bool:
    """Whether a reply tells nothing of a tenant: no repeated field has anything in it."""
    return reply is None or not any(field.is_repeated for field, _ in reply.ListFields())


def test_every_rpc_has_a_case() -> None:
    assert set(METHODS) == set(CASES)


@pytest.mark.parametrize("name", PRIVATE)
async def test_nobody_gets_in(world: World, tenancy: Tenancy, name: str) -> None:
    fields = CASES[name].request(tenancy.target)
    for token, reason in [
        ("", "CREDENTIALS_MISSING"),
        ("mrms_" + "x" * 43, "CREDENTIALS_INVALID"),
        ("mrmk_" + "x" * 43, "CREDENTIALS_INVALID"),
        ("something else", "CREDENTIALS_INVALID"),
    ]:
        failure = await refusal(call(world.caller(token), name, fields))
        assert failure is not None
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)


@pytest.mark.parametrize("name", RIGHTS)
async def test_who_has_not_the_right_is_refused(tenancy: Tenancy, name: str) -> None:
    permission = read_policy(METHODS[name]).permission
    for caller in await tenancy.without_right(permission):
        fields = CASES[name].request(tenancy.target)
        if CASES[name].foreign == WITHIN and not await refusal(call(caller, name, fields)):
            # Who has it elsewhere is let in, and told at each step.
            results = (await call(caller, name, fields)).results  # type: ignore[union-attr]
            assert [result.status.code for result in results] == [grpc.StatusCode.PERMISSION_DENIED.value[0]]
            continue
        failure = await refusal(call(caller, name, fields))
        assert failure is not None, "let through"
        assert failure.code == grpc.StatusCode.PERMISSION_DENIED, failure
        assert failure.metadata["permission"] == permission


@pytest.mark.parametrize("name", [name for name in RIGHTS if CASES[name].foreign != OWN])
async def test_a_right_elsewhere_finds_nothing_here(tenancy: Tenancy, name: str) -> None:
    case: Case = CASES[name]
    for caller in await tenancy.with_right(read_policy(METHODS[name]).permission):
        for request, expected in [(case.request, case.foreign), *((each, EMPTY) for each in case.filters)]:
            fields = request(tenancy.target)
            if expected == EMPTY:
                failure, reply = None, None
                try:
                    reply = await call(caller, name, fields)
                except grpc.aio.AioRpcError as error:
                    failure = failure_of(error)
                assert failure is None or failure.code == grpc.StatusCode.NOT_FOUND, failure
                assert holds_nothing(reply), reply
            elif expected == WITHIN:
                results = (await call(caller, name, fields)).results  # type: ignore[union-attr]
                assert [result.status.code for result in results] == [grpc.StatusCode.NOT_FOUND.value[0]]
            else:
                failure = await refusal(call(caller, name, fields))
                assert failure is not None, "let through"
                assert failure.code.name == expected, failure
                assert failure.reason == "RESOURCE_NOT_FOUND"


@pytest.mark.parametrize("name", [name for name in PAGED if CASES[name].pages])
async def test_page_tokens_work_for_their_caller_alone(tenancy: Tenancy, name: str) -> None:
    admin = tenancy.world.admin
    fields = {**CASES[name].request(tenancy.target), "page_size": 1}
    reply: Any = await call(admin, name, fields)
    assert reply.next_page_token, "the tenant of these tests must have two of what is listed"
    turned = {**fields, "page_token": reply.next_page_token}
    assert await call(admin, name, turned) is not None
    permission = read_policy(METHODS[name]).permission
    callers = [await tenancy.world.user("analyst", tenancy.target.client_id)] if permission == "AUTHENTICATED" else []
    for caller in [*callers, *(await tenancy.with_right(permission) if permission != "AUTHENTICATED" else [])]:
        failure = await refusal(call(caller, name, turned))
        assert failure is not None
        assert failure.reason in ("PAGE_TOKEN_INVALID", "RESOURCE_NOT_FOUND", "PERMISSION_MISSING"), failure
        # Not even for a list of one's own.
        if CASES[name].foreign == EMPTY:
            own = {"page_size": 1, "page_token": reply.next_page_token}
            failure = await refusal(call(caller, name, own))
            assert failure is not None
            assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


@pytest.mark.parametrize("name", RESUMED)
async def test_resume_tokens_work_for_their_caller_alone(tenancy: Tenancy, name: str) -> None:
    fields = dict(CASES[name].request(tenancy.target))
    first: Any = await call(tenancy.world.admin, name, fields)
    assert first.resume_token
    own = {**_elsewhere(fields, tenancy), "resume_token": first.resume_token}
    for caller in await tenancy.with_right(read_policy(METHODS[name]).permission):
        failure = await refusal(call(caller, name, own))
        assert failure is not None, "let through"
        assert failure.reason == "RESUME_TOKEN_INVALID", failure
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT


def _elsewhere(value: Any, tenancy: Tenancy) -> Any:
    """A request with the tenant's client replaced by the stranger's own."""
    if isinstance(value, dict):
        return {name: _elsewhere(each, tenancy) for name, each in value.items()}
    if isinstance(value, list):
        return [_elsewhere(each, tenancy) for each in value]
    return tenancy.elsewhere if value == tenancy.target.client_id else value
