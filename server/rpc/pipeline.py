"""One composed handler per RPC: what every call passes through, in this order.

context -> errors -> deadline -> credentials and rate limit -> right -> validation -> idempotency, transaction -> method

Nested interceptors would cost several coroutines per call; here each method's steps are fixed once, at registration.
"""

import asyncio
import hashlib
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status
from uuid_utils.compat import UUID, uuid7

from server.rpc import logs, rights
from server.rpc.auditing import Actor, as_callback, is_secret, recorder
from server.rpc.auth import Authenticator
from server.rpc.call import ANONYMOUS, Call, Mutation, Principal, StreamCall
from server.rpc.errors import DeadlineExceeded, DomainError, InvalidRequest, NotFound, Unavailable
from server.rpc.metering import CallMeters, MethodMeter
from server.rpc.policy import Policy, read_policy
from server.rpc.preference import HEADER, PRIMARY, ReadPreference
from server.rpc.status import to_domain, to_status
from server.rpc.streams import StreamRegistry
from server.rpc.tracing import CallSpan, Tracer, trace_id_of
from server.rpc.usage import Attribution, UsageCounter
from server.rpc.validation import validate
from storage import deadline as store_deadline
from storage.postgres import audit, idempotency
from storage.postgres.audit import Record
from storage.postgres.database import Database, Transaction
from storage.redis.limits import RateState

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Deserializer = Callable[[bytes], Any]

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{8,64}$")


class Malformed:
    """Stands for request bytes that are no message; the call is then refused like any other, through the error path."""


MALFORMED = Malformed()
_ANYHOW = nullcontext()


@dataclass(frozen=True, slots=True)
class Method:
    """Everything about an RPC that is known at registration."""

    name: str
    full_name: str
    endpoint: str
    policy: Policy
    run: Callable[..., Awaitable[Any]]
    request_class: type[Message]
    response_class: type[Message]
    secret_fields: tuple[str, ...]
    secret_inputs: tuple[str, ...]
    attribution: Attribution
    meter: MethodMeter | None


