"""Settings of platforms come through a change without loss, also what this version of the contract does not know."""

from __future__ import annotations

from typing import Any

import pytest

from mrm.campaigns.v1 import campaign_pb2, platform_settings_pb2
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from mrm.common.v1 import platform_pb2
from tests.campaigns.places import get, rub, update
from tests.conftest import Failing, World

YANDEX = platform_settings_pb2.YandexDirectSettings(
    search_strategy=platform_settings_pb2.YANDEX_DIRECT_STRATEGY_AVERAGE_CPA,
    weekly_budget=rub(500),
    negative_keywords=["даром", "free"],
    region_ids=[213, -1],
    counter_ids=[2**40],
)
# Field 3000 as a number, field 3001 as a text: of a contract to come.
NEWER = b"\xc0\xbb\x01\x07" + b"\xca\xbb\x01\x03new"


def settings(**fields: Any) -> platform_settings_pb2.PlatformSettings:
    return platform_settings_pb2.PlatformSettings(**fields)


async def made(world: World, platform: int = platform_pb2.PLATFORM_YANDEX_DIRECT, **fields: Any) -> Any:
    project = await world.project((await world.client()).client_id)
    return await world.campaign(project.project_id, platform=platform, **fields)


async def test_a_newer_callers_fields_survive(world: World) -> None:
    newer = platform_settings_pb2.PlatformSettings.FromString(
        settings(yandex_direct=YANDEX).SerializeToString() + NEWER
    )
    newer.yandex_direct.MergeFromString(NEWER)
    newer.yandex_direct.campaign_type = 77  # type: ignore[assignment]
    campaign = await made(world, settings=newer)
    assert campaign.settings.SerializeToString(deterministic=True) == newer.SerializeToString(deterministic=True)
    assert (await get(world.admin, campaign.campaign_id)).settings == newer
    # One who changes another part takes nothing away.
    changed = await update(world.admin, campaign.campaign_id, display_name="Other")
    assert changed.settings == newer
    request = pb.UpdateCampaignRequest(
        campaign=campaign_pb2.Campaign(
            campaign_id=campaign.campaign_id,
            settings=settings(yandex_direct=platform_settings_pb2.YandexDirectSettings(time_zone="Europe/Moscow")),
        ),
        update_mask={"paths": ["settings.yandex_direct.time_zone"]},  # type: ignore[arg-type]
    )
    changed = (await world.admin.campaigns.UpdateCampaign(request, metadata=world.admin.auth)).campaign
    newer.yandex_direct.time_zone = "Europe/Moscow"
    assert changed.settings == newer
    assert changed.settings.yandex_direct.campaign_type == 77


async def test_a_newer_servers_keys_survive(world: World) -> None:
    campaign = await made(world, settings=settings(yandex_direct=YANDEX))
    await world.database.execute(
        """UPDATE campaigns SET settings = jsonb_set(settings, '{yandex_direct,autotargeting}', '{"exact": true}')
           || '{"budget_groups": [1, 2]}' WHERE id = $1::text::uuid""",
        campaign.campaign_id,
    )
    read = await get(world.admin, campaign.campaign_id)
    assert read.settings == campaign.settings
    read.settings.yandex_direct.region_ids[:] = [2]
    await update(world.admin, campaign.campaign_id, settings=read.settings)
    stored = await world.database.fetchval(
        "SELECT settings FROM campaigns WHERE id = $1::text::uuid", campaign.campaign_id
    )
    assert stored["yandex_direct"]["autotargeting"] == {"exact": True}
    assert stored["budget_groups"] == [1, 2]
    assert stored["yandex_direct"]["region_ids"] == ["2"]
    cleared = await update(world.admin, campaign.campaign_id, settings=None)
    assert not cleared.HasField("settings")


@pytest.mark.parametrize(
    ("fields", "broken"),
    [
        ({"settings": settings(vk_ads={"package_id": 5})}, "campaign.settings"),
        (
            {"settings": settings(yandex_direct={"target_price": {"currency_code": "USD", "micros": 1}})},
            "campaign.settings.yandex_direct.target_price.currency_code",
        ),
        ({"settings": settings(yandex_direct={"counter_ids": [0]})}, "campaign.settings.yandex_direct.counter_ids[0]"),
        (
            {"settings": settings(yandex_direct={"negative_keywords": [""]})},
            "campaign.settings.yandex_direct.negative_keywords[0]",
        ),
        ({"configuration": {"text": "x" * 70_000}}, "campaign.configuration"),
    ],
    ids=["platform", "currency", "counter", "keyword", "size"],
)
async def test_bad_settings_are_named(world: World, failing: Failing, fields: dict[str, Any], broken: str) -> None:
    assert broken in (await failing(made(world, **fields))).fields


async def test_each_platform_has_its_own(world: World) -> None:
    vk = settings(vk_ads={"objective": "appinstalls", "package_id": 960, "max_price": rub(3)})
    assert (await made(world, platform_pb2.PLATFORM_VK_ADS, settings=vk)).settings == vk
    other = settings(other={"source": "tracker", "landing_url": "https://example.com"})
    assert (await made(world, platform_pb2.PLATFORM_OTHER, settings=other)).settings == other
