"""Spans of calls and of what they ask the stores. Loaded only where a collector is named: it costs a second to load."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace as traces
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.settings import TracingSettings
from storage.clickhouse.connect import ClickHouse
from storage.postgres.database import Database, Transaction
from storage.redis.multiplex import Argument, MultiplexedRedis, Script

# Codes by which the server, not the caller, has failed.
_FAILURES = frozenset({"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS", "UNIMPLEMENTED"})
_STATEMENT_LENGTH = 500


class OtlpCall:
    """One traced call."""

    __slots__ = ("_span", "trace_id")

    def __init__(self, span: Span) -> None:
        self._span = span
        self.trace_id = format(span.get_span_context().trace_id, "032x")

    def end(self, code: str, reason: str) -> None:
        """Ends its span."""
        self._span.set_attribute("rpc.response.status_code", code)
        if reason:
            self._span.set_attribute("error.type", reason)
        if code in _FAILURES:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class OtlpTracer:
    """Sends spans to a collector, from a thread of its own; what it cannot take in time is dropped.

    Args:
        settings: Where to, and how many.
        version: Of this code.
    """

    def __init__(self, settings: TracingSettings, version: str) -> None:
        assert settings.endpoint is not None
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.ratio)),
            resource=Resource.create({"service.name": "mrm", "service.version": version}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.endpoint, timeout=5)))
        self._tracer = self._provider.get_tracer("mrm")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, request_id: str, traceparent: str) -> OtlpCall | None:
        """Begins the span of a call."""
        parent = self._propagator.extract({"traceparent": traceparent}) if traceparent else contexts.Context()
        name = method.removeprefix("/")
        span = self._tracer.start_span(
            name,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system.name": "grpc",
                "rpc.method": name,
                "mrm.request_id": request_id,
            },
        )
        if not span.is_recording():
            return None
        # The call has a task of its own, whose context ends with it.
        contexts.attach(_holding(span, self._tracer))
        return OtlpCall(span)

    def close(self) -> None:
        """Sends what is left; blocks for seconds if the collector is away."""
        self._provider.shutdown()


_TRACER = contexts.create_key("mrm-tracer")


def _holding(span: Span, tracer: traces.Tracer) -> contexts.Context:
    return contexts.set_value(_TRACER, tracer, traces.set_span_in_context(span))


@contextmanager
def _asking(store: str, what: str, statement: str = "") -> Iterator[None]:
    """A span of the present call, if that is traced: background work is not."""
    tracer = contexts.get_value(_TRACER)
    if not isinstance(tracer, traces.Tracer):
        yield
        return
    attributes = {"db.system.name": store, "db.operation.name": what}
    if statement:
        # Values are parameters, never part of the text.
        attributes["db.query.text"] = statement.strip()[:_STATEMENT_LENGTH]
    # Texts of errors may hold hosts, users and values.
    with tracer.start_as_current_span(
        f"{store} {what}", kind=SpanKind.CLIENT, attributes=attributes, record_exception=False
    ) as span:
        try:
            yield
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            raise


class TracedDatabase(Database):
    """PostgreSQL with a span for each statement that stands alone and each transaction."""

    async def _alone(self, method: str, sql: str, args: tuple[object, ...]) -> Any:
        with _asking("postgresql", method, sql):
            return await super()._alone(method, sql, args)

    @asynccontextmanager
    async def transaction(self, name: str) -> AsyncIterator[Transaction]:
        """As of `Database`."""
        with _asking("postgresql", name):
            async with super().transaction(name) as transaction:
                yield transaction


class TracedClickHouse(ClickHouse):
    """ClickHouse with a span for each statement but those that stream."""

    async def fetch(
        self, sql: str, parameters: Mapping[str, Any] | None = None, **options: Any
    ) -> list[tuple[Any, ...]]:
        """As of `ClickHouse`."""
        with _asking("clickhouse", "fetch", sql):
            return await super().fetch(sql, parameters, **options)

    async def execute(self, sql: str, parameters: Mapping[str, Any] | None = None, **options: Any) -> None:
        """As of `ClickHouse`."""
        with _asking("clickhouse", "execute", sql):
            await super().execute(sql, parameters, **options)

    async def insert_rows(
        self, table: str, columns: Mapping[str, str], rows: Sequence[Sequence[Any]], **options: Any
    ) -> None:
        """As of `ClickHouse`."""
        with _asking("clickhouse", f"insert {table}"):
            await super().insert_rows(table, columns, rows, **options)

    async def insert_statement(self, body: bytes, **options: Any) -> None:
        """As of `ClickHouse`."""
        with _asking("clickhouse", "insert"):
            await super().insert_statement(body, **options)


class TracedRedis(MultiplexedRedis):
    """Redis with a span for each command and script."""

    async def execute(self, *args: Argument) -> Any:
        """As of `MultiplexedRedis`."""
        with _asking("redis", _name(args)):
            return await super().execute(*args)

    async def execute_many(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """As of `MultiplexedRedis`."""
        with _asking("redis", "pipeline"):
            return await super().execute_many(commands)

    async def run(self, script: Script, keys: Sequence[Argument], args: Sequence[Argument] = ()) -> Any:
        """As of `MultiplexedRedis`."""
        with _asking("redis", "script"):
            return await super().run(script, keys, args)


def _name(args: Sequence[Argument]) -> str:
    return args[0].decode() if isinstance(args[0], bytes) else str(args[0])
