"""The sandbox over HTTP: all platforms on one port, and a small control API beside them.

The texts of its errors repeat the token they are about, as a careless platform might: nothing of them may come out of
the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

from aiohttp import web

from server.sandbox import direct, metrika, vk
from server.sandbox.sandbox import MISDEEDS, Asked, Refusal, Sandbox
from server.sandbox.state import POINTS, Account

_SLOW_SECONDS = 5.0
_HUGE_BYTES = 2_000_000
_VK_STATUS = {"401": "invalid_token", "403": "access_denied", "429": "rate_limit", "500": "ERR_INTERNAL"}
_METRIKA_ERRORS = {
    "unknown": ("invalid_token", 403), "403": ("access_denied", 403), "401": ("invalid_token", 401),
    "404": ("not_found", 404), "quota": ("quota_requests_by_uid", 403), "429": ("quota_parallel_requests", 429),
    "503": ("backend_error", 503), "500": ("backend_error", 500),
}  # fmt: skip
_POINTS_OF_A_CALL = 10
_FAULT = web.RequestKey("fault", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(sandbox: Sandbox, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Sandbox]:
    """Serves for the length of a block; `sandbox.url` says where."""
    runner = web.AppRunner(application(sandbox), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        sandbox.url = f"http://{host}:{runner.addresses[0][1]}"
        yield sandbox
    finally:
        await runner.cleanup()


def application(sandbox: Sandbox) -> web.Application:
    """The routes."""
    served = _Served(sandbox)
    app = web.Application(middlewares=[served.watched], client_max_size=8 * 2**20)
    app.router.add_post("/json/v5/reports", served.report)
    app.router.add_post("/json/v5/{service}", served.direct)
    app.router.add_post("/token", served.token)
    app.router.add_post("/api/v2/oauth2/token.json", served.token)
    app.router.add_get("/api/v2/user.json", served.vk)
    app.router.add_route("*", "/api/v2/ad_plans.json", served.vk)
    app.router.add_post("/api/v2/ad_plans/mass_action.json", served.vk)
    app.router.add_route("*", r"/api/v2/ad_plans/{number:\d+}.json", served.vk)
    app.router.add_get("/api/v2/statistics/ad_plans/day.json", served.vk)
    app.router.add_get("/management/v1/counter/{counter}", served.metrika)
    app.router.add_get("/management/v1/counter/{counter}/goals", served.metrika)
    app.router.add_get("/stat/v1/data", served.metrika)
    app.router.add_get("/sandbox/state", served.state)
    app.router.add_post("/sandbox/{control}", served.control)
    app.router.add_route("*", "/elsewhere", served.elsewhere)
    return app


class _Served:
    """The handlers."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    @property
    def watched(self) -> Any:
        """Remembers every request to a platform, spoils those that are to be spoilt, and tells of the answer."""

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            sandbox = self._sandbox
            if request.path.startswith("/sandbox/"):
                return await handler(request)
            body = await request.read()
            sandbox.asked.append(Asked(request.method, request.path, dict(request.headers), dict(request.query), body))
            how = sandbox.fault(_platform(request.path), request.path, request.method)
            response = await _spoilt(request, how) if how in MISDEEDS else None
            if response is None and how.isdigit():
                response = web.json_response({"error": {"code": how, "message": "error"}}, status=int(how))
            if response is None:
                request[_FAULT] = "" if how == "lost" else how
                response = await handler(request)
                if how == "lost":
                    response = await _spoilt(request, "cut")
            if sandbox.told is not None:
                sandbox.told(request.method, request.path, response.status)
            return response

        return middleware

    def _account(self, platform: str, token: str) -> Account:
        """Whose token it is.

        Raises:
            Refusal: It opens nothing, or nothing any more.
        """
        state = self._sandbox.state
        found = state.tokens.get(token)
        if found is None or found.refreshes or not found.account.startswith(platform):
            raise Refusal("invalid_token", 401)
        if found.expires_at is not None and found.expires_at <= state.now():
            raise Refusal("expired_token", 401)
        return state.accounts[found.account]

    async def _wanted(self, request: web.Request, scheme: str) -> tuple[str, str, web.StreamResponse | None]:
        """The token of a request, what is to be answered to it, and the answer if that is a misdeed."""
        given, _, token = request.headers.get("Authorization", "").partition(" ")
        wanted = self._sandbox.behaviour.get(token, "") if given == scheme else "unknown"
        return token, wanted, await _spoilt(request, wanted) if wanted in MISDEEDS else None

    async def direct(self, request: web.Request) -> web.StreamResponse:
        """Yandex Direct."""
        token, wanted, spoilt = await self._wanted(request, "Bearer")
        if spoilt is not None:
            return spoilt
        question = await request.json()
        method, params = question["method"], question.get("params", {})
        headers = {"RequestId": str(uuid4().int)[:19]}
        if wanted == "ok":
            return web.json_response({"result": {"Clients": [{"ClientId": 1, "Login": "shop"}]}}, headers=headers)
        if wanted or request[_FAULT]:
            code = wanted or request[_FAULT].removeprefix("error ")
            return _direct_error(code if code.isdigit() else "53", 200, token, headers)
        try:
            account = self._direct_account(request, token)
        except Refusal as refusal:
            return _direct_error(refusal.code, 200, token, headers)
        hour = self._sandbox.state.now().replace(minute=0, second=0, microsecond=0)
        hours = (hour - (account.points_at or hour)) // timedelta(hours=1)
        account.points, account.points_at = min(POINTS, account.points + POINTS // 24 * hours), hour
        if account.points < _POINTS_OF_A_CALL:
            return _direct_error("152", 200, token, {**headers, "Units": f"0/{account.points}/{POINTS}"})
        try:
            service = request.match_info["service"]
            result = direct.call(self._sandbox, account, service, method, params)
        except Refusal as refusal:
            return _direct_error(refusal.code, refusal.status, token, headers)
        spent = _POINTS_OF_A_CALL + len(result.get("Campaigns", ()))
        account.points -= spent
        self._sandbox.save()
        return web.json_response({"result": result}, headers={**headers, "Units": f"{spent}/{account.points}/{POINTS}"})

    def _direct_account(self, request: web.Request, token: str) -> Account:
        try:
            account = self._account("yandex_direct", token)
        except Refusal:
            raise Refusal("53", 200) from None
        login = request.headers.get("Client-Login", account.name)
        if login != account.name:
            raise Refusal("54", 200)
        return account

    async def report(self, request: web.Request) -> web.StreamResponse:
        """Reports of Yandex Direct."""
        token, wanted, spoilt = await self._wanted(request, "Bearer")
        if spoilt is not None:
            return spoilt
        headers = {"RequestId": str(uuid4().int)[:19]}
        code = wanted or request[_FAULT].removeprefix("error ")
        if code:
            return _direct_error(code if code.isdigit() else "53", 400, token, headers)
        try:
            account = self._direct_account(request, token)
            params = (await request.json())["params"]
            mode = request.headers.get("processingMode", "auto")
            status, more, text = direct.report(self._sandbox, account, params, mode)
        except Refusal as refusal:
            return _direct_error(refusal.code, 400, token, headers)
        except (KeyError, ValueError):
            return _direct_error("8000", 400, token, headers)
        rows = text.count("\n") - 1
        if request.headers.get("skipReportHeader") != "true":
            criteria = params["SelectionCriteria"]
            text = f'"{params["ReportName"]} ({criteria["DateFrom"]} - {criteria["DateTo"]})"\n{text}'
        if request.headers.get("skipReportSummary") != "true":
            text += f"Total rows: {rows}\n"
        self._sandbox.save()
        return web.Response(
            text=text if status == 200 else "",
            status=status,
            headers={**headers, **more},
            content_type="text/tab-separated-values",
        )

    async def token(self, request: web.Request) -> web.StreamResponse:
        """Renews tokens, of both kinds of OAuth."""
        form = await request.post()
        state, given = self._sandbox.state, str(form.get("refresh_token", ""))
        found = state.tokens.get(given)
        if form.get("client_id") != "sandbox" or form.get("grant_type") != "refresh_token":
            return web.json_response({"error": "invalid_client", "error_description": f"about {given}"}, status=401)
        vk_asked = request.path.startswith("/api/v2/")
        if found is None or not found.refreshes or found.account.startswith("vk_ads") != vk_asked:
            return web.json_response({"error": "invalid_grant", "error_description": f"about {given}"}, status=400)
        # VK Ads keeps the refresh token unless its support turned on that it changes, too, as it does at Yandex: the
        # harder of both.
        for token in [token for token, each in state.tokens.items() if each.account == found.account]:
            del state.tokens[token]
        life = self._sandbox.token_life
        access, refresh = self._sandbox.tokens(state.accounts[found.account], life)
        seconds = int(life.total_seconds())
        self._sandbox.save()
        return web.json_response(
            {
                "access_token": access,
                "token_type": "bearer",
                "expires_in": str(seconds) if vk_asked else seconds,
                "refresh_token": refresh,
                "scope": "read_ads" if vk_asked else "direct:api metrika:read",
            }
        )

    async def vk(self, request: web.Request) -> web.StreamResponse:
        """VK Ads."""
        token, wanted, spoilt = await self._wanted(request, "Bearer")
        if spoilt is not None:
            return spoilt
        if wanted == "ok":
            return web.json_response({"id": 7, "username": "shop"})
        if wanted:
            status = int(wanted) if wanted.isdigit() else 401
            return _vk_error(_VK_STATUS.get(str(status), "error"), status, token)
        headers = {}
        try:
            account = self._account("vk_ads", token)
            if account.requests is not None:
                if account.requests == 0:
                    return _vk_error("rate_limit", 429, token, {"X-RateLimit-Hourly-Remaining": "0"})
                account.requests -= 1
                headers["X-RateLimit-Hourly-Remaining"] = str(account.requests)
            status, answer = await self._vk(request, account)
        except vk.Invalid as refusal:
            error = {"fields": refusal.fields, "message": f"about {token}", "code": refusal.code}
            return web.json_response({"error": error}, status=400, headers=headers)
        except Refusal as refusal:
            return _vk_error(refusal.code, refusal.status, f"{refusal} {token}", headers)
        self._sandbox.save()
        if answer is None:
            return web.Response(status=status, headers=headers)
        return web.json_response(answer, status=status, headers={"X-RateLimit-RPS-Remaining": "9", **headers})

    async def _vk(self, request: web.Request, account: Account) -> tuple[int, dict[str, Any] | None]:
        sandbox, path = self._sandbox, request.path.removeprefix("/api/v2/")
        for campaign in account.campaigns.values():
            sandbox.settle(campaign)
        number = int(request.match_info.get("number", "0"))
        match request.method, path:
            case "GET", "user.json":
                return 200, {"id": 7, "username": account.name}
            case "GET", "ad_plans.json":
                return 200, vk.listed(account, request.query)
            case "POST", "ad_plans.json":
                return 200, vk.create(sandbox, account, await request.json())
            case "POST", "ad_plans/mass_action.json":
                vk.mass(sandbox, account, await request.json())
                return 204, None
            case "GET", "statistics/ad_plans/day.json":
                return 200, vk.statistics(sandbox, account, request.query)
            case "GET", _:
                found = vk.listed(account, {**request.query, "_id__in": str(number)})["items"]
                if not found:
                    raise Refusal("not_found", 404)
                return 200, found[0]
            case _:
                vk.change(sandbox, account, number, await request.json())
                return 204, None

    async def metrika(self, request: web.Request) -> web.StreamResponse:
        """Yandex Metrika."""
        token, wanted, spoilt = await self._wanted(request, "OAuth")
        if spoilt is not None:
            return spoilt
        asked = request.match_info.get("counter") or request.query.get("ids", "")
        if wanted == "ok":
            return web.json_response({"counter": {"id": int(asked)}})
        if wanted:
            return _metrika_error(*_METRIKA_ERRORS[wanted], token)
        try:
            account = self._account("yandex_metrika", token)
            if account.name != asked:
                raise Refusal("access_denied", 403)
            if request.path.startswith("/stat/"):
                answer = metrika.data(self._sandbox, account, request.query)
            else:
                answer = metrika.goals(account) if request.path.endswith("/goals") else metrika.counter(account)
        except Refusal as refusal:
            if refusal.status == 401:
                return _metrika_error(*_METRIKA_ERRORS["unknown"], token)
            return _metrika_error(refusal.code, refusal.status, token)
        return web.json_response(answer)

    async def state(self, _: web.Request) -> web.StreamResponse:
        """What there is."""
        return web.json_response(self._sandbox.summary())

    async def control(self, request: web.Request) -> web.StreamResponse:
        """Does something to the sandbox."""
        name = request.match_info["control"]
        try:
            answer = self._sandbox.control(name, await request.read())
        except (KeyError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(answer)

    async def elsewhere(self, _: web.Request) -> web.StreamResponse:
        """Where nobody should come: a redirect leads here."""
        return web.json_response({"id": 7, "result": {}, "counter": {}})


def _platform(path: str) -> str:
    if path.startswith("/json/"):
        return "yandex_direct"
    return "vk_ads" if path.startswith("/api/") else "yandex_metrika"


async def _spoilt(request: web.Request, how: str) -> web.StreamResponse:
    """A misdeed that all platforms have in common."""
    match how:
        case "redirect":
            return web.Response(status=302, headers={"Location": "/elsewhere"})
        case "huge":
            return web.Response(body=b"[" + b" " * _HUGE_BYTES + b"]", content_type="application/json")
        case "slow":
            await asyncio.sleep(_SLOW_SECONDS)
            return web.json_response({})
        case "garbage":
            return web.Response(text="<html>maintenance</html>", content_type="text/html")
        case "length":
            return await _raw(request, b'{"result": {"Clients": []}, "items": [], "data": []}', 20)
        case _:
            return await _raw(request, b'{"result": ', 1_000)


async def _raw(request: web.Request, body: bytes, length: int) -> web.StreamResponse:
    """An answer whose length is not what it says; then the connection is cut."""
    response = web.StreamResponse(headers={"Connection": "close"})
    transport = request.transport
    assert transport is not None
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    transport.write(head.encode() + body)
    transport.close()
    return response


def _direct_error(code: str, status: int, token: str, headers: dict[str, str]) -> web.StreamResponse:
    error = {"request_id": "1", "error_string": "error", "error_detail": f"about {token}"}
    number = int(code)
    # The API gives the code as a number in some services and as text in others.
    body = {"error": {**error, "error_code": number if number % 2 else code}}
    return web.json_response(body, status=status, headers=headers)


def _vk_error(code: str, status: int, about: str, headers: dict[str, str] | None = None) -> web.StreamResponse:
    error = {"code": code, "message": f"about {about}"}
    if status != 401:
        return web.json_response({"error": error}, status=status, headers=headers)
    # Refusals of a token are the error itself, others hold it.
    why = f'Bearer realm="api", error="{code}", error_description="about the token"'
    return web.json_response(error, status=status, headers={**(headers or {}), "WWW-Authenticate": why})


def _metrika_error(kind: str, status: int, token: str) -> web.StreamResponse:
    errors = [{"error_type": kind, "message": f"about {token}", "location": "query"}]
    return web.json_response({"errors": errors, "code": status, "message": f"about {token}"}, status=status)
