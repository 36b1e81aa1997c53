"""The one way out, to platforms and a language model: bounded in time and size, to configured hosts and no other."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any
from weakref import WeakValueDictionary

import httpx2

from server.platforms.interface import Malformed, Throttled, Unavailable

_JSON_BYTES = 16 * 2**20
_REPEATS = 1
_REPEAT_SECONDS = 0.2
_PASSING = frozenset({500, 502, 503, 504})
_MOST_PAUSES = 10_000
_WHOLE = re.compile(r"-?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask.

    Attributes:
        method: HTTP method.
        base_url: A configured address.
        path: What to ask of it.
        headers: Among them the credentials.
        query: Parameters of the address.
        body: Sent as JSON if given.
        form: Sent as a form if given.
        repeatable: Asking twice does no more than asking once, so that a lost answer is asked for again.
        most_bytes: Longest answer that is taken.
        seconds: Longest wait; the settings' if None.
    """

    method: str
    base_url: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict)
    body: object | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    repeatable: bool = True
    most_bytes: int = _JSON_BYTES
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a platform answered.

    Attributes:
        status: HTTP status.
        headers: Headers by lower-case name.
        raw: The body.
    """

    status: int
    headers: Mapping[str, str]
    raw: bytes = field(repr=False)

    def json(self) -> Any:
        """The body as JSON, numbers with a point exact; None if it is none."""
        try:
            return json.loads(self.raw, parse_float=Decimal, parse_constant=_no_number)
        except (ValueError, RecursionError):
            return None

    def object(self) -> Mapping[str, Any]:
        """The JSON object of the body; empty if it is none."""
        found = self.json()
        return found if isinstance(found, dict) else {}

    def number(self, header: str) -> int | None:
        """A header that holds a whole number; None if it does not."""
        return whole(self.headers.get(header))


class PlatformHttp:
    """Asks platforms over HTTPS. No redirect is followed, because it would carry the token to another host.

    Args:
        timeout: Longest wait for an answer, in seconds.

    Attributes:
        asked: How many requests each host got, repeats among them.
        repeated: How many of these were repeats of an unanswered one.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.asked: Counter[str] = Counter()
        self.repeated: Counter[str] = Counter()
        self._client = httpx2.AsyncClient(
            timeout=None,
            follow_redirects=False,
            trust_env=False,
            limits=httpx2.Limits(max_connections=64, max_keepalive_connections=16),
            headers={"accept-encoding": "identity", "user-agent": "mrm-data-service"},
        )

    async def close(self) -> None:
        """Ends all connections."""
        await self._client.aclose()

    async def ask(self, request: Request) -> Answer:
        """Sends one request, and once more if that is safe and no answer came.

        Raises:
            Unavailable: No answer came in time, or it says that the platform is out of order.
            Malformed: The answer is too long, packed, or points elsewhere.
        """
        left = _REPEATS if request.repeatable else 0
        while True:
            self.asked[request.base_url] += 1
            try:
                answer = await self._once(request)
            except Unavailable:
                if not left:
                    raise
            else:
                if answer.status not in _PASSING:
                    return answer
                if not left:
                    raise Unavailable(
                        f"the platform answers HTTP {answer.status}",
                        code=answer.status,
                        uncertain=not request.repeatable,
                    )
            left -= 1
            self.repeated[request.base_url] += 1
            await asyncio.sleep(_REPEAT_SECONDS)

    async def _once(self, request: Request) -> Answer:
        content = None if request.body is None else json.dumps(request.body, ensure_ascii=False).encode()
        headers = {"accept": "application/json", **request.headers}
        if content is not None:
            headers["content-type"] = "application/json; charset=utf-8"
        raw = bytearray()
        try:
            async with (
                asyncio.timeout(request.seconds or self._timeout),
                self._client.stream(
                    request.method,
                    request.base_url + request.path,
                    params=dict(request.query) or None,
                    content=content,
                    data=None if request.form is None else dict(request.form),
                    headers=headers,
                ) as response,
            ):
                async for part in response.aiter_raw():
                    raw += part
                    if len(raw) > request.most_bytes:
                        raise Malformed("the platform's answer is too long", code=response.status_code)
                status = response.status_code
                got = {name.lower(): value for name, value in response.headers.items()}
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol) as error:
            raise _unreachable(error, uncertain=False) from None
        except (httpx2.HTTPError, httpx2.StreamError, TimeoutError, OSError, ValueError) as error:
            raise _unreachable(error, uncertain=not request.repeatable) from None
        if 300 <= status < 400:
            raise Malformed(f"the platform redirects elsewhere (HTTP {status})", code=status)
        if got.get("content-encoding", "identity") != "identity":
            raise Malformed("the platform packs its answer, unasked", code=status)
        return Answer(status, got, bytes(raw))


class Gates:
    """How hard each account may be asked, by this process: at once, and not before when.

    Args:
        at_once: Most requests of one account under way at the same time.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._pauses: dict[str, float] = {}

    async def enter(self, stack: AsyncExitStack, key: str) -> None:
        """Takes a place among an account's requests until the stack closes."""
        places = self._places.get(key)
        if places is None:
            places = self._places[key] = asyncio.Semaphore(self._at_once)
        await stack.enter_async_context(places)

    def check(self, key: str) -> None:
        """Lets pass unless the account rests.

        Raises:
            Throttled: It does.
        """
        left = self._pauses.get(key, 0.0) - time.monotonic()
        if left > 0:
            raise Throttled("the account's limit at the platform is used up", retry_after=seconds(math.ceil(left)))

    def pause(self, key: str, length: timedelta) -> None:
        """Lets the account rest."""
        now = time.monotonic()
        if len(self._pauses) >= _MOST_PAUSES:
            self._pauses = {name: until for name, until in self._pauses.items() if until > now}
        self._pauses[key] = now + length.total_seconds()


@contextmanager
def creating() -> Iterator[None]:
    """Around a creation: an answer that cannot be read leaves open whether it was done, and must not invite another."""
    try:
        yield
    except Malformed as error:
        raise Unavailable(str(error), code=error.code, uncertain=True) from None


def seconds(number: float) -> timedelta:
    """A wait, kept within a second and a day."""
    return timedelta(seconds=min(max(number, 1.0), 86_400.0))


def whole(value: object) -> int | None:
    """A whole number that came as one or as text; None if it did not."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else None


def _unreachable(error: Exception, *, uncertain: bool) -> Unavailable:
    return Unavailable(f"the platform cannot be reached ({type(error).__name__})", uncertain=uncertain)


def _no_number(_: str) -> None:
    raise ValueError("no number")
