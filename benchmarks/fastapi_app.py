"""What the benchmarks compare with: the same three things as a competent developer would write them with FastAPI.

One worker of uvicorn with uvloop and httptools; pydantic models in and out (FastAPI writes them as JSON by itself,
faster than its former ORJSONResponse did); orjson reads request bodies; asyncpg, redis-py with hiredis and
clickhouse-connect as their documentation shows them; middleware is plain ASGI. What is the same as in the service:

- POST /events: the rules of an event, the campaign's tenant resolved for each event, one durable INSERT into the same
  table with the same settings, answered when the rows are stored. The tenant comes from a dict of all campaigns.
- POST /events.jsonl: the statement that the service itself sends, with its checks, but for rows of JSON: the body goes
  on to ClickHouse unread, which is the least that a Python process between a producer and ClickHouse can do.
- GET /campaigns/{id}: session and call limit by the same script in Redis on every call, the role's right, the same
  statement with the caller's scope, all fields of the campaign, limit headers, request id, an access log line.

What the service does beyond that, and this does not: streams with offsets that fence a second writer, deduplication of
repeated calls, faults of single events reported by position, quarantine of events out of time, pseudonyms in place of
user ids, deadlines, back-pressure, draining, error details. Nothing here is slowed down; neither is anything tuned that
most leave as it comes: Python's garbage collector, which costs about a quarter of POST /events, and the reset of a
connection that goes back to asyncpg's pool, a round trip of GET /campaigns/{id}.
"""

import hashlib
import math
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import asyncpg
import orjson
import uvicorn
from clickhouse_connect import get_async_client
from clickhouse_connect.driver.exceptions import DatabaseError
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from redis.asyncio import Redis

from server.accounts.permissions import ROLE_PERMISSIONS
from storage.clickhouse.connect import WRITE_SETTINGS, database_of
from storage.postgres import api_keys, campaigns
from storage.postgres.database import _prepare_connection
from storage.redis.sessions import _AUTHORIZE
from storage.scope import Scope

MAX_AGE = timedelta(days=365)
MAX_FUTURE = timedelta(minutes=10)
CALLS_AN_HOUR = 3600
NIL = UUID(int=0)

Micros = Annotated[int, Field(ge=0, le=10**15)]


class Event(BaseModel):
    """One event, by the rules of mrm.statistics.v1.Event."""

    event_id: UUID
    event_time: AwareDatetime
    campaign_id: UUID
    event_type: Literal["impression", "click", "conversion"]
    user_id: Annotated[str, Field(max_length=128)] | None = None
    cost_micros: Micros = 0
    revenue_micros: Micros = 0
    conversions_micros: Annotated[int, Field(ge=0, le=10**12)] | None = None
    attributes: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
        Field(max_length=32),
    ] = {}

    @model_validator(mode="after")
    def _whole(self) -> "Event":
        if self.conversions_micros is not None and self.event_type != "conversion":
            raise ValueError("conversions_micros may only be set on a conversion")
        if self.event_id == NIL:
            raise ValueError("event_id must not be nil")
        return self


class Stored(BaseModel):
    """The answer to a list of events."""

    stored_count: int


class CampaignOut(BaseModel):
    """A campaign as the API shows it."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    revision: int
    client_id: UUID
    project_id: UUID
    platform: str
    name: str
    status: str
    currency: str
    budget_daily: Decimal | None
    budget_total: Decimal | None
    budget_spent: Decimal
    external_id: str | None
    configuration: dict[str, Any]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Known:
    """What an event's campaign says of it."""

    client_id: UUID
    project_id: UUID
    platform: str
    currency: str


class OrjsonRequest(Request):
    """A request whose body orjson reads."""

    async def json(self) -> Any:
        """The body."""
        return orjson.loads(await self.body())


