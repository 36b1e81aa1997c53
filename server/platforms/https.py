"""The one way out to the platforms: bounded in time and size, to configured hosts only, and never elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from server.settings import PlatformsSettings

_MOST_BYTES = 256 * 1024


class PlatformFault(Exception):
    """A platform did not do what was asked. The text is ours and holds nothing that the platform or the caller said.

    Attributes:
        refused: The platform refuses the credentials, and will go on doing so; otherwise the fault may pass.
    """

    def __init__(self, text: str, *, refused: bool) -> None:
        super().__init__(text)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Answer:
    """What a platform answered.

    Attributes:
        status: HTTP status.
        body: The JSON object of the body; empty if it is none.
    """

    status: int
    body: Mapping[str, Any]


class PlatformHttp:
    """Asks platforms over HTTPS. No redirect is followed, because it would carry the token to another host.

    Args:
        settings: Time limit.
    """

    def __init__(self, settings: PlatformsSettings) -> None:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"accept": "application/json", "accept-encoding": "identity", "user-agent": "mrm-data-service"},
        )

    async def close(self) -> None:
        """Ends all connections."""
        await self._session.close()

    async def ask(
        self, method: str, base_url: str, path: str, headers: Mapping[str, str], body: Mapping[str, Any] | None = None
    ) -> Answer:
        """Sends one request.

        Args:
            method: HTTP method.
            base_url: A configured address.
            path: What to ask of it.
            headers: Among them the credentials.
            body: Sent as JSON if given.

        Raises:
            PlatformFault: No usable answer came in time.
        """
        data = None if body is None else orjson.dumps(body)
        sent = {**headers, "content-type": "application/json"} if data else dict(headers)
        try:
            async with self._session.request(
                method, f"{base_url}{path}", data=data, headers=sent, allow_redirects=False
            ) as response:
                raw = await response.content.read(_MOST_BYTES + 1)
                while len(raw) <= _MOST_BYTES and (more := await response.content.read(_MOST_BYTES)):
                    raw += more
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise PlatformFault(f"the platform cannot be reached ({type(error).__name__})", refused=False) from None
        if len(raw) > _MOST_BYTES:
            raise PlatformFault("the platform's answer is too long", refused=False)
        if 300 <= status < 400:
            raise PlatformFault(f"the platform redirects elsewhere (HTTP {status})", refused=False)
        try:
            found = orjson.loads(raw)
        except orjson.JSONDecodeError:
            found = None
        return Answer(status, found if isinstance(found, dict) else {})
