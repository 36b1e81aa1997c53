"""What a Redis URL says."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

_DEFAULT_PORT = 6379


class MalformedDsn(ValueError):
    """The URL cannot be used. The text does not quote it, because it may hold a password."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is and how to greet it."""

    host: str = "localhost"
    port: int = _DEFAULT_PORT
    path: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    tls: ssl.SSLContext | None = None

    def greeting(self) -> Iterator[tuple[str | int, ...]]:
        """Commands to send first on every connection."""
        if self.password:
            yield ("AUTH", self.username, self.password) if self.username else ("AUTH", self.password)
        if self.database:
            yield ("SELECT", self.database)
        yield ("CLIENT", "SETNAME", "mrm")


def parse_dsn(dsn: str) -> Address:
    """Reads ``redis[s]://[user:password@]host[:port][/database]`` or ``unix://[user:password@]/path?db=0``.

    ``rediss`` verifies the server against the system's authorities, or those in the PEM file `ssl_ca_certs`.

    Raises:
        MalformedDsn: It is none of these.
    """
    try:
        url = urlsplit(dsn)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        user, password = unquote(url.username or ""), unquote(url.password or "")
        if url.scheme == "unix":
            return Address(path=unquote(url.path), username=user, password=password, database=int(query.get("db", "0")))
        if url.scheme not in ("redis", "rediss"):
            raise ValueError
        tls = ssl.create_default_context(cafile=query.get("ssl_ca_certs")) if url.scheme == "rediss" else None
        database = int(url.path.strip("/") or query.get("db", "0"))
        return Address(url.hostname or "localhost", url.port or _DEFAULT_PORT, "", user, password, database, tls)
    except ValueError:
        raise MalformedDsn("malformed Redis URL: expected redis://, rediss:// or unix://") from None