class OrjsonRoute(APIRoute):
    """A route of such requests, as FastAPI's documentation has it."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Wraps the handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(OrjsonRequest(request.scope, request.receive))

        return handle


router = APIRouter(route_class=OrjsonRoute)


def _secret(authorization: str) -> str:
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise HTTPException(401, "send `Authorization: Bearer <token>`")
    return hashlib.sha256(secret.encode()).hexdigest()


async def producer(request: Request, authorization: Annotated[str, Header()] = "") -> frozenset[UUID]:
    """Clients whose events the caller's API key may send."""
    key = await request.app.state.postgres.fetchrow(api_keys._BY_HASH, bytes.fromhex(_secret(authorization)))
    if key is None:
        raise HTTPException(401, "the API key is unknown, expired or revoked")
    if "STATISTICS_INGEST" not in key["permissions"]:
        raise HTTPException(403, "this needs the permission STATISTICS_INGEST")
    request.state.principal = str(key["id"])
    return frozenset(key["client_ids"])


def signed_in(permission: str) -> Callable[..., Awaitable[Scope]]:
    """A dependency: the caller's session is alive, below its limit and has the permission."""

    async def check(request: Request, response: Response, authorization: Annotated[str, Header()] = "") -> Scope:
        endpoint = f"{request.method} {request.scope['route'].path}"
        found = await request.app.state.authorize(
            keys=[f"session:{_secret(authorization)}"], args=[endpoint, CALLS_AN_HOUR]
        )
        if found is None:
            raise HTTPException(401, "the session is unknown, expired or revoked")
        (user_id, _email, role, _created_at), _life, (allowed, remaining, reset, retry) = found
        headers = {
            "RateLimit-Limit": str(CALLS_AN_HOUR),
            "RateLimit-Remaining": str(remaining),
            "RateLimit-Reset": str(math.ceil(reset / 1e6)),
        }
        if not allowed:
            raise HTTPException(429, "too many calls", {**headers, "Retry-After": str(math.ceil(retry / 1e6))})
        response.headers.update(headers)
        request.state.principal = user_id
        if permission not in ROLE_PERMISSIONS.get(role, ()):
            raise HTTPException(403, f"this needs the permission {permission}")
        return Scope(everything=role == "admin", user_id=UUID(user_id))

    return check


@router.get("/campaigns/{campaign_id}")
async def get_campaign(
    campaign_id: UUID, request: Request, scope: Annotated[Scope, Depends(signed_in("CAMPAIGNS_READ"))]
) -> CampaignOut:
    """One campaign that the caller may see."""
    row = await request.app.state.postgres.fetchrow(campaigns._GET, *scope.args, campaign_id)
    if row is None:
        raise HTTPException(404, "no such campaign")
    return CampaignOut.model_validate(dict(row))


_COLUMNS = {
    "client_id": "UUID",
    "campaign_id": "UUID",
    "event_time": "DateTime64(6, 'UTC')",
    "event_id": "UUID",
    "project_id": "UUID",
    "platform": "LowCardinality(String)",
    "event_type": "Enum8('impression' = 1, 'click' = 2, 'conversion' = 3)",
    "user_id": "Nullable(String)",
    "cost": "Decimal(18, 6)",
    "revenue": "Decimal(18, 6)",
    "conversions": "Decimal(18, 6)",
    "currency": "LowCardinality(String)",
    "attributes": "Map(LowCardinality(String), String)",
}


