"""What Prometheus is told: gathered here, answered over HTTP by a thread of its own."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from http.server import HTTPServer
from importlib.metadata import version
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from server.errors import StartError
from server.rpc import logs
from server.rpc.metering import BOUNDS, CallMeters, MethodMeter
from server.settings import MonitoringSettings
from server.statistics.watermark import CURSOR, Progress
from storage.errors import StoreError
from storage.postgres import jobs, metrics_state, monitoring
from storage.postgres.database import Database

_METHOD: Final = ("grpc_service", "grpc_method")
_PULSE_SECONDS: Final = 0.25
# Old news is no news: whoever alerts on absence hears of it.
_STALE_INTERVALS: Final = 6

Families = Callable[[], Iterable[Metric]]


class _Collector:
    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


class Monitor:
    """What one process tells of itself and of the stores that it sees.

    Args:
        settings: Where it answers, and how often the stores are read.
        database: Read for what is true of the whole service.
    """

    def __init__(self, settings: MonitoringSettings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._registry = CollectorRegistry()
        self._registry.register(REGISTRY)
        self._server: HTTPServer | None = None
        self._pools: dict[str, Database] = {}
        self._found: list[Metric] = []
        self._found_at = 0.0
        self._late = 0.0
        self._log = logs.get("monitoring")
        self.port = 0
        self.add(self._own)

    def add(self, families: Families) -> None:
        """Has these told as well; they are asked for by another thread whenever somebody looks."""
        self._registry.register(_Collector(families))

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Has one number told as well."""
        self.add(lambda: [GaugeMetricFamily(name, text, value=read())])

    def stores(self, answering: Callable[[], Mapping[str, bool]]) -> None:
        """Has told as well which stores answer."""

        def families() -> Iterable[Metric]:
            up = GaugeMetricFamily("mrm_store_up", "1 while the store answers this process", labels=["store"])
            for name, answers in answering().items():
                up.add_metric([name], answers)
            return [up]

        self.add(families)

    def pool(self, name: str, database: Database) -> None:
        """Has the use of a pool of connections told as well."""
        self._pools[name] = database

    def start(self) -> None:
        """Begins to answer.

        Raises:
            StartError: The address cannot be bound.
        """
        host, port = self._settings.host, self._settings.port or 0
        try:
            self._server, _ = start_http_server(port, host, self._registry)
        except OSError:
            raise StartError(f"cannot answer Prometheus on {host}:{port}: is something else running there?") from None
        self.port = self._server.server_port
        self._log.info("monitoring", host=host, port=self.port)

    async def close(self) -> None:
        """Answers no more."""
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.shutdown)
            server.server_close()

    async def run(self) -> None:
        """Reads the stores again and again, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            before = loop.time()
            if before >= due:
                due = before + self._settings.interval
                self._late = 0.0
                try:
                    await self.read()
                except (StoreError, TimeoutError) as error:
                    self._log.warning("stores_not_read", exc_info=error)
                before = loop.time()
            await asyncio.sleep(_PULSE_SECONDS)
            self._late = max(self._late, loop.time() - before - _PULSE_SECONDS)

    async def read(self) -> None:
        """Reads once what is true of the whole service."""
        found = _queues(await jobs.queues_internal(self._database))
        cursor = await metrics_state.get_cursor(self._database, CURSOR)
        if cursor is not None:
            lag = max(0.0, time.time() - Progress.from_position(cursor.position).watermark / 1000)
            text = "How far the figures are behind the events, by the watermark"
            found.append(GaugeMetricFamily("mrm_rebuild_lag_seconds", text, value=lag))
        found += _standing(await monitoring.standing_internal(self._database))
        self._found, self._found_at = found, time.monotonic()

    def _own(self) -> Iterable[Metric]:
        build = GaugeMetricFamily("mrm_build_info", "1, labelled with the version that runs", labels=["version"])
        build.add_metric([version("mrm-ai-platform")], 1)
        yield build
        yield GaugeMetricFamily(
            "mrm_event_loop_lag_seconds", "Longest delay of the event loop lately", value=self._late
        )
        connections = GaugeMetricFamily(
            "mrm_pool_connections", "Connections to PostgreSQL that are open", labels=["pool", "state"]
        )
        limits = GaugeMetricFamily("mrm_pool_limit", "Connections to PostgreSQL that may be open", labels=["pool"])
        for name, database in self._pools.items():
            use = database.use
            connections.add_metric([name, "used"], use.open - use.free)
            connections.add_metric([name, "free"], use.free)
            limits.add_metric([name], use.limit)
        yield connections
        yield limits
        if time.monotonic() - self._found_at < _STALE_INTERVALS * self._settings.interval:
            yield from self._found


@asynccontextmanager
async def watching_over(settings: MonitoringSettings, pool: str, database: Database) -> AsyncIterator[None]:
    """Has a process that serves no calls tell of itself, for the length of a block, if that is wanted.

    Args:
        settings: Whether, and where.
        pool: Name of its pool of connections.
        database: The pool.

    Raises:
        StartError: The address cannot be bound.
    """
    if settings.port is None:
        yield
        return
    monitor = Monitor(settings, database)
    monitor.pool(pool, database)
    monitor.start()
    reading = asyncio.create_task(monitor.run())
    try:
        yield
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await monitor.close()


def calls(meters: CallMeters) -> Iterable[Metric]:
    """What became of calls, under the names that gRPC servers in other languages use."""
    started = CounterMetricFamily("grpc_server_started", "Calls begun", labels=_METHOD)
    handled = CounterMetricFamily("grpc_server_handled", "Calls ended", labels=[*_METHOD, "grpc_code"])
    seconds = HistogramMetricFamily("grpc_server_handling_seconds", "Time that unary calls took", labels=_METHOD)
    streams = GaugeMetricFamily("mrm_streams_open", "Streams that are open", labels=_METHOD)
    running = GaugeMetricFamily("mrm_calls_running", "Unary calls that are being worked on", labels=_METHOD)
    for meter in meters.meters.values():
        name, codes = (meter.service, meter.name), meter.codes.copy()
        begun = meter.started
        started.add_metric(name, begun)
        for code, count in codes.items():
            handled.add_metric((*name, code), count)
        # Read one after the other while calls go on: never more ended than begun.
        (streams if meter.streaming else running).add_metric(name, max(0, begun - sum(codes.values())))
        if not meter.streaming and begun:
            seconds.add_metric(name, _buckets(meter), meter.seconds)
    return started, handled, seconds, streams, running


def _buckets(meter: MethodMeter) -> list[tuple[str, float]]:
    total, found = 0, []
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), list(meter.buckets), strict=True):
        total += count
        found.append((bound, float(total)))
    return found


def _queues(found: Iterable[jobs.Queue]) -> list[Metric]:
    depth = GaugeMetricFamily("mrm_queue_jobs", "Jobs by what they are at", labels=["queue", "state"])
    age = GaugeMetricFamily("mrm_queue_age_seconds", "How long the oldest due job has waited", labels=["queue"])
    paused = GaugeMetricFamily("mrm_queue_paused", "1 while nothing of the queue may begin", labels=["queue"])
    for queue in found:
        for state in ("due", "later", "running", "failed"):
            depth.add_metric([queue.name, state], getattr(queue, state))
        waits = time.time() - queue.oldest_due_at.timestamp() if queue.oldest_due_at else 0.0
        age.add_metric([queue.name], max(0.0, waits))
        paused.add_metric([queue.name], queue.paused_at is not None)
    return [depth, age, paused]


def _standing(found: monitoring.Standing) -> list[Metric]:
    waiting = GaugeMetricFamily("mrm_relay_waiting", "Messages of the outbox to be delivered")
    waiting.add_metric([], found.outbox)
    lag = GaugeMetricFamily("mrm_relay_lag_seconds", "How long the oldest of them has waited")
    lag.add_metric([], found.outbox_age)
    alerts = GaugeMetricFamily("mrm_alerts", "Alerts that are not resolved", labels=["severity", "status"])
    for (severity, status), count in found.alerts.items():
        alerts.add_metric([severity, status], count)
    done = GaugeMetricFamily(
        "mrm_milestone_timestamp_seconds", "When what must happen again and again last went well", labels=["milestone"]
    )
    for name, reached in found.milestones.items():
        done.add_metric([name], reached)
    return [waiting, lag, alerts, done]
