"""Frames that no gRPC library would send: a clear error, nothing stored, and the server goes on."""

from __future__ import annotations

import asyncio
import gzip
import os
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)

from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from storage.clickhouse.connect import ClickHouse
from tests.conftest import Caller, World, impression

pytestmark = pytest.mark.bar_b

INGEST = "/mrm.statistics.v1.StatisticsService/IngestEvents"
APPEND = "/mrm.statistics.v1.StatisticsService/AppendEvents"
INVALID, EXHAUSTED, INTERNAL, DEADLINE = (
    code.value[0]
    for code in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
)


@dataclass
class Answer:
    """What came back on a stream."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    reset: bool = False

    @property
    def status(self) -> int | None:
        """The gRPC status, if the stream ended with one."""
        found = self.headers.get("grpc-status")
        return None if found is None else int(found)


class Raw:
    """An HTTP/2 connection on which anything can be sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._http.initiate_connection()

    async def call(self, method: str, token: str, body: bytes, **headers: str) -> Answer:
        """Sends a body as the whole request and waits for the end of the stream."""
        stream_id = self._send_headers(method, token, **headers)
        answer = Answer()
        over = False
        if not body:
            self._http.end_stream(stream_id)
        while body and not over:
            window = min(self._http.local_flow_control_window(stream_id), self._http.max_outbound_frame_size)
            if window:
                self._http.send_data(stream_id, body[:window], end_stream=len(body) <= window)
                body = body[window:]
            else:
                over = await self._read(stream_id, answer)
        while not over:
            over = await self._read(stream_id, answer)
        return answer

    async def leave(self, method: str, token: str, body: bytes) -> None:
        """Sends the beginning of a request and goes away."""
        self._send_headers(method, token)
        self._http.send_data(1, body)
        self._writer.write(self._http.data_to_send())
        await self._writer.drain()
        self._writer.transport.abort()

    def close(self) -> None:
        """Ends the connection."""
        self._writer.transport.abort()

    def _send_headers(self, method: str, token: str, **headers: str) -> int:
        stream_id = self._http.get_next_available_stream_id()
        sent = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
            "authorization": f"Bearer {token}",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        self._http.send_headers(stream_id, list(sent.items()))
        return stream_id

    async def send_raw(self, data: bytes) -> None:
        """Sends bytes past the protocol, and gives the server some time to close the connection."""
        self._writer.write(self._http.data_to_send() + data)
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(0.5):
                while await self._reader.read(65_536):
                    pass

    async def _read(self, stream_id: int, answer: Answer) -> bool:
        """Takes what comes; returns whether the stream is over."""
        self._writer.write(self._http.data_to_send())
        async with asyncio.timeout(10):
            data = await self._reader.read(65_536)
        assert data, "the connection was lost"
        over = [self._take(event, stream_id, answer) for event in self._http.receive_data(data)]
        self._writer.write(self._http.data_to_send())
        return any(over)

    def _take(self, event: Event, stream_id: int, answer: Answer) -> bool:
        assert not isinstance(event, ConnectionTerminated)
        if isinstance(event, WindowUpdated) or getattr(event, "stream_id", None) != stream_id:
            return False
        if isinstance(event, ResponseReceived | TrailersReceived):
            answer.headers.update(dict(event.headers))  # type: ignore[arg-type]
        elif isinstance(event, DataReceived):
            answer.data += event.data
            self._http.acknowledge_received_data(event.flow_controlled_length, stream_id)
        elif isinstance(event, StreamReset):
            answer.reset = True
        return isinstance(event, StreamEnded | StreamReset)


@dataclass
class Target:
    """Who is attacked."""

    world: World
    client_id: str
    campaign_id: str
    key: Caller
    connections: list[Raw] = field(default_factory=list)

    async def connect(self) -> Raw:
        """A connection of its own."""
        self.connections.append(Raw(*await asyncio.open_connection("127.0.0.1", self.world.application.port)))
        return self.connections[-1]

    def request(self, method: str, count: int = 3) -> bytes:
        """A good request."""
        batch = event_pb2.EventBatch(events=[impression(self.campaign_id) for _ in range(count)])
        if method == INGEST:
            return pb.IngestEventsRequest(client_id=self.client_id, batch=batch).SerializeToString()
        return pb.AppendEventsRequest(client_id=self.client_id, stream_id=str(uuid4()), batch=batch).SerializeToString()

    async def stored(self) -> int:
        """Events of the client."""
        clickhouse = ClickHouse(self.world.connections.clickhouse_dsn)
        try:
            [(count,)] = await clickhouse.fetch(
                "SELECT count() FROM campaign_events WHERE client_id = {client:UUID}", {"client": self.client_id}
            )
        finally:
            await clickhouse.close()
        return int(count)