class Pipeline:
    """Registers services so that each call passes through every step.

    Args:
        authenticator: Turns credentials into a principal and counts the call against its limit.
        database: Where mutations run, with their idempotency and audit records.
        streams: Open streams, ended when their credentials end or the server drains.
        announce: Told after a commit that changes were recorded.
        preference: Says which calls may read from a replica; None if there is none.
        meters: Count the calls of each RPC, if anybody asks for them.
        tracer: Told of the calls that are traced, if any are.
        usage: Counts what each client uses.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        database: Database,
        streams: StreamRegistry,
        announce: Callable[[], None] | None = None,
        preference: ReadPreference | None = None,
        *,
        meters: CallMeters | None = None,
        tracer: Tracer | None = None,
        usage: UsageCounter | None = None,
    ) -> None:
        self._preference = preference
        self._authenticator = authenticator
        self._database = database
        self._streams = streams
        self._announce = announce
        self._meters = meters
        self._tracer = tracer
        self._usage = usage
        self._log = logs.get("rpc")
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_idle(self, timeout: float) -> bool:
        """Waits until no handler runs. grpc's own `stop` does not wait for Python's `finally` blocks."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def register(
        self,
        server: grpc.aio.Server,
        service: ServiceDescriptor,
        servicers: Sequence[object],
        deserializers: Mapping[str, Deserializer] | None = None,
    ) -> None:
        """Adds a service to the server.

        Args:
            server: The server, not started yet.
            service: The service's descriptor.
            servicers: Objects that together have one coroutine method per RPC.
            deserializers: RPC name to a function that replaces the request type's own parsing; such requests are
                validated by their method.

        Raises:
            PolicyMissing: An RPC declares no policy.
            NotImplementedError: An RPC has no method.
        """
        handlers: dict[str, Handler] = {}
        for descriptor in service.methods:
            method = _method(descriptor, servicers, self._meters)
            custom = (deserializers or {}).get(descriptor.name)
            handlers[descriptor.name] = self._handler(descriptor, method, custom)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    def _handler(self, descriptor: MethodDescriptor, method: Method, custom: Deserializer | None) -> Handler:
        parse = _tolerant(custom or method.request_class.FromString)
        if descriptor.client_streaming and descriptor.server_streaming:
            return grpc.stream_stream_rpc_method_handler(self._bidi(method), parse, _serialized)
        if descriptor.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._server_stream(method), parse, _serialized)
        if descriptor.client_streaming:
            raise NotImplementedError(f"{method.full_name}: no RPC of this contract streams requests only")
        return grpc.unary_unary_rpc_method_handler(self._unary(method, custom is None), parse, _serialized)

    def _unary(self, method: Method, checked: bool) -> Callable[[Any, Context], Awaitable[Any]]:
        limit = method.policy.deadline or 0.0

        async def handle(request: Any, context: Context) -> Any:
            trace = self._enter(method, context)
            try:
                left = context.time_remaining()
                budget = limit if left is None else min(limit, left)
                async with asyncio.timeout(budget):
                    store_deadline.set_deadline(asyncio.get_running_loop().time() + budget)
                    principal = await self._admit(method, context, trace)
                    if request is MALFORMED:
                        raise InvalidRequest(
                            f"not a {method.request_class.DESCRIPTOR.name}", reason="MALFORMED_REQUEST"
                        )
                    if checked:
                        validate(request)
                    try:
                        with self._reading(method, principal, trace.reading):
                            if method.policy.idempotency == "REQUEST_ID":
                                reply = await self._mutate(method, request, principal, trace)
                            else:
                                call = Call(
                                    method.full_name,
                                    trace.request_id,
                                    principal,
                                    trace.peer,
                                    note_limit=trace.note_limit,
                                )
                                reply = await method.run(request, call)
                    except NotFound as error:
                        permission = method.policy.permission
                        raise await rights.explained(self._database, principal, permission, error) from None
                    self._used(method, request, reply, principal)
                    return reply
            except TimeoutError:
                await self._abort(context, trace, DeadlineExceeded("the call took longer than its deadline"))
            except Exception as error:
                await self._abort(context, trace, to_domain(error), error)
            except asyncio.CancelledError:
                await self._cancelled(context, trace)
            finally:
                self._leave(trace)

        return handle

    def _server_stream(self, method: Method) -> Callable[[Any, Context], Awaitable[None]]:
        async def handle(request: Any, context: Context) -> None:
            async def run(principal: Principal, trace: "Trace") -> None:
                if request is MALFORMED:
                    raise InvalidRequest(f"not a {method.request_class.DESCRIPTOR.name}", reason="MALFORMED_REQUEST")
                validate(request)
                await method.run(request, self._stream_call(method, context, principal, trace, _nothing()))
                self._used(method, request, None, principal)

            await self._run_stream(method, context, run)

        return handle

    def _bidi(self, method: Method) -> Callable[[AsyncIterator[Any], Context], Awaitable[None]]:
        async def handle(requests: AsyncIterator[Any], context: Context) -> None:
            async def run(principal: Principal, trace: "Trace") -> None:
                await method.run(self._stream_call(method, context, principal, trace, _well_formed(requests, method)))
                self._used(method, None, None, principal)

            await self._run_stream(method, context, run)

        return handle

    async def _run_stream(
        self, method: Method, context: Context, run: Callable[[Principal, "Trace"], Awaitable[None]]
    ) -> None:
        trace = self._enter(method, context)
        try:
            if self._streams.draining.is_set():
                raise Unavailable("the server shuts down, connect again", reason="SHUTTING_DOWN", retry_after=0.5)
            principal = await self._admit(method, context, trace)
            with self._streams.guard(principal) as guard:
                try:
                    with self._reading(method, principal, PRIMARY):
                        await run(principal, trace)
                except NotFound as error:
                    raise await rights.explained(self._database, principal, method.policy.permission, error) from None
                except asyncio.CancelledError:
                    guard.raise_if_ended()
                    raise
        except TimeoutError as error:
            # A stream has no deadline of its own: something under it took too long.
            await self._abort(context, trace, Unavailable("a store is slow, try again", retry_after=1.0), error)
        except Exception as error:
            await self._abort(context, trace, to_domain(error), error)
        except asyncio.CancelledError:
            await self._cancelled(context, trace)
        finally:
            self._leave(trace)

    def _reading(self, method: Method, principal: Principal, wanted: str) -> AbstractContextManager[None]:
        if self._preference is None:
            return _ANYHOW
        return self._preference.of(method.policy, principal.lasting_id, wanted)

    def _stream_call(
        self, method: Method, context: Context, principal: Principal, trace: "Trace", requests: AsyncIterator[Any]
    ) -> StreamCall[Any, Any]:
        return StreamCall(
            method.full_name,
            trace.request_id,
            principal,
            trace.peer,
            requests=requests,
            write=context.write,
            draining=self._streams.draining,
        )

    async def _admit(self, method: Method, context: Context, trace: "Trace") -> Principal:
        """Credentials, rate limit, right: all that is decided before the request is looked at."""
        if method.policy.permission == "PUBLIC":
            return ANONYMOUS
        admission = await self._authenticator.admit(trace.authorization, method.endpoint, method.policy.rate_class)
        trace.principal = admission.principal
        trace.tell(admission.limit, admission.remaining, admission.reset_seconds)
        return rights.admit(admission.principal, method.policy)

    async def _mutate(self, method: Method, request: Any, principal: Principal, trace: "Trace") -> Any:
        """Runs a mutation: its changes, audit records and stored reply commit together or not at all."""
        key = UUID(request.request_id) if request.request_id else None
        digest = _request_hash(request, method) if key else b""
        actor = principal.lasting_id
        assert actor is not None, "mutations are never public"

        async def attempt(tx: Transaction) -> Any:
            if key:
                stored = await idempotency.claim(tx, actor, method.full_name, key, digest)
                if stored is not None:
                    return method.response_class.FromString(stored)
            records: list[Record] = []

            async def keep(record: Record) -> None:
                records.append(record)

            call = Mutation(
                method.full_name,
                trace.request_id,
                principal,
                trace.peer,
                tx=tx,
                record=recorder(keep, Actor.of(principal), method=method.full_name, request_id=trace.request_id),
            )
            response = await method.run(request, call)
            if key:
                reply = _without_secrets(response, method)
                await idempotency.store(tx, actor, method.full_name, key, reply, records)
            else:
                await audit.append(tx, *records)
            if records and self._announce is not None:
                tx.after_commit(as_callback(self._announce))
            return response

        return await self._database.run(method.name, attempt)

    def _used(self, method: Method, request: Any, reply: Any, principal: Principal) -> None:
        if self._usage is not None:
            self._usage.count(method.attribution, request, reply, principal)

    def _enter(self, method: Method, context: Context) -> "Trace":
        self._running += 1
        self._idle.clear()
        if method.meter is not None:
            method.meter.begin()
        authorization = given_id = reading = traceparent = ""
        for name, value in context.invocation_metadata() or ():
            if name == "authorization":
                authorization = value if isinstance(value, str) else ""
            elif name == "x-request-id" and isinstance(value, str) and _REQUEST_ID.match(value):
                given_id = value
            elif name == HEADER and isinstance(value, str):
                reading = value
            elif name == "traceparent" and isinstance(value, str):
                traceparent = value
        trace = Trace(method, given_id or uuid7().hex, authorization, reading, context)
        context.set_trailing_metadata(trace.trailer)
        if traceparent or self._tracer is not None:
            self._trace(trace, traceparent)
        logs.bind_request(trace.request_id, trace.trace_id)
        return trace

    def _trace(self, trace: "Trace", traceparent: str) -> None:
        """Notes which trace the call is part of, and begins its span if that one is kept."""
        trace.trace_id = trace_id_of(traceparent)
        if self._tracer is not None:
            name = trace.method.full_name
            trace.span = self._tracer.begin(name, trace.request_id, traceparent if trace.trace_id else "")
            if trace.span is not None:
                trace.trace_id = trace.span.trace_id

    def _leave(self, trace: "Trace") -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()
        seconds = time.perf_counter() - trace.started
        if trace.method.meter is not None:
            trace.method.meter.end(trace.code, seconds)
        if trace.span is not None:
            trace.span.end(trace.code, trace.reason)
        facts: dict[str, str | float] = {
            "method": trace.method.full_name,
            "code": trace.code,
            "reason": trace.reason,
            "ms": round(seconds * 1000, 2),
            "request_id": trace.request_id,
            "principal": str(trace.principal.principal_id or ""),
            "peer": trace.peer,
        }
        if trace.trace_id:
            facts["trace_id"] = trace.trace_id
        logs.access(**facts)

    async def _abort(
        self, context: Context, trace: "Trace", error: DomainError, cause: Exception | None = None
    ) -> None:
        trace.code, trace.reason = error.code, error.reason
        if error.code == "INTERNAL":
            self._log.error("call_failed", method=trace.method.full_name, request_id=trace.request_id, exc_info=cause)
        if error.reason == "RATE_LIMITED":
            trace.tell(*(int(error.metadata[name]) for name in ("limit", "remaining", "reset")))
        status = rpc_status.to_status(to_status(error, trace.request_id))
        # grpc forgets the trailing metadata set before. abort raises an Exception by which it recognises an ended call;
        # nothing may run or catch after it.
        await context.abort(status.code, status.details, (*trace.trailer, *status.trailing_metadata))

    async def _cancelled(self, context: Context, trace: "Trace") -> None:
        """The caller went away, or something inside the handler was cancelled on its own.

        grpc sends no status for the latter, and the caller would wait for its deadline.
        """
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            trace.code = "CANCELLED"
            raise asyncio.CancelledError
        await self._abort(context, trace, Unavailable("the call was interrupted, try again", retry_after=0.5))


