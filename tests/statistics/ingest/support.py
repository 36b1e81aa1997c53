"""Ingest on real engines, without the network in front: requests go in as bytes, replies come out as messages."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.embedded import Connections, EmbeddedEngines
from server.rpc.call import Call, Principal, StreamCall
from server.settings import IngestSettings
from server.statistics.append import IngestRpcs
from server.statistics.ingest import Ingestor, RawFloor, SaltBook
from server.statistics.relay import CampaignDirectory, CampaignRelay
from server.statistics.wire import AppendRequest, append_request_deserializer, ingest_request_deserializer
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.pseudonyms import Salt
from storage.postgres import campaigns, clients, projects, user_id_salts, users
from storage.postgres.database import Database
from storage.scope import EVERYTHING, Scope

REPLY_SECONDS = 60.0


def event(campaign_id: UUID | str, seconds: float | None = None, **fields: Any) -> event_pb2.Event:
    """An impression, now unless a time is given."""
    values: dict[str, Any] = {"event_id": str(uuid4()), "event_type": event_pb2.EVENT_TYPE_IMPRESSION, **fields}
    made = event_pb2.Event(campaign_id=str(campaign_id), **values)
    made.event_time.FromMicroseconds(round((time.time() if seconds is None else seconds) * 1e6))
    return made


@dataclass
class Tenant:
    """A client with campaigns."""

    client_id: UUID
    project_id: UUID
    campaign_ids: list[UUID]


@dataclass
class IngestWorld:
    """The stores, and ingest on top of them."""

    engines: EmbeddedEngines
    connections: Connections
    database: Database
    clickhouse: ClickHouse
    relay: CampaignRelay
    directory: CampaignDirectory
    settings: IngestSettings = field(default_factory=IngestSettings)

    def rpcs(self, **limits: Any) -> IngestRpcs:
        """The RPCs, with other limits than the usual ones if given."""
        settings = self.settings.model_copy(update=limits)
        ingestor = Ingestor(self.clickhouse, self.directory, RawFloor(self.database), SaltBook(self.database), settings)
        return IngestRpcs(self.database, ingestor, settings)

    async def tenant(self, campaign_count: int = 1) -> Tenant:
        """A new client whose campaigns only PostgreSQL knows."""
        client = await clients.create(self.database, name="Client", type="direct_advertiser")
        user = await users.create(self.database, email=f"{uuid4().hex}@example.com", password_hash="!", role="pm")
        project = await projects.create(self.database, client_id=client.id, name="Project", created_by=user.id)
        tenant = Tenant(client.id, project.id, [])
        for _ in range(campaign_count):
            tenant.campaign_ids.append(await self.campaign(tenant))
        return tenant

    async def campaign(self, tenant: Tenant) -> UUID:
        """One more campaign of a tenant."""
        made = await campaigns.create(
            self.database,
            client_id=tenant.client_id,
            project_id=tenant.project_id,
            platform="vk_ads",
            name="Campaign",
            currency="RUB",
        )
        return made.id

    async def ingest(self, tenant: Tenant, events: list[event_pb2.Event], **limits: Any) -> pb.IngestEventsResponse:
        """Sends events through IngestEvents."""
        request = pb.IngestEventsRequest(client_id=str(tenant.client_id), batch=event_pb2.EventBatch(events=events))
        return await self.ingest_bytes(request.SerializeToString(), **limits)

    async def ingest_bytes(self, request: bytes, scope: Scope = EVERYTHING, **limits: Any) -> pb.IngestEventsResponse:
        """Sends a serialized request through IngestEvents."""
        call = Call("IngestEvents", "request-id", principal(scope))
        return await self.rpcs(**limits).IngestEvents(ingest_request_deserializer(request), call)

    async def count(self, tenant: Tenant, table: str = "campaign_events") -> int:
        """Rows of a tenant, each counted once."""
        rows = await self.clickhouse.fetch(
            f"SELECT count() FROM {table} FINAL WHERE client_id = {{client:UUID}}", {"client": tenant.client_id}
        )
        return int(rows[0][0])

    async def salt(self, tenant: Tenant) -> Salt:
        """The secret of a tenant's pseudonyms."""
        return Salt.of(await user_id_salts.get_internal(self.database, tenant.client_id))

    async def kill_clickhouse(self) -> None:
        """Kills the ClickHouse process and waits until another one runs."""
        pid = self.engines.pid("clickhouse")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while self.engines.pid("clickhouse") in (pid, None):
            await asyncio.sleep(0.02)


def principal(scope: Scope) -> Principal:
    """Someone with a scope."""
    return Principal("api_key", uuid4(), frozenset({"STATISTICS_INGEST"}), scope, credential="x")


class Producer:
    """One AppendEvents call."""

    def __init__(self, rpcs: IngestRpcs, client_id: UUID | None, stream_id: str, scope: Scope = EVERYTHING) -> None:
        self.client_id = "" if client_id is None else str(client_id)
        self.stream_id = stream_id
        self.draining = asyncio.Event()
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._replies: asyncio.Queue[pb.AppendEventsResponse] = asyncio.Queue()
        call: StreamCall[AppendRequest, pb.AppendEventsResponse] = StreamCall(
            "AppendEvents",
            "request-id",
            principal(scope),
            requests=self._read(),
            write=self._write,
            draining=self.draining,
        )
        self.task = asyncio.create_task(rpcs.AppendEvents(call))

    @property
    def unread(self) -> int:
        """Requests that the server has not read."""
        return self._requests.qsize()

    def send(self, offset: int, events: list[event_pb2.Event] | None = None) -> None:
        """Sends one request; no events means no batch."""
        request = pb.AppendEventsRequest(client_id=self.client_id, stream_id=self.stream_id, offset=offset)
        if events is not None:
            request.batch.events.extend(events)
        self.send_bytes(request.SerializeToString())

    def send_bytes(self, request: bytes) -> None:
        """Sends a serialized request."""
        self._requests.put_nowait(request)

    async def reply(self) -> pb.AppendEventsResponse:
        """The next reply; raises what ended the call if it ended with an error."""
        waiting = asyncio.create_task(self._replies.get())
        async with asyncio.timeout(REPLY_SECONDS):
            await asyncio.wait((waiting, self.task), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            self.task.result()
            raise EOFError("the call ended without a reply")
        return waiting.result()

    async def close(self) -> None:
        """Ends the requests and waits for the call to end."""
        self._requests.put_nowait(None)
        await self.ended()

    async def ended(self) -> None:
        """Waits for the call to end."""
        async with asyncio.timeout(REPLY_SECONDS):
            await self.task

    async def _read(self) -> AsyncIterator[AppendRequest]:
        while (request := await self._requests.get()) is not None:
            yield append_request_deserializer(request)

    async def _write(self, message: pb.AppendEventsResponse | bytes) -> None:
        assert isinstance(message, pb.AppendEventsResponse)
        self._replies.put_nowait(message)