@pytest.fixture
async def target(world: World) -> AsyncIterator[Target]:
    client_id, [campaign_id] = await world.tenant()
    target = Target(world, client_id, campaign_id, await world.key([client_id]))
    yield target
    assert await target.stored() == 0, "something of a bad frame was stored"
    # The same server goes on as if nothing had been.
    for method in (INGEST, APPEND):
        raw = await target.connect()
        for body, headers in (
            (framed(target.request(method)), {}),
            (framed(gzip.compress(target.request(method)), compressed=1), {"grpc_encoding": "gzip"}),
        ):
            answer = await raw.call(method, target.key.token, body, **headers)
            assert answer.status == 0, answer
    assert await target.stored() == 12
    for raw in target.connections:
        raw.close()


def framed(message: bytes, compressed: int = 0, length: int | None = None) -> bytes:
    """A message behind its prefix, which may lie."""
    return struct.pack(">BI", compressed, len(message) if length is None else length) + message


@pytest.mark.parametrize("method", [INGEST, APPEND])
async def test_bad_frames_are_refused(target: Target, method: str) -> None:
    good = target.request(method)
    zipped = gzip.compress(good)
    bomb = gzip.compress(bytes(64 * 2**20))
    cases: list[tuple[str, bytes, dict[str, str], set[int]]] = [
        ("no message of any kind", framed(b"\xff\xff\xff\xff"), {}, {INVALID}),
        ("cut in the middle of an event", framed(good[:-7]), {}, {INVALID}),
        ("random bytes", framed(os.urandom(5000)), {}, {INVALID}),
        ("5 MB", framed(bytes(5 * 2**20)), {}, {EXHAUSTED}),
        ("a prefix that promises 4 GB", framed(good, length=2**32 - 1), {}, {EXHAUSTED}),
        ("said to be compressed, without how", framed(good, compressed=1), {}, {INTERNAL}),
        ("said to be gzip and is not", framed(good, compressed=1), {"grpc_encoding": "gzip"}, {INTERNAL}),
        ("gzip that is cut", framed(zipped[:-9], compressed=1), {"grpc_encoding": "gzip"}, {INTERNAL}),
        ("gzip of 64 MB", framed(bomb, compressed=1), {"grpc_encoding": "gzip"}, {EXHAUSTED}),
        (
            "an unknown compression",
            framed(zipped, compressed=1),
            {"grpc_encoding": "brotli"},
            {INTERNAL},
        ),
        ("an impossible flag", framed(good, compressed=7), {}, {INVALID}),
    ]
    failed = {}
    raw = await target.connect()
    for name, body, headers, wanted in cases:
        answer = await raw.call(method, target.key.token, body, **headers)
        message = answer.headers.get("grpc-message", "")
        if answer.status not in wanted or "Traceback" in message:
            failed[name] = answer
    assert not failed


@pytest.mark.parametrize("body", [b"", b"\0\0\0", struct.pack(">BI", 0, 100) + b"\x0a"])
async def test_a_message_that_is_cut_is_none(target: Target, body: bytes) -> None:
    """To grpc it is the end of the requests: a stream ends without acknowledging it, a single call at its deadline."""
    answer = await (await target.connect()).call(APPEND, target.key.token, body)
    assert (answer.status, answer.data) == (0, b"")
    answer = await (await target.connect()).call(INGEST, target.key.token, body, grpc_timeout="500m")
    assert answer.status == DEADLINE


async def test_broken_connections_harm_no_other(target: Target) -> None:
    steady = await target.connect()
    too_large = (2**20).to_bytes(3, "big") + bytes((0, 0)) + (1).to_bytes(4, "big")
    for garbage in (os.urandom(300), too_large + bytes(100), b"\x00\x00\x04\x03\x00\x00\x00\x00\x00" + bytes(4)):
        await (await target.connect()).send_raw(garbage)
        answer = await steady.call(INGEST, target.key.token, framed(b"\xff"))
        assert answer.status == INVALID
    # Left in the middle of a message.
    raw = await target.connect()
    await raw.leave(APPEND, target.key.token, framed(target.request(APPEND))[:-20])
