"""watch.fanout: two thousand watchers on one server process, some of which do not read, under ingest.

The watchers speak HTTP/2 themselves: a gRPC library's own work for thousands of messages a second would take the cores
that the server is measured on, and one that does not read is here exactly one that grants no more window. For the same
reason equal messages are decoded once: they stand for thousands of machines. What each watcher has been shown is
followed one by one. A crowd that needs a whole core shows its own delay, not the server's; its share is printed.
"""

import asyncio
import os
import random
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import cast
from uuid import uuid4

import grpc

from benchmarks.harness import Bench, Result, console, percentile
from benchmarks.tenants import Tenant, make_tenant
from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from mrm.statistics.v1 import statistics_service_pb2_grpc as rpc

WATCHERS = 2000
CONNECTIONS = 20
CAMPAIGNS = 100
NOT_READING = 20
"""One in so many watchers does not read: 5 %."""
SECONDS = 180
SETTLE_SECONDS = 5.0
EVENTS_PER_SECOND = 200
BAR_STALENESS = 1.2
BAR_GROWTH_MB = 100

_METHOD = b"/mrm.statistics.v1.StatisticsService/WatchMetrics"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_STREAM_GRANT = 32 * 1024
_CONNECTION_GRANT = 2**20
# Different messages that are decoded once each; a watcher may be some behind others.
_MESSAGES_KEPT = 512


