"""Channels with the options this service wants, and the caller's token on every call."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

_MEBIBYTE = 2**20
_MOST_MESSAGE_BYTES = 4 * _MEBIBYTE

_OPTIONS: tuple[tuple[str, Any], ...] = (
    # The server takes a ping every 10 s; 30 s keeps idle connections open in most networks and finds dead ones.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", _MOST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MOST_MESSAGE_BYTES),
    # gRPC's own pause grows to two minutes, far longer than a server takes to restart.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
)
# Without these gRPC buffers megabytes of states that a slow reader will find outdated.
_WATCH_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 16_384),
)


def channel(
    target: str,
    token: str = "",
    *,
    tls: bool | None = None,
    root_certificates: Path | None = None,
    client_certificate: Path | None = None,
    client_key: Path | None = None,
    server_name: str = "",
    watch: bool = False,
    options: Iterable[tuple[str, Any]] = (),
) -> grpc.aio.Channel:
    """Opens a channel to the service; use it with the generated stubs, `Producer` and `watch`.

    ::

        async with mrm_client.channel("127.0.0.1:50051", token) as channel:
            campaigns = CampaignServiceStub(channel)
            reply = await campaigns.GetCampaign(GetCampaignRequest(campaign_id=...), timeout=3)

    Args:
        target: ``host:port``, or any gRPC target.
        token: Session token or API key; sent as ``authorization: Bearer`` with every call.
        tls: Whether to encrypt; by default unless the target is on this machine.
        root_certificates: PEM file of the authorities to trust instead of the system's; implies `tls`.
        client_certificate: PEM file of the certificate to show, followed by its chain, where the server wants one;
            implies `tls`.
        client_key: PEM file of its private key.
        server_name: Name that the server's certificate must be for, where it is not the target's own; implies `tls`.
        watch: Whether the channel will carry `watch` streams: keeps little in gRPC's buffers, so that a slow reader
            sees recent states. Costs throughput for everything else, so use a channel of its own.
        options: gRPC channel arguments that win over the ones set here.

    Raises:
        ValueError: A token would leave this machine in the clear, or a client certificate comes without its key.
        OSError: A file cannot be read.
    """
    if (client_certificate is None) != (client_key is None):
        raise ValueError("a client certificate needs its key")
    local = is_local(target)
    implied = root_certificates is not None or client_certificate is not None or bool(server_name)
    encrypted = implied or (not local if tls is None else tls)
    if token and not encrypted and not local:
        raise ValueError("refusing to send a token in the clear to another machine: use TLS")
    # Later arguments win.
    expected = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    arguments = dict((*_OPTIONS, *(_WATCH_OPTIONS if watch else ()), *expected, *options))
    if encrypted:
        credentials = grpc.ssl_channel_credentials(
            root_certificates.read_bytes() if root_certificates else None,
            client_key.read_bytes() if client_key else None,
            client_certificate.read_bytes() if client_certificate else None,
        )
        plain = grpc.aio.secure_channel(target, credentials, options=list(arguments.items()))
    else:
        plain = grpc.aio.insecure_channel(target, options=list(arguments.items()))
    return _TokenChannel(plain, token) if token else plain


def is_local(target: str) -> bool:
    """Whether a gRPC target can only lead to this machine."""
    if target.startswith("unix:"):
        return True
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        target = target.removeprefix(scheme)
    host = target.rpartition("/")[2]
    bare_ipv6 = not host.startswith("[") and host.count(":") > 1
    name = (host if bare_ipv6 else host.rpartition(":")[0] or host).strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _TokenChannel(grpc.aio.Channel):
    """Adds the token to the metadata of every call.

    gRPC's call credentials work on encrypted channels only, and its interceptors run every call in a task of its own.
    """

    def __init__(self, inner: grpc.aio.Channel, token: str) -> None:
        self._inner = inner
        self._metadata = (("authorization", f"Bearer {token}"),)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._inner.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._inner.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._inner.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_token(self._inner.stream_stream(*args, **kwargs))

    def _with_token(self, call: Callable[..., Any]) -> Callable[..., Any]:
        own = self._metadata

        def with_token(*args: Any, metadata: Sequence[tuple[str, Any]] | None = None, **kwargs: Any) -> Any:
            return call(*args, metadata=(*own, *metadata) if metadata else own, **kwargs)

        return with_token

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> _TokenChannel:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self._inner.close()