@router.post("/events", status_code=201)
async def append_events(
    events: list[Event], request: Request, clients: Annotated[frozenset[UUID], Depends(producer)]
) -> Stored:
    """Stores events, all or none."""
    directory: dict[UUID, Known] = request.app.state.directory
    known = [directory.get(event.campaign_id) for event in events]
    if any(campaign is None or campaign.client_id not in clients for campaign in known):
        raise HTTPException(422, "an event is of an unknown campaign")
    now = datetime.now(UTC)
    oldest, latest = now - MAX_AGE, now + MAX_FUTURE
    if any(not oldest <= event.event_time <= latest for event in events):
        raise HTTPException(422, "an event's time is out of bounds")
    await request.app.state.clickhouse.insert(
        "campaign_events",
        [
            [campaign.client_id for campaign in known],
            [event.campaign_id for event in events],
            [event.event_time for event in events],
            [event.event_id for event in events],
            [campaign.project_id for campaign in known],
            [campaign.platform for campaign in known],
            [event.event_type for event in events],
            [event.user_id for event in events],
            [_units(event.cost_micros) for event in events],
            [_units(event.revenue_micros) for event in events],
            [_conversions(event) for event in events],
            [campaign.currency for campaign in known],
            [event.attributes for event in events],
        ],
        column_names=list(_COLUMNS),
        column_type_names=list(_COLUMNS.values()),
        column_oriented=True,
        settings={**WRITE_SETTINGS, "optimize_on_insert": 0},
    )
    return Stored(stored_count=len(events))


_ZERO, _ONE = Decimal(0), Decimal(1)


def _units(micros: int) -> Decimal:
    return Decimal(micros).scaleb(-6) if micros else _ZERO


def _conversions(event: Event) -> Decimal:
    if event.event_type != "conversion":
        return _ZERO
    return _ONE if event.conversions_micros is None else _units(event.conversions_micros)


# Ids come as text, or other spellings of a UUID would pass; times as microseconds, which are read fastest.
_INPUT = (
    "event_id String, event_time Int64, campaign_id String, event_type Int32, user_id Nullable(String),"
    " cost_micros Int64, revenue_micros Int64, conversions_micros Nullable(Int64),"
    " attributes Map(LowCardinality(String), String)"
)
_FORWARD = """INSERT INTO {database}.campaign_events
(client_id, campaign_id, event_time, event_id, project_id, platform, event_type, user_id, cost, revenue, conversions,
 currency, attributes)
SELECT
    known.1,
    campaign,
    fromUnixTimestamp64Micro(event_time, 'UTC'),
    event,
    known.2,
    known.3,
    CAST(event_type, 'Enum8(\\'impression\\' = 1, \\'click\\' = 2, \\'conversion\\' = 3)'),
    user_id,
    reinterpret(cost_micros, 'Decimal64(6)'),
    reinterpret(revenue_micros, 'Decimal64(6)'),
    if(event_type = 3, reinterpret(ifNull(conversions_micros, 1000000), 'Decimal64(6)'), 0),
    known.4,
    attributes
FROM
(
    SELECT
        *,
        toUUID(event_id) AS event,
        toUUID(campaign_id) AS campaign,
        dictGet('{database}.campaigns_dict', ('client_id', 'project_id', 'platform', 'currency'), campaign) AS known
    FROM input('{input}')
)
WHERE throwIf(known.1 NOT IN ({clients}), 'campaign')
    + throwIf(event_time NOT BETWEEN {lower} AND {upper}, 'time')
    + throwIf(
        length(event_id) != 36 OR length(campaign_id) != 36
        OR event = toUUID('00000000-0000-0000-0000-000000000000')
        OR event_type NOT BETWEEN 1 AND 3
        OR cost_micros NOT BETWEEN 0 AND 1000000000000000
        OR revenue_micros NOT BETWEEN 0 AND 1000000000000000
        OR isNotNull(conversions_micros)
            AND (event_type != 3 OR assumeNotNull(conversions_micros) NOT BETWEEN 0 AND 1000000000000),
        'value')
    + throwIf(
        ifNull(lengthUTF8(user_id) > 128, 0)
        OR length(attributes) > 32
        OR arrayExists(key -> empty(key) OR lengthUTF8(key) > 64, mapKeys(attributes))
        OR arrayExists(value -> lengthUTF8(value) > 512, mapValues(attributes)),
        'text')
    = 0
SETTINGS
    input_format_allow_errors_num = 0,
    input_format_allow_errors_ratio = 0,
    async_insert = 0,
    distributed_foreground_insert = 1,
    insert_deduplicate = 0,
    deduplicate_blocks_in_dependent_materialized_views = 0,
    materialized_views_ignore_errors = 0,
    optimize_on_insert = 0,
    max_threads = 1,
    max_insert_threads = 1,
    max_insert_block_size = 1048576,
    min_insert_block_size_rows = 1048576,
    min_insert_block_size_bytes = 268435456,
    max_partitions_per_insert_block = 0,
    max_memory_usage = 1073741824,
    max_execution_time = 31
FORMAT JSONEachRow
"""