class Trace:
    """What is known of one running call."""

    __slots__ = (
        "authorization",
        "code",
        "context",
        "method",
        "peer",
        "principal",
        "reading",
        "reason",
        "request_id",
        "span",
        "started",
        "trace_id",
        "trailer",
    )

    def __init__(self, method: Method, request_id: str, authorization: str, reading: str, context: Context) -> None:
        self.method = method
        self.request_id = request_id
        self.authorization = authorization
        self.reading = reading
        self.context = context
        self.peer = context.peer()
        self.trailer: tuple[tuple[str, str], ...] = (("x-request-id", request_id),)
        self.principal = ANONYMOUS
        self.code = "OK"
        self.reason = ""
        self.trace_id = ""
        self.span: CallSpan | None = None
        self.started = time.perf_counter()

    def tell(self, limit: int, remaining: int, reset_seconds: int) -> None:
        """Puts what is left of a limit into the trailing metadata."""
        self.trailer = (
            ("x-request-id", self.request_id),
            ("ratelimit-limit", str(limit)),
            ("ratelimit-remaining", str(remaining)),
            ("ratelimit-reset", str(reset_seconds)),
        )
        self.context.set_trailing_metadata(self.trailer)

    def note_limit(self, state: RateState) -> None:
        """As `tell`, for what a limit said."""
        self.tell(state.limit, state.remaining, math.ceil(state.reset_seconds))


