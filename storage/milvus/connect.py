"""The connection to one Milvus over its own gRPC."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import grpc

from storage import deadline
from storage.errors import StoreError, StoreUnavailable
from storage.milvus.wire import SERVICE, wire

STORE: Final = "milvus"

_CALL_SECONDS: Final = 10.0
_PING_SECONDS: Final = 2.0
_MOST_BYTES: Final = 64 * 2**20
_COLLECTION_NOT_FOUND: Final = (4, 100)
_NOT_LOADED: Final = (101, 103)
# Beside the state of the connection: what says nothing about the request itself.
_PASSING: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED,
     grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
)  # fmt: skip
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _MOST_BYTES),
    ("grpc.max_send_message_length", _MOST_BYTES),
    # A Milvus that comes back is found at once, and not after gRPC's pauses of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class MilvusError(StoreError):
    """Milvus refuses a request. Its text never leaves this module: it may hold values.

    Attributes:
        code: Milvus's error code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"milvus error {code}")
        self.code = code


class CollectionMissing(MilvusError):
    """Milvus knows no such collection."""


class Milvus:
    """One Milvus database. Connects at the first call, and again by itself after the server was away.

    Calls take at most what is left of the call's deadline (`storage.deadline`) and raise TimeoutError beyond it,
    StoreUnavailable when trying again may help, and MilvusError otherwise. Nothing is repeated here.

    Args:
        dsn: ``http://user:password@host:port/database``; https for TLS; user and database may be left out.
    """

    def __init__(self, dsn: str) -> None:
        url = urlsplit(dsn)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("must be http://[user:password@]host:port[/database]")
        self._address = f"{url.hostname}:{url.port or 19530}"
        self._encrypted = url.scheme == "https"
        metadata = []
        if url.username:
            token = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
            metadata.append(("authorization", b64encode(token).decode()))
        if database := url.path.strip("/"):
            metadata.append(("dbname", database))
        self._metadata = tuple(metadata)
        self._channel: grpc.aio.Channel | None = None
        self._calls: dict[str, Any] = {}

    async def close(self) -> None:
        """Ends the connection."""
        channel, self._channel = self._channel, None
        self._calls.clear()
        if channel is not None:
            await channel.close()

    async def ping(self) -> None:
        """Returns if Milvus answers; raises StoreUnavailable otherwise."""
        try:
            reply = await self.call("CheckHealth", wire().milvus.CheckHealthRequest(), timeout=_PING_SECONDS)
        except (TimeoutError, MilvusError):
            raise StoreUnavailable(STORE, "no answer") from None
        if not reply.isHealthy:
            raise StoreUnavailable(STORE, "unhealthy")

    async def call(self, method: str, request: Any, *, timeout: float = _CALL_SECONDS) -> Any:
        """Calls a method of Milvus's service once and returns its reply, whose status is good.

        Args:
            method: Its name.
            request: Its request.
            timeout: Most seconds, less if the call's deadline is nearer.
        """
        limit = deadline.remaining(timeout)
        call = self._calls.get(method) or self._prepared(method)
        try:
            reply = await call(request, timeout=limit, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The channel was closed beneath the call.
            raise StoreUnavailable(STORE, "closed") from None
        status = reply.status if hasattr(reply, "status") else reply
        code = status.code or status.error_code
        if code in _COLLECTION_NOT_FOUND:
            raise CollectionMissing(code)
        if code in _NOT_LOADED:
            raise StoreUnavailable(STORE, "collection is not loaded")
        if code:
            raise MilvusError(code)
        return reply

    def _prepared(self, method: str) -> Any:
        if self._channel is None:
            if self._encrypted:
                credentials = grpc.ssl_channel_credentials()
                self._channel = grpc.aio.secure_channel(self._address, credentials, options=_OPTIONS)
            else:
                self._channel = grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        messages = wire().milvus
        described = messages.DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]].methods_by_name[method]
        reply_name = described.output_type.name
        reply = getattr(messages, reply_name, None) or getattr(wire().common, reply_name)
        request = getattr(messages, described.input_type.name)
        self._calls[method] = self._channel.unary_unary(
            f"/{SERVICE}/{method}", request_serializer=request.SerializeToString, response_deserializer=reply.FromString
        )
        return self._calls[method]


def _translated(error: grpc.aio.AioRpcError) -> Exception:
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimeoutError()
    if code in _PASSING:
        return StoreUnavailable(STORE, code.name)
    return MilvusError(code.value[0])
