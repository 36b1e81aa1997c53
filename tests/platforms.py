"""The advertising platforms, as their documentation describes them, behind a real socket.

What a platform does is decided by the token it is sent. Its error texts repeat the token, as a careless platform might:
nothing of them may come out of the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from server.settings import PlatformsSettings


class FakePlatforms:
    """All platforms on one loopback port.

    Attributes:
        url: Where they are.
        behaviour: Token to what is answered to it: ``ok``, an error code or HTTP status, or a misdeed (``redirect``,
            ``huge``, ``slow``, ``garbage``). Unknown tokens are refused.
        asked: Method, path and headers of every request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.behaviour: dict[str, str] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[FakePlatforms]:
        """Serves for the length of a block."""
        fake = cls("")
        app = web.Application()
        app.router.add_post("/json/v5/clients", fake._direct)
        app.router.add_get("/api/v2/user.json", fake._vk)
        app.router.add_get("/management/v1/counter/{counter}", fake._metrika)
        app.router.add_route("*", "/elsewhere", fake._elsewhere)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield fake
        finally:
            await runner.cleanup()

    def settings(self, timeout: float = 10.0) -> PlatformsSettings:
        """Settings of a server that takes these for the platforms."""
        return PlatformsSettings(
            yandex_direct_url=self.url, vk_ads_url=self.url, yandex_metrika_url=self.url, timeout=timeout
        )

    async def _take(self, request: web.Request, scheme: str) -> tuple[str, str]:
        """The token of a request and what to do; does the misdeeds that all platforms have in common."""
        self.asked.append((request.method, request.path, dict(request.headers)))
        given, _, token = request.headers.get("Authorization", "").partition(" ")
        wanted = self.behaviour.get(token, "unknown") if given == scheme else "unknown"
        if wanted == "redirect":
            raise web.HTTPFound("/elsewhere")
        if wanted == "slow":
            await asyncio.sleep(5)
        if wanted == "huge":
            raise web.HTTPOk(body=b"[" + b" " * 2_000_000 + b"]", content_type="application/json")
        if wanted == "garbage":
            raise web.HTTPOk(text="<html>maintenance</html>", content_type="text/html")
        return token, wanted

    async def _direct(self, request: web.Request) -> web.Response:
        token, wanted = await self._take(request, "Bearer")
        question = await request.json()
        assert question["method"] == "get" and question["params"]["FieldNames"]
        if wanted == "ok":
            return web.json_response({"result": {"Clients": [{"ClientId": 1, "Login": "shop"}]}})
        code = 53 if wanted == "unknown" else int(wanted)
        error: dict[str, Any] = {"request_id": "1", "error_string": "error", "error_detail": f"about {token}"}
        # The API gives the code as a number in some services and as text in others.
        return web.json_response({"error": {**error, "error_code": code if code % 2 else str(code)}})

    async def _vk(self, request: web.Request) -> web.Response:
        token, wanted = await self._take(request, "Bearer")
        if wanted == "ok":
            return web.json_response({"id": 7, "username": "shop"})
        status = 401 if wanted == "unknown" else int(wanted)
        code = {401: "expired_token", 403: "access_denied", 429: "rate_limit"}.get(status, "error")
        return web.json_response({"error": {"code": code, "message": f"about {token}"}}, status=status)

    async def _metrika(self, request: web.Request) -> web.Response:
        token, wanted = await self._take(request, "OAuth")
        if wanted == "ok":
            return web.json_response({"counter": {"id": int(request.match_info["counter"])}})
        kind, status = {
            "unknown": ("invalid_token", 403), "403": ("access_denied", 403), "quota": ("quota_requests_by_uid", 403),
            "429": ("quota_parallel_requests", 429), "503": ("backend_error", 503),
        }[wanted]  # fmt: skip
        errors = [{"error_type": kind, "message": f"about {token}"}]
        return web.json_response({"errors": errors, "code": status, "message": token}, status=status)

    async def _elsewhere(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, request.path, dict(request.headers)))
        return web.json_response({"id": 7, "result": {}, "counter": {}})
