"""Bar: whatever comes in, the answer is a reply or a typed error; never UNKNOWN, INTERNAL or an exception's text."""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mrm.accounts.v1 import session_service_pb2
from mrm.common.v1 import error_reason_pb2, options_pb2
from server.rpc.policy import read_policy
from tests.conftest import Caller, World, failure_of
from tests.every_rpc.cases import CASES, METHODS, Target, message, streams
from tests.every_rpc.conftest import make_target

pytestmark = pytest.mark.bar_c

FULL = os.environ.get("MRM_BARS") == "full"
# Requests of one example go out together.
TOGETHER = 20 if FULL else 10
EXAMPLES = math.ceil(200 / TOGETHER) if FULL else 1
_STREAM_SECONDS = 0.3

Result = TypeVar("Result")
Kind = FieldDescriptor
INTEGERS = {
    Kind.TYPE_INT32: 2**31,
    Kind.TYPE_SINT32: 2**31,
    Kind.TYPE_SFIXED32: 2**31,
    Kind.TYPE_INT64: 2**63,
    Kind.TYPE_SINT64: 2**63,
    Kind.TYPE_SFIXED64: 2**63,
}
TEXTS = (
    "", " ", "x", "\x00", "a\x00b", "'; DROP TABLE users; --", "%s %d {0}", "../../etc/passwd", "ё" * 300, "\u202e",
    "😀", "x" * 5000, "2026-02-30", "2026-01-01", "9999-12-31", "0000-00-00", "Europe/Moscow", "Asia/Kolkata",
    "RUB", "rub", "*", "display_name", "a.b.c",
    "00000000-0000-0000-0000-000000000000", "1e400", "NaN", "0.1234567", "clients/../x",
)  # fmt: skip
# Codes that tell a caller what to do. UNAVAILABLE is none of them here: every store is up, if slow at times.
EXPECTED = {
    grpc.StatusCode[name]
    for name in (
        "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED",
        "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED",
    )
}  # fmt: skip
INNARDS = re.compile(
    r"Traceback|asyncpg|clickhouse|redis|obstore|Exception|Error\(|\.py\b|/tmp/|SELECT |postgresql://", re.I
)
REASONS = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118 (an enum)


def values(field: FieldDescriptor, ids: list[str], depth: int) -> st.SearchStrategy[Any]:
    """Values of a field, mostly at the edges of what it can hold."""
    if field.type == Kind.TYPE_MESSAGE:
        return messages(field.message_type, ids, depth + 1)
    if field.type == Kind.TYPE_ENUM:
        return st.sampled_from([*field.enum_type.values_by_number, 99, -1])
    if field.type in INTEGERS:
        largest = INTEGERS[field.type]
        return st.sampled_from([0, 1, -1, 2, 7, 500, 10**6, largest - 1, -largest])
    if field.type == Kind.TYPE_BOOL:
        return st.booleans()
    if field.type == Kind.TYPE_BYTES:
        return st.binary(max_size=40)
    if field.type == Kind.TYPE_STRING:
        return st.one_of(st.sampled_from(ids), st.sampled_from(TEXTS), st.text(max_size=10))
    return st.sampled_from([0.0, -1.0, math.inf, -math.inf, math.nan, 1e300])


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, ids: list[str], depth: int = 0) -> Message:
    """A message with some of its fields set."""
    made = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if depth <= 3 and draw(st.booleans()):
            put(made, field, draw, ids, depth)
    return made


