"""A language model's server over a real socket, which behaves as the reference of the OpenAI API has it.

`POST /v1/chat/completions` wants a bearer token, a known model and messages; JSON mode wants the word JSON in one of
them (400 otherwise). Errors are `{"error": {"message", "type", "param", "code"}}`; 429 may come with `retry-after`. A
completion has `choices[0].message` with `content` or `refusal`, and `finish_reason` says how it ended.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from server.settings import LanguageModelSettings

KEY, MODEL, SERVED = "sk-not-much-of-a-secret", "words-large", "words-large-2026-10-01"

Say = Callable[[list[dict[str, Any]]], object]


def error(status: int, kind: str, code: str | None = None, headers: dict[str, str] | None = None) -> web.Response:
    """An error as the reference has it, with more text than should ever be shown."""
    told = {"message": f"Incorrect API key provided: {KEY}.", "type": kind, "param": None, "code": code}
    return web.json_response({"error": told}, status=status, headers=headers)


class Chat:
    """A model that says what it is told to.

    Attributes:
        say: Makes the content of an answer of the findings that it was given; text is sent as it is, all else as JSON.
        first: Answers that come before the first completion.
        finish: How completions end.
        asked: Bodies of the requests.
    """

    def __init__(self, say: Say) -> None:
        self.say = say
        self.first: list[web.StreamResponse | float] = []
        self.finish = "stop"
        self.asked: list[dict[str, Any]] = []
        self.url = ""

    def settings(self, **fields: Any) -> LanguageModelSettings:
        """Settings of a server that asks it."""
        return LanguageModelSettings.model_validate(
            {"url": self.url, "key": KEY, "model": MODEL, "timeout": 5, **fields}
        )

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answers a request."""
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return error(401, "invalid_request_error", "invalid_api_key")
        body = await request.json()
        self.asked.append(body)
        if body["model"] != MODEL:
            return error(404, "invalid_request_error", "model_not_found")
        said = " ".join(message["content"] for message in body["messages"])
        assert {message["role"] for message in body["messages"]} <= {"system", "user"}
        if body.get("response_format") == {"type": "json_object"} and "json" not in said.lower():
            return error(400, "invalid_request_error")
        if self.first:
            early = self.first.pop(0)
            if isinstance(early, web.StreamResponse):
                return early
            await asyncio.sleep(early)
        content = self.say(json.loads(body["messages"][-1]["content"])["findings"])
        message = {
            "role": "assistant",
            "content": content if isinstance(content, str | None) else json.dumps(content, ensure_ascii=False),
            "refusal": None if content is not None else "I cannot help with that.",
        }
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1_790_000_000,
                "model": SERVED,
                "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
            }
        )


@asynccontextmanager
async def chatting(say: Say) -> AsyncIterator[Chat]:
    """The server, for the length of a block."""
    chat = Chat(say)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        chat.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield chat
    finally:
        await runner.cleanup()
