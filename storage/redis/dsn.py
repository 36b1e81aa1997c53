"""What a Redis URL says."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

_DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379


class MalformedDsn(ValueError):
    """The URL cannot be used. The text does not quote it, because it may hold a password."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is and how to greet it.

    Attributes:
        sentinels: Host and port of each sentinel; if there are any, they say where the server is.
        service: What the sentinels call it.
        ca_file: PEM file of the authorities that `tls` trusts; None for the system's.
        sentinel_password: The sentinels' own; empty if they ask for none.
    """

    host: str = "localhost"
    port: int = _DEFAULT_PORT
    path: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    tls: ssl.SSLContext | None = None
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    ca_file: str | None = None
    sentinel_password: str = field(default="", repr=False)

    def greeting(self) -> Iterator[tuple[str | int, ...]]:
        """Commands to send first on every connection."""
        if self.password:
            yield ("AUTH", self.username, self.password) if self.username else ("AUTH", self.password)
        if self.database:
            yield ("SELECT", self.database)
        yield ("CLIENT", "SETNAME", "mrm")


def parse_dsn(dsn: str) -> Address:
    """Reads ``redis[s]://[user:password@]host[:port][/database]`` or ``unix://[user:password@]/path?db=0``.

    ``redis[s]+sentinel://[user:password@]host[:port],host[:port]/service[/database]`` names sentinels instead, whose
    own password is the parameter `sentinel_password`. ``rediss`` verifies the server against the system's authorities,
    or those in the PEM file `ssl_ca_certs`.

    Raises:
        MalformedDsn: It is none of these.
    """
    try:
        url = urlsplit(dsn)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        user, password = unquote(url.username or ""), unquote(url.password or "")
        if url.scheme == "unix":
            return Address(path=unquote(url.path), username=user, password=password, database=int(query.get("db", "0")))
        scheme, _, kind = url.scheme.partition("+")
        if scheme not in ("redis", "rediss") or kind not in ("", "sentinel"):
            raise ValueError
        tls = ssl.create_default_context(cafile=query.get("ssl_ca_certs")) if scheme == "rediss" else None
        if kind:
            return _behind_sentinels(url, query, tls)
        database = int(url.path.strip("/") or query.get("db", "0"))
        return Address(url.hostname or "localhost", url.port or _DEFAULT_PORT, "", user, password, database, tls)
    except ValueError:
        raise MalformedDsn("malformed Redis URL: expected redis://, rediss://, redis+sentinel:// or unix://") from None


def _behind_sentinels(url: SplitResult, query: dict[str, str], tls: ssl.SSLContext | None) -> Address:
    hosts = [urlsplit(f"//{each}") for each in url.netloc.rpartition("@")[2].split(",")]
    sentinels = tuple((each.hostname or "", each.port or _SENTINEL_PORT) for each in hosts)
    service, _, database = unquote(url.path).strip("/").partition("/")
    if not service or not all(host for host, _ in sentinels):
        raise ValueError
    return Address(
        username=unquote(url.username or ""),
        password=unquote(url.password or ""),
        database=int(database or "0"),
        tls=tls,
        sentinels=sentinels,
        service=service,
        ca_file=query.get("ssl_ca_certs"),
        sentinel_password=query.get("sentinel_password", ""),
    )