def put(made: Message, field: FieldDescriptor, draw: st.DrawFn, ids: list[str], depth: int) -> None:
    """Sets one field at random."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        value = draw(values(entry["value"], ids, depth + 1))
        target = getattr(made, field.name)
        key = draw(values(entry["key"], ids, depth + 1))
        if isinstance(value, Message):
            target[key].CopyFrom(value)
        else:
            target[key] = value
    elif field.is_repeated:
        getattr(made, field.name).extend(draw(st.lists(values(field, ids, depth), max_size=3)))
    elif field.type == Kind.TYPE_MESSAGE:
        getattr(made, field.name).CopyFrom(draw(values(field, ids, depth)))
    else:
        setattr(made, field.name, draw(values(field, ids, depth)))


@st.composite
def requests(draw: st.DrawFn, name: str, target: Target) -> Message:
    """A request: all at random, or one that works with some fields replaced, which gets further."""
    ids, descriptor = target.ids(), METHODS[name].input_type
    if draw(st.integers(0, 3)) == 0:
        return draw(messages(descriptor, ids))
    made = message(name, CASES[name].request(target))
    for field in descriptor.fields:
        if draw(st.integers(0, 2)) == 0:
            made.ClearField(field.name)
            put(made, field, draw, ids, 0)
    return made


def check(error: grpc.aio.AioRpcError, request: object) -> None:
    """An error says what is wrong, by a reason of the catalogue, and nothing of how the service is made."""
    failure = failure_of(error)
    assert failure.code in EXPECTED, (failure, request)
    assert failure.reason in REASONS, (failure, request)
    assert not INNARDS.search(failure.message), (failure, request)


async def patiently(work: Callable[[], Awaitable[Result]]) -> Result:
    """Does something again while a store stalls, which on a busy machine is the truth and no fault of the request."""
    for _ in range(20):
        try:
            return await work()
        except grpc.aio.AioRpcError as error:
            if failure_of(error).reason != "STORE_UNAVAILABLE":
                raise
        await asyncio.sleep(0.5)
    return await work()


async def attempt(caller: Caller, name: str, request: Message | bytes) -> None:
    """Makes a call; whatever it is refused with must be an answer."""
    try:
        await patiently(lambda: once(caller, name, request))
    except grpc.aio.AioRpcError as error:
        check(error, request)


async def once(caller: Caller, name: str, request: Message | bytes) -> None:
    """Makes a call and takes what comes at first."""
    method = METHODS[name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    serialize = None if isinstance(request, bytes) else type(request).SerializeToString
    if not streams(method):
        await caller.channel.unary_unary(path, serialize)(request, metadata=caller.auth, timeout=30)
        return
    if method.client_streaming:
        stream: Any = caller.channel.stream_stream(path, serialize)(_once(request), metadata=caller.auth)
    else:
        stream = caller.channel.unary_stream(path, serialize)(request, metadata=caller.auth)
    try:
        async with asyncio.timeout(_STREAM_SECONDS):
            await stream.read()
    except TimeoutError:
        pass
    finally:
        stream.cancel()


async def _once(request: Message | bytes) -> AsyncIterator[Message | bytes]:
    yield request


@pytest.fixture(scope="module")
async def target(world: World) -> Target:
    """A tenant that may come to harm."""
    return await make_target(world)


@pytest.fixture(scope="module")
async def tracker(world: World, target: Target) -> Caller:
    return await world.key([target.client_id], options_pb2.PERMISSION_STATISTICS_INGEST)


class Administrator:
    """Somebody who may do everything, also after having ended the own session."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._caller = Caller(world.channel)

    async def __call__(self) -> Caller:
        """The caller, signed in."""
        try:
            request = session_service_pb2.GetCurrentSessionRequest()
            await patiently(lambda: self._caller.sessions.GetCurrentSession(request, metadata=self._caller.auth))
        except grpc.aio.AioRpcError:
            self._caller = await patiently(lambda: self._world.user("admin"))
        return self._caller


@pytest.fixture(scope="module")
def administrator(world: World) -> Administrator:
    return Administrator(world)


@pytest.mark.parametrize("name", CASES)
async def test_random_requests(target: Target, tracker: Caller, administrator: Administrator, name: str) -> None:
    person = await administrator()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=not FULL,
    )
    @given(st.lists(requests(name, target), min_size=TOGETHER, max_size=TOGETHER))
    def collect(drawn: list[Message]) -> None:
        batches.append(drawn)

    batches: list[list[Message]] = []
    await asyncio.to_thread(collect)
    caller = tracker if read_policy(METHODS[name]).permission == "STATISTICS_INGEST" else person
    for drawn in batches:
        await asyncio.gather(*(attempt(caller, name, request) for request in drawn))


@pytest.mark.parametrize("name", CASES)
async def test_bytes_that_are_no_message(administrator: Administrator, name: str) -> None:
    person = await administrator()
    dice = random.Random(name)
    garbage = [dice.randbytes(dice.randint(1, 200)) for _ in range(200 if FULL else 8)]
    await asyncio.gather(*(attempt(person, name, each) for each in [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", *garbage]))
