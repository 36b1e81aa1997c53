"""Renewed tokens, as OAuth 2.0 (RFC 6749, section 6) has them: both platforms that renew any do it so."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from server.platforms.http import PlatformHttp, Request, seconds, whole
from server.platforms.interface import AuthFailed, Malformed, Throttled

_LONGEST = 10 * 365 * 86_400


@dataclass(frozen=True, slots=True)
class Application:
    """Ourselves, as a platform knows us.

    Attributes:
        base_url: Where tokens are renewed.
        path: By what.
        client_id: Our id; empty if we have none, and then nothing is renewed.
        client_secret: What proves it.
    """

    base_url: str
    path: str
    client_id: str
    client_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A new pair.

    Attributes:
        access: For requests.
        refresh: For the next renewal; the old one if the platform gave none.
        expire_time: When the first ends; None if the platform does not say.
    """

    access: str = field(repr=False)
    refresh: str = field(repr=False)
    expire_time: Timestamp | None


async def renew(http: PlatformHttp, application: Application, refresh_token: str) -> Tokens:
    """Trades a refresh token for a new pair. It is sent once: some platforms take a refresh token only once.

    Raises:
        AuthFailed: The grant or our application is refused.
        Throttled: The platform wants to be asked later.
        Malformed: There is no token in the answer.
        Unavailable: The platform cannot be reached.
    """
    answer = await http.ask(
        Request(
            "POST",
            application.base_url,
            application.path,
            form={
                "grant_type": "refresh_token",
                "refresh_token": refresh_token,
                "client_id": application.client_id,
                "client_secret": application.client_secret,
            },
            repeatable=False,
        )
    )
    if answer.status == 429:
        raise Throttled("the platform renews no more tokens for now", retry_after=seconds(60), code=429)
    if answer.status in (400, 401, 403):
        raise AuthFailed(f"the platform refuses to renew the token (HTTP {answer.status})", code=answer.status)
    found = answer.object()
    access, refresh = found.get("access_token"), found.get("refresh_token")
    if answer.status != 200 or not isinstance(access, str) or not access:
        raise Malformed(f"the platform answers no token (HTTP {answer.status})", code=answer.status)
    life = whole(found.get("expires_in"))
    ends = None
    if life is not None and life > 0:
        ends = Timestamp()
        ends.FromDatetime(datetime.now(UTC) + timedelta(seconds=min(life, _LONGEST)))
    return Tokens(access, refresh if isinstance(refresh, str) and refresh else refresh_token, ends)
