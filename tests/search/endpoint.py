"""A model behind an OpenAI-compatible endpoint, over a real socket: vectors of words, and faults on demand."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web

KEY = "sk-of-tests-e1f7"


@dataclass
class Endpoint:
    """The endpoint.

    Attributes:
        dimension: Numbers in a vector.
        script: What to answer to the next requests instead of vectors: a status, or a text for a body.
        asked: The texts of each request.
        refused: Texts with this in them are answered with 400.
    """

    dimension: int = 64
    script: deque[int | str] = field(default_factory=deque)
    asked: list[list[str]] = field(default_factory=list)
    refused: str = "\0"
    retry_after: str = ""
    url: str = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Endpoint]:
        """Listens for the length of a block."""
        app = web.Application()
        app.router.add_post("/v1/embeddings", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"  # type: ignore[attr-defined]
        try:
            yield self
        finally:
            await runner.cleanup()

    def vector(self, text: str) -> list[float]:
        """A direction that texts share as far as they share words."""
        found = np.full(self.dimension, 1e-3)
        for word in text.lower().split():
            digest = hashlib.sha256(word.encode()).digest()
            found[digest[0] % self.dimension] += 1.0 if digest[1] % 2 else -1.0
        return [float(each) for each in found]

    async def _answer(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        self.asked.append(body["input"])
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return web.json_response({"error": f"wrong key {request.headers.get('authorization')}"}, status=401)
        said = self.script.popleft() if self.script else 200
        if said == 0:
            await asyncio.sleep(1.0)
        if isinstance(said, str):
            return web.Response(text=said, content_type="application/json")
        if said != 200:
            headers = {"retry-after": self.retry_after} if self.retry_after else {}
            return web.json_response({"error": KEY}, status=said, headers=headers)
        if any(self.refused in text for text in body["input"]):
            return web.json_response({"error": "too long"}, status=400)
        entries = [
            {"object": "embedding", "index": place, "embedding": self.vector(text)}
            for place, text in enumerate(body["input"])
        ]
        # The order is not promised.
        return web.json_response({"data": entries[::-1], "model": body["model"], "usage": {"total_tokens": 1}})