@router.post("/events.jsonl", status_code=204)
async def forward_events(request: Request, clients: Annotated[frozenset[UUID], Depends(producer)]) -> None:
    """Stores events that come as lines of JSON, all or none, without looking at them."""
    now = time.time()
    statement = _FORWARD.format(
        database=request.app.state.clickhouse_database,
        clients=", ".join(f"toUUID('{client_id}')" for client_id in clients),
        lower=int((now - MAX_AGE.total_seconds()) * 1e6),
        upper=int((now + MAX_FUTURE.total_seconds()) * 1e6),
        input=_INPUT,
    )

    async def body() -> AsyncIterator[bytes]:
        yield statement.encode()
        async for chunk in request.stream():
            yield chunk

    try:
        await request.app.state.clickhouse.raw_insert(insert_block=body(), settings={"wait_end_of_query": 1})
    except DatabaseError as error:
        fault = re.search(r"while executing 'FUNCTION throwIf|Cannot parse|CANNOT_PARSE", str(error))
        raise HTTPException(422 if fault else 503, "the events were not stored") from None


class AccessLog:
    """Gives each request an id, and writes one line of JSON about it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500
        request_id = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        if not request_id:
            request_id = uuid4().hex.encode()

        async def reply(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, reply)
        finally:
            line = {
                "event": "call",
                "timestamp": time.time(),
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round((time.perf_counter() - begun) * 1000, 2),
                "request_id": request_id.decode(),
                "principal": scope.get("state", {}).get("principal", ""),
                "peer": ":".join(map(str, scope["client"] or ())),
            }
            sys.stderr.buffer.write(orjson.dumps(line) + b"\n")
            sys.stderr.buffer.flush()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens the stores and learns all campaigns."""
    clickhouse_dsn = os.environ["MRM_CLICKHOUSE__DSN"]
    app.state.postgres = await asyncpg.create_pool(
        os.environ["MRM_POSTGRES__DSN"], min_size=10, max_size=10, init=_prepare_connection
    )
    redis = Redis.from_url(os.environ["MRM_REDIS__DURABLE_DSN"], decode_responses=True)
    app.state.authorize = redis.register_script(_AUTHORIZE.source)
    # Without sessions, in which only one statement at a time may run.
    app.state.clickhouse = await get_async_client(dsn=clickhouse_dsn, autogenerate_session_id=False, compress=False)
    app.state.clickhouse_database = database_of(clickhouse_dsn)
    rows = await app.state.postgres.fetch("SELECT id, client_id, project_id, platform, currency FROM campaigns")
    app.state.directory = {campaign_id: Known(*known) for campaign_id, *known in rows}
    yield
    await app.state.clickhouse.close()
    await redis.aclose()
    await app.state.postgres.close()


def create_app() -> FastAPI:
    """The application."""
    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    app.add_middleware(AccessLog)
    return app


class Server(uvicorn.Server):
    """Tells the benchmark its port."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, then prints."""
        await super().startup(sockets)
        if self.started and sockets:
            print(sockets[0].getsockname()[1], flush=True)


def main() -> None:
    """Serves on a free port until SIGTERM."""
    config = uvicorn.Config(create_app(), loop="uvloop", http="httptools", access_log=False, log_level="warning")
    Server(config).run([socket.create_server(("127.0.0.1", 0))])


if __name__ == "__main__":
    main()