async def run(bench: Bench) -> list[Result]:
    """Watchers of two clients, in the middle of a steady flow of events for both."""
    tenants = [await make_tenant(bench, CAMPAIGNS), await make_tenant(bench, CAMPAIGNS)]
    count = max(CONNECTIONS, round(WATCHERS * min(1.0, bench.scale * 5)))
    server = server_pid()
    # It loads and warms up for a while; that is not the watchers' doing.
    await asyncio.sleep(SETTLE_SECONDS)
    before = resident_mb(server)
    crowd = Crowd()
    host, _, port = bench.target.rpartition(":")
    connections = []
    for number in range(CONNECTIONS):
        # Most watch one client, the others another.
        tenant = tenants[number % 10 == 9]
        make = partial(Connection, crowd, tenant, count // CONNECTIONS)
        _, connection = await asyncio.get_running_loop().create_connection(make, host, int(port))
        connections.append(connection)
    async with grpc.aio.insecure_channel(bench.target) as channel:
        load = asyncio.gather(*(_produce(channel, tenant, crowd) for tenant in tenants))
        try:
            async with asyncio.timeout(120):
                await crowd.until_all_began(count)
            await asyncio.sleep(SETTLE_SECONDS)
            began = resident_mb(server)
            spent, own, started = cpu_seconds(server), time.process_time(), time.perf_counter()
            crowd.measure()
            await asyncio.wait((load,), timeout=max(10.0, SECONDS * bench.scale))
            if load.done():
                load.result()
            spent = cpu_seconds(server) - spent
            seconds = time.perf_counter() - started
            own = (time.process_time() - own) / seconds
            stale = crowd.staleness()
            after = resident_mb(server)
        finally:
            load.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await load
            for connection in connections:
                connection.close()
    if crowd.failures:
        raise RuntimeError(f"{crowd.failures} watches ended, the first with {crowd.first_failure}")
    worst, p99 = max(stale), percentile(stale, 0.99)
    console.print(
        f"  {count} watchers, {crowd.messages} messages, {crowd.cut_off} readers that stopped were cut off;"
        f" staleness p50 {percentile(stale, 0.5):.3f} s, p99 {p99:.3f} s, worst {worst:.3f} s;"
        f" {spent / max(1, crowd.messages) * 1e6:.0f} us of the server for each message;"
        f" {spent / seconds:.0%} of a core for the server and {own:.0%} for the crowd;"
        f" resident {before:.0f} MB without watchers, {began:.0f} MB with them, {after:.0f} MB at the end"
    )
    growth = after - before
    return [
        Result("watch.fanout", worst, "s", None, None, BAR_STALENESS, worst <= BAR_STALENESS),
        Result("watch.fanout.growth", growth, "MB", None, None, BAR_GROWTH_MB, growth <= BAR_GROWTH_MB),
    ]


def server_pid() -> int:
    """The server, which the harness started as a child of this process."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"benchmarks.serve" in (path / "cmdline").read_bytes():
                return int(path.name)
    raise RuntimeError("the server is not a child of this process")


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} is gone")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """One watcher's stream, and how many events of each campaign it shows."""

    __slots__ = ("buffer", "consumed", "reading", "shown")

    def __init__(self, reading: bool) -> None:
        self.reading = reading
        self.buffer = bytearray()
        self.consumed = 0
        self.shown: dict[str, int] = {}


class Crowd:
    """What all watchers see, and when which event was acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, list[float]] = defaultdict(list)
        self.messages = self.cut_off = self.failures = 0
        self.first_failure = ""
        self.readers: set[Watch] = set()
        self._measuring = False
        self._stale: list[float] = []
        self._decode = lru_cache(_MESSAGES_KEPT)(_decoded)

    async def until_all_began(self, count: int) -> None:
        """Waits until every reader has its snapshot."""
        while len(self.readers) < count - count // NOT_READING or not all(each.shown for each in self.readers):
            if self.failures:
                raise RuntimeError(self.first_failure)
            await asyncio.sleep(0.1)

    def measure(self) -> None:
        """Begins to count."""
        self.messages = 0
        self._measuring = True

    def take(self, watch: Watch, message: bytes) -> None:
        """A message of a reader: it was as stale as the oldest acknowledged event that it did not show until now."""
        is_update, states = self._decode(message)
        now = oldest = time.perf_counter()
        shown, known = watch.shown, self.acknowledged
        for campaign_id, count in states:
            before = shown.get(campaign_id, 0)
            if count > before:
                acknowledged = known[campaign_id]
                if before < len(acknowledged) and acknowledged[before] < oldest:
                    oldest = acknowledged[before]
            elif count < before:
                self.failures += 1
                self.first_failure = self.first_failure or "an older state after a newer one"
            shown[campaign_id] = count
        if self._measuring and is_update:
            self.messages += 1
            self._stale.append(now - oldest)

    def staleness(self) -> list[float]:
        """How stale readers were each time they heard something, and are now."""
        self._measuring = False
        now = time.perf_counter()
        for watch in self.readers:
            unseen = (
                self.acknowledged[campaign_id][count]
                for campaign_id, count in watch.shown.items()
                if count < len(self.acknowledged[campaign_id])
            )
            self._stale.append(now - min(unseen, default=now))
        return self._stale

    def ended(self, watch: Watch, why: str) -> None:
        """A stream is over, which only those that do not read may expect."""
        if not watch.reading:
            self.cut_off += 1
            return
        self.failures += 1
        self.first_failure = self.first_failure or why


def _decoded(message: bytes) -> tuple[bool, list[tuple[str, int]]]:
    """Whether a message is an update, and the impressions of the campaigns that it tells about."""
    response = pb.WatchMetricsResponse.FromString(message)
    states = (*response.snapshot.campaigns, *response.update.campaigns)
    return response.HasField("update"), [(state.campaign_id, state.metrics.impressions) for state in states]


class Connection(asyncio.Protocol):
    """An HTTP/2 connection that carries some watchers."""

    def __init__(self, crowd: Crowd, tenant: Tenant, watchers: int) -> None:
        self._crowd = crowd
        self._headers = _request_headers(tenant)
        request = pb.WatchMetricsRequest(client_id=str(tenant.client_id)).SerializeToString()
        self._request = b"\0" + struct.pack(">I", len(request)) + request
        self._watchers = watchers
        self._streams: dict[int, Watch] = {}
        self._next_id = 1
        self._buffer = bytearray()
        self._granted = 0
        self._closing = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Opens the streams."""
        # uvloop's transports are none of asyncio's classes.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        transport.write(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)))
        for number in range(self._watchers):
            self._open(reading=number % NOT_READING != 0)

    def close(self) -> None:
        """Leaves."""
        self._closing = True
        assert self._transport is not None
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all streams."""
        if not self._closing:
            for watch in self._streams.values():
                self._crowd.ended(watch, "a lost connection")

    def data_received(self, data: bytes) -> None:
        """Takes frames apart."""
        assert self._transport is not None
        buffer = self._buffer
        buffer += data
        at = 0
        replies: list[bytes] = []
        while len(buffer) - at >= 9:
            length = int.from_bytes(buffer[at : at + 3], "big")
            if len(buffer) - at < 9 + length:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream_id = int.from_bytes(buffer[at + 5 : at + 9], "big")
            payload = buffer[at + 9 : at + 9 + length]
            at += 9 + length
            replies += self._frame_received(kind, flags, stream_id, payload)
        del buffer[:at]
        if replies:
            self._transport.write(b"".join(replies))

    def _frame_received(self, kind: int, flags: int, stream_id: int, payload: bytearray) -> Iterator[bytes]:
        if kind == _DATA:
            yield from self._data(stream_id, payload)
        elif kind == _SETTINGS and not flags & _ACK:
            yield _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            yield _frame(_PING, _ACK, 0, payload)
        elif kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM):
            watch = self._streams.pop(stream_id, None)
            if watch is not None:
                self._crowd.readers.discard(watch)
                self._crowd.ended(watch, bytes(payload).decode("ascii", "replace"))
                if not watch.reading:
                    self._open(reading=False)
        elif kind == _GOAWAY:
            raise RuntimeError("the server closes the connection")

    def _data(self, stream_id: int, payload: bytearray) -> Iterator[bytes]:
        self._granted += len(payload)
        if self._granted >= _CONNECTION_GRANT:
            yield _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._granted))
            self._granted = 0
        watch = self._streams.get(stream_id)
        if watch is None or not watch.reading:
            return
        watch.consumed += len(payload)
        if watch.consumed >= _STREAM_GRANT:
            yield _frame(_WINDOW_UPDATE, 0, stream_id, struct.pack(">I", watch.consumed))
            watch.consumed = 0
        buffer = watch.buffer
        buffer += payload
        while len(buffer) >= 5 and len(buffer) >= (end := 5 + int.from_bytes(buffer[1:5], "big")):
            self._crowd.take(watch, bytes(buffer[5:end]))
            del buffer[:end]

    def _open(self, reading: bool) -> None:
        assert self._transport is not None
        stream_id, self._next_id = self._next_id, self._next_id + 2
        watch = self._streams[stream_id] = Watch(reading)
        if reading:
            self._crowd.readers.add(watch)
        self._transport.write(
            _frame(_HEADERS, _END_HEADERS, stream_id, self._headers)
            + _frame(_DATA, _END_STREAM, stream_id, self._request)
        )


def _frame(kind: int, flags: int, stream_id: int, payload: bytes | bytearray) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def _request_headers(tenant: Tenant) -> bytes:
    """HPACK without a table: numbers are entries of the static one (RFC 7541, appendix A)."""

    def text(value: bytes) -> bytes:
        assert len(value) < 127
        return bytes((len(value),)) + value

    ((_, authorization),) = tenant.metadata
    return b"".join(
        (
            b"\x83\x86",  # POST, http
            b"\x04" + text(_METHOD),
            b"\x01" + text(b"localhost"),
            b"\x0f\x10" + text(b"application/grpc"),
            b"\x00" + text(b"te") + text(b"trailers"),
            b"\x0f\x08" + text(authorization.encode()),
        )
    )


async def _produce(channel: grpc.aio.Channel, tenant: Tenant, crowd: Crowd) -> None:
    """Events at a steady rate, ten batches a second."""
    chance = random.Random(str(tenant.client_id))
    call = rpc.StatisticsServiceStub(channel).AppendEvents(metadata=tenant.metadata)
    stream_id, offset, size = str(uuid4()), 0, EVENTS_PER_SECOND // 20
    due = time.perf_counter()
    while True:
        batch = event_pb2.EventBatch()
        for _ in range(size):
            event = batch.events.add(
                event_id=str(uuid4()),
                campaign_id=str(chance.choice(tenant.campaign_ids)),
                event_type=event_pb2.EVENT_TYPE_IMPRESSION,
                cost_micros=1000,
            )
            event.event_time.FromDatetime(datetime.now(UTC))
        await call.write(
            pb.AppendEventsRequest(client_id=str(tenant.client_id), stream_id=stream_id, offset=offset, batch=batch)
        )
        reply = await call.read()
        if not isinstance(reply, pb.AppendEventsResponse) or reply.HasField("error"):
            raise RuntimeError(f"the producer was refused: {reply}")
        now = time.perf_counter()
        for event in batch.events:
            crowd.acknowledged[event.campaign_id].append(now)
        offset += size
        due += 0.1
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