def _method(descriptor: MethodDescriptor, servicers: Sequence[object], meters: CallMeters | None) -> Method:
    run = next(
        (getattr(servicer, descriptor.name) for servicer in servicers if hasattr(servicer, descriptor.name)), None
    )
    if run is None:
        raise NotImplementedError(descriptor.full_name)
    response_class = GetMessageClass(descriptor.output_type)
    return Method(
        name=descriptor.name,
        full_name=f"/{descriptor.containing_service.full_name}/{descriptor.name}",
        endpoint=f"{descriptor.containing_service.full_name}/{descriptor.name}",
        policy=read_policy(descriptor),
        run=run,
        request_class=GetMessageClass(descriptor.input_type),
        response_class=response_class,
        secret_fields=tuple(field.name for field in descriptor.output_type.fields if is_secret(field)),
        secret_inputs=tuple(field.name for field in descriptor.input_type.fields if is_secret(field)),
        attribution=Attribution.of(descriptor),
        meter=None
        if meters is None
        else meters.meter(
            descriptor.containing_service.full_name,
            descriptor.name,
            descriptor.client_streaming or descriptor.server_streaming,
        ),
    )


def _without_secrets(response: Message, method: Method) -> bytes:
    """The reply as it is stored for replays: secrets are shown once and kept nowhere."""
    return _cleared(response, method.secret_fields).SerializeToString()


def _request_hash(request: Message, method: Method) -> bytes:
    """What tells two requests apart. Secrets are left out: a fast hash of a password is as good as the password."""
    return hashlib.sha256(_cleared(request, method.secret_inputs).SerializeToString(deterministic=True)).digest()


def _cleared(message: Message, fields: tuple[str, ...]) -> Message:
    if not fields:
        return message
    public = type(message)()
    public.CopyFrom(message)
    for name in fields:
        public.ClearField(name)
    return public


def _tolerant(parse: Deserializer) -> Deserializer:
    """A parser that never raises: grpc would answer UNKNOWN with the exception's text."""

    def tolerant(data: bytes) -> Any:
        try:
            return parse(data)
        except (DecodeError, ValueError):
            return MALFORMED

    return tolerant


def _serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


async def _nothing() -> AsyncIterator[Any]:
    return
    yield


async def _well_formed(requests: AsyncIterator[Any], method: Method) -> AsyncIterator[Any]:
    async for request in requests:
        if request is MALFORMED:
            raise InvalidRequest(f"not a {method.request_class.DESCRIPTOR.name}", reason="MALFORMED_REQUEST")
        yield request
