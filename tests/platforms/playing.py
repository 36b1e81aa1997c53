"""Plays documented answers back over a real socket, and holds what is asked and answered against what is documented."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from mrm.accounts.v1.integration_pb2 import (
    IntegrationCredentials,
    VkAdsCredentials,
    YandexDirectCredentials,
    YandexMetrikaCredentials,
)
from server.platforms.interface import Account
from server.settings import PlatformsSettings

FIXTURES = Path(__file__).parent / "fixtures"


@dataclass(frozen=True)
class Fixture:
    """One documented request and its answer; where it is from stands in the file."""

    name: str
    request: Mapping[str, Any]
    response: Mapping[str, Any]
    documented: Mapping[str, Mapping[str, str]]


def fixture(name: str) -> Fixture:
    """A fixture by its path below the folder."""
    found = json.loads((FIXTURES / f"{name}.json").read_text())
    assert found["source"].startswith("https://") and found["taken"], name
    return Fixture(name, found["request"], found["response"], found["documented"])


def names() -> list[str]:
    """All fixtures."""
    return sorted(str(path.relative_to(FIXTURES).with_suffix("")) for path in FIXTURES.rglob("*.json"))


def account(platform: str, access: str = "token-1", refresh: str = "refresh-1", key: str = "key") -> Account:
    """Credentials of a platform."""
    made = {
        "yandex_direct": lambda: IntegrationCredentials(
            yandex_direct=YandexDirectCredentials(oauth_token=access, refresh_token=refresh)
        ),
        "vk_ads": lambda: IntegrationCredentials(vk_ads=VkAdsCredentials(access_token=access, refresh_token=refresh)),
        "yandex_metrika": lambda: IntegrationCredentials(
            yandex_metrika=YandexMetrikaCredentials(oauth_token=access, refresh_token=refresh, counter_id=44147844)
        ),
    }
    return Account(key, made[platform]())


def flat(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf of a JSON value with its path: `a.b[].c`."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from flat(inner, f"{path}[]")
    else:
        yield path, value


def kind(value: object) -> str:
    """What a leaf is, in the words of the fixtures."""
    if value is None:
        return "null"
    for word, types in (("bool", bool), ("int", int), ("number", float), ("str", str), ("list", list)):
        if isinstance(value, types):
            return word
    return "object"


def strangers(value: object, documented: Mapping[str, str]) -> list[str]:
    """Leaves that are not documented, or are something else than that."""
    found = []
    for path, leaf in flat(value):
        words = documented.get(path, "").split("|")
        numbers = {"int", "number"} if "number" in words else set()
        empty = kind(leaf) in ("object", "list") and (not path or any(each.startswith(path) for each in documented))
        if kind(leaf) not in {*words, *numbers} and not empty:
            found.append(f"{path} is {kind(leaf)}, documented as {documented.get(path)}")
    return found


@dataclass
class Player:
    """A server that plays fixtures back, in their order, and remembers what it was asked."""

    url: str = ""
    queue: list[Fixture] = field(default_factory=list)
    asked: list[tuple[web.Request, bytes]] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    def settings(self) -> PlatformsSettings:
        """Settings of connectors that ask here."""
        places = ("yandex_direct_url", "vk_ads_url", "yandex_metrika_url", "yandex_oauth_url")
        ours = {"yandex_client_id": "sandbox", "vk_ads_client_id": "sandbox"}
        return PlatformsSettings.model_validate({**dict.fromkeys(places, self.url), **ours, "timeout": 5})

    async def _play(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked.append((request, body))
        if not self.queue:
            self.strange.append(f"unexpected {request.method} {request.path}")
            return web.Response(status=418)
        played = self.queue.pop(0)
        if (request.method, request.path) != (played.request["method"], played.request["path"]):
            self.strange.append(f"{request.method} {request.path} instead of {played.name}")
        self.strange += [f"no header {name}" for name in played.request["headers"] if name not in request.headers]
        sent: object = dict(request.query)
        if "body" in played.request:
            sent = json.loads(body)
        elif "form" in played.request:
            sent = dict(await request.post())
        if "request" in played.documented:
            self.strange += strangers(sent, played.documented["request"])
        answer = played.response
        text = json.dumps(answer["body"], ensure_ascii=False) if "body" in answer else answer["text"]
        return web.Response(text=text, status=answer["status"], headers=answer["headers"])


@asynccontextmanager
async def playing() -> AsyncIterator[Player]:
    """A player for the length of a block."""
    player = Player()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", player._play)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        player.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield player
    finally:
        await runner.cleanup()
