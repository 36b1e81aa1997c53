"""`mrm sandbox`, as a process that connectors ask."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request

import pytest

from server.platforms.interface import AuthFailed, StatisticsQuery
from server.platforms.registry import Platforms
from server.settings import PlatformsSettings
from tests.platforms.playing import account

from .conftest import Mrm


async def test_the_sandbox_opens_accounts_prints_requests_and_keeps_its_state(mrm: Mrm) -> None:
    command = ("sandbox", "--port", "0", "--state", "kept.json", "--campaigns", "2", "--account", "vk_ads:7")
    process = await mrm.start(*command, "--account", "yandex_metrika:44147844")
    assert process.stdout is not None
    lines: list[str] = []

    async def until(pattern: str) -> re.Match[str]:
        assert process.stdout is not None
        while True:
            line = (await process.stdout.readline()).decode()
            assert line, lines
            lines.append(line)
            if found := re.search(pattern, line):
                return found

    try:
        async with asyncio.timeout(60):
            url = (await until(r"serves at (\S+);"))[1]
            token = (await until(r"^vk_ads:7: token ([^,]+),"))[1]
            counter = (await until(r"^yandex_metrika:44147844: token ([^,]+),"))[1]
        settings = dict.fromkeys(("yandex_direct_url", "vk_ads_url", "yandex_metrika_url"), url)
        platforms = Platforms.open(PlatformsSettings.model_validate(settings))
        try:
            vk, metrika = platforms.campaigns("vk_ads"), platforms.analytics("yandex_metrika")
            assert vk is not None and metrika is not None
            found = await vk.list_campaigns(account("vk_ads", token))
            assert len(found.campaigns) == 2
            started = found.campaigns[0].start_date
            assert started is not None
            query = StatisticsQuery(started, started, tagged=True)
            brought = await metrika.outcomes(account("yandex_metrika", counter), query)
            assert {each.external_id for each in brought.rows} <= {each.external_id for each in found.campaigns}
            revoke = urllib.request.Request(f"{url}/sandbox/revoke", json.dumps({"account": "vk_ads:7"}).encode())
            assert json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(revoke).read())) == {"revoked": 2}
            with pytest.raises(AuthFailed):
                await vk.check(account("vk_ads", token))
        finally:
            await platforms.close()
        async with asyncio.timeout(20):
            await until(r"GET +/api/v2/ad_plans.json 200")
            await until(r"GET +/api/v2/user.json 401")
    finally:
        process.terminate()
        await process.wait()
    assert all(f"MRM_PLATFORMS__{name}_URL={url}" in "".join(lines) for name in ("YANDEX_DIRECT", "YANDEX_OAUTH"))
    kept = json.loads((mrm.directory / "kept.json").read_text())
    assert len(kept["accounts"]["vk_ads:7"]["campaigns"]) == 2


async def test_the_sandbox_refuses_what_it_cannot_open(mrm: Mrm) -> None:
    assert "is not platform:name" in (await mrm("sandbox", "--account", "elsewhere:7")).err
    (mrm.directory / "broken.json").write_text("{}x")
    refused = await mrm("sandbox", "--port", "0", "--state", "broken.json")
    assert refused.code == 1 and "holds no state of a sandbox" in refused.err
