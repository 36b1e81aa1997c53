"""A campaign's life (requirements §11): every step from every state, what is needed on the way, and links."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.campaigns.v1 import campaign_pb2
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from mrm.common.v1 import options_pb2, platform_pb2
from mrm.operations.v1 import change_service_pb2
from server.campaigns import effective
from server.campaigns.convert import CAMPAIGN_STATUSES
from server.campaigns.lifecycle import STEPS
from server.campaigns.observing import record_observed
from server.platforms.interface import Amount, Moderation, Payment, PlatformCampaign, State
from storage.postgres import campaigns
from tests.campaigns.places import STATUSES, Place, get, place, rub, step, update
from tests.conftest import Failing, World


@pytest.mark.parametrize("verb", list(STEPS))
async def test_each_step_leads_from_its_states_alone(world: World, failing: Failing, verb: str) -> None:
    where = await place(world)
    begins, leads = STEPS[verb]
    for status in STATUSES:
        campaign = await where.campaign(status)
        if status in begins:
            taken = await step(world.admin, verb, campaign.campaign_id, etag=campaign.etag)
            assert CAMPAIGN_STATUSES.word(taken.status) == leads
            assert taken.etag != campaign.etag
            assert taken == await get(world.admin, campaign.campaign_id)
        else:
            failure = await failing(step(world.admin, verb, campaign.campaign_id))
            assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATE_FORBIDS")
            assert (failure.metadata["state"], failure.metadata["wanted"]) == (status, leads)
            assert status in failure.message
            assert leads in failure.message
    failure = await failing(step(world.admin, verb, str(uuid4())))
    assert (failure.code, failure.metadata["resource_type"]) == (grpc.StatusCode.NOT_FOUND, "campaign")


@pytest.mark.parametrize(("verb", "status"), [("submit", "draft"), ("resume", "paused")])
async def test_what_an_active_campaign_needs(world: World, failing: Failing, verb: str, status: str) -> None:
    where = await place(world)

    async def missing(campaign: campaign_pb2.Campaign) -> str:
        failure = await failing(step(world.admin, verb, campaign.campaign_id))
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATE_FORBIDS")
        assert failure.metadata["state"] == status
        return failure.metadata["missing"]

    bare = await world.campaign(where.project_id)
    await where.set(bare.campaign_id, status=status)
    assert await missing(bare) == "media_plan,total_budget"
    unlinked = await where.campaign(status, platform=platform_pb2.PLATFORM_VK_ADS)
    assert await missing(unlinked) == "integration"
    linked = await where.campaign(status, linked=True)
    sql = "UPDATE client_integrations SET status = $2 WHERE id = $1"
    await world.database.execute(sql, UUID(where.integration_id), "error")
    assert await missing(linked) == "integration"
    await world.database.execute(sql, UUID(where.integration_id), "connected")
    other = await where.campaign(status)
    await world.database.execute(
        "UPDATE media_plans SET status = 'completed' WHERE lineage_id = $1", UUID(where.lineage_id)
    )
    assert await missing(other) == "media_plan"
    await world.database.execute(
        "UPDATE media_plans SET status = 'active' WHERE lineage_id = $1", UUID(where.lineage_id)
    )
    await world.database.execute("UPDATE projects SET status = 'completed' WHERE id = $1", UUID(where.project_id))
    assert await missing(other) == "project"
    await world.database.execute("UPDATE projects SET status = 'draft' WHERE id = $1", UUID(where.project_id))
    for ready in (linked, other):
        assert (await step(world.admin, verb, ready.campaign_id)).status != ready.status


async def test_what_is_under_way_keeps_what_it_needed(world: World, failing: Failing) -> None:
    where = await place(world)
    for status in ("pending_moderation", "active"):
        campaign = await where.campaign(status)
        failure = await failing(
            update(world.admin, campaign.campaign_id, media_plan_lineage_id="", plan_channel_id="", total_budget=None)
        )
        assert (failure.code, failure.metadata["missing"]) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "media_plan,total_budget",
        )
        assert failure.metadata["state"] == status
    paused = await where.campaign("paused")
    freed = await update(world.admin, paused.campaign_id, media_plan_lineage_id="", plan_channel_id="")
    assert not freed.media_plan_lineage_id


async def test_a_linked_campaign_is_its_platforms_to_decide(world: World, failing: Failing) -> None:
    where = await place(world)
    waiting = await where.campaign("pending_moderation", linked=True)
    for verb in ("activate", "reject"):
        failure = await failing(step(world.admin, verb, waiting.campaign_id))
        assert (failure.code, failure.metadata["decided_by"]) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "yandex_direct",
        )
    by_hand = await where.campaign("pending_moderation")
    failure = await failing(step(world.admin, "reject", by_hand.campaign_id, reason="  "))
    assert failure.fields == {"reason": "REASON_EMPTY"}
    rejected = await step(world.admin, "reject", by_hand.campaign_id, reason="too loud")
    assert (rejected.rejection_reason, rejected.effective_reasons) == (
        "too loud",
        [campaign_pb2.CAMPAIGN_REASON_REJECTED],
    )
    assert (await step(world.admin, "submit", by_hand.campaign_id)).rejection_reason == ""


async def test_an_archived_campaign_costs_nothing_and_comes_back_only_if_it_can_be_paid(
    world: World, failing: Failing
) -> None:
    where = await place(world)
    first = await where.campaign("paused", total_budget=rub(1000))
    await step(world.admin, "archive", first.campaign_id)
    failure = await failing(update(world.admin, first.campaign_id, display_name="x"))
    assert (failure.code, failure.metadata["state"]) == (grpc.StatusCode.FAILED_PRECONDITION, "archived")
    second = await where.campaign(total_budget=rub(1000))
    failure = await failing(step(world.admin, "restore", first.campaign_id))
    assert (failure.reason, failure.metadata["difference"]) == ("BUDGET_MISMATCH", "1000")
    await step(world.admin, "archive", second.campaign_id)
    restored = await step(world.admin, "restore", first.campaign_id)
    assert restored.status == campaign_pb2.CAMPAIGN_STATUS_PAUSED


async def test_whoever_looks_on_takes_no_step(world: World, failing: Failing) -> None:
    where = await place(world)
    campaign = await where.campaign("active")
    analyst = await world.user("analyst", where.client_id)
    assert (await failing(step(analyst, "pause", campaign.campaign_id))).code == grpc.StatusCode.PERMISSION_DENIED
    stranger = await world.user("specialist")
    assert (await failing(step(stranger, "pause", campaign.campaign_id))).code == grpc.StatusCode.NOT_FOUND
    failure = await failing(step(world.admin, "pause", campaign.campaign_id, etag="r0"))
    assert failure.reason == "ETAG_MISMATCH"


async def link(
    world: World, campaign_id: str, integration_id: str, external_id: str
) -> pb.LinkExternalCampaignResponse:
    request = pb.LinkExternalCampaignRequest(
        campaign_id=campaign_id, integration_id=integration_id, external_id=external_id
    )
    return await world.admin.campaigns.LinkExternalCampaign(request, metadata=world.admin.auth)


async def unlink(world: World, campaign_id: str) -> campaign_pb2.Campaign:
    request = pb.UnlinkExternalCampaignRequest(campaign_id=campaign_id)
    return (await world.admin.campaigns.UnlinkExternalCampaign(request, metadata=world.admin.auth)).campaign


async def test_a_campaign_is_linked_once(world: World, failing: Failing) -> None:
    where, elsewhere = await place(world), await place(world)
    yandex = {"platform": platform_pb2.PLATFORM_YANDEX_DIRECT}
    first, second = [await where.campaign(**yandex) for _ in range(2)]
    reply = await link(world, first.campaign_id, where.integration_id, "77")
    assert (reply.campaign.integration_id, reply.campaign.external_id) == (where.integration_id, "77")
    assert not reply.warnings
    assert (await link(world, first.campaign_id, where.integration_id, "77")).campaign == reply.campaign
    failure = await failing(link(world, first.campaign_id, where.integration_id, "78"))
    assert (failure.code, failure.metadata["state"]) == (grpc.StatusCode.FAILED_PRECONDITION, "linked")
    failure = await failing(link(world, second.campaign_id, where.integration_id, "77"))
    assert (failure.code, failure.metadata["constraint"]) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "campaigns_external_key",
    )
    failure = await failing(update(world.admin, first.campaign_id, external_id="79"))
    assert (failure.code, failure.metadata["state"]) == (grpc.StatusCode.FAILED_PRECONDITION, "linked")
    failure = await failing(link(world, second.campaign_id, elsewhere.integration_id, "1"))
    assert failure.fields == {"integration_id": "ACCOUNT_FOREIGN"}
    other = await where.campaign()
    failure = await failing(link(world, other.campaign_id, where.integration_id, "1"))
    assert failure.fields == {"integration_id": "PLATFORM_MISMATCH"}
    failure = await failing(link(world, second.campaign_id, str(uuid4()), "1"))
    assert (failure.code, failure.metadata["resource_type"]) == (grpc.StatusCode.NOT_FOUND, "integration")
    away = await elsewhere.campaign(**yandex)
    reply = await link(world, away.campaign_id, elsewhere.integration_id, "77")
    assert list(reply.warnings) == [pb.LINK_WARNING_TRACKED_ELSEWHERE]
    await where.set(first.campaign_id, status="active")
    failure = await failing(unlink(world, first.campaign_id))
    assert (failure.metadata["state"], failure.metadata["wanted"]) == ("active", "unlinked")
    await where.set(first.campaign_id, status="paused", observed={"state": "running"})
    free = await unlink(world, first.campaign_id)
    assert (free.integration_id, free.external_id, free.HasField("observed")) == ("", "", False)
    assert (await link(world, second.campaign_id, where.integration_id, "77")).campaign.external_id == "77"


async def test_the_account_of_an_agency_above_is_told(world: World) -> None:
    where = await place(world)
    agency = await world.client()
    await world.database.execute("UPDATE clients SET type = 'agency' WHERE id = $1", UUID(agency.client_id))
    await world.database.execute(
        "UPDATE clients SET parent_client_id = $2 WHERE id = $1", UUID(where.client_id), UUID(agency.client_id)
    )
    await world.database.execute(
        "UPDATE client_integrations SET client_id = $2, status = 'error' WHERE id = $1",
        UUID(where.integration_id),
        UUID(agency.client_id),
    )
    campaign = await where.campaign(platform=platform_pb2.PLATFORM_YANDEX_DIRECT)
    reply = await link(world, campaign.campaign_id, where.integration_id, "5")
    assert list(reply.warnings) == [pb.LINK_WARNING_ACCOUNT_OF_AGENCY, pb.LINK_WARNING_ACCOUNT_NOT_CONNECTED]


def seen(external_id: str, **fields: Any) -> PlatformCampaign:
    values: dict[str, Any] = {
        "name": "There",
        "state": State.RUNNING,
        "moderation": Moderation.ACCEPTED,
        "payment": Payment.ALLOWED,
        "reasons": (),
        "daily_budget": None,
        "total_budget": None,
        "start_date": None,
        "end_date": None,
        "updated_at": None,
        **fields,
    }
    return PlatformCampaign(external_id=external_id, **values)


async def observe(
    where: Place, *found: PlatformCampaign, gone: tuple[str, ...] = (), at: datetime | None = None
) -> int:
    async with where.world.database.transaction("observe") as tx:
        moment = at or datetime.now(UTC)
        return len(await record_observed(tx, UUID(where.integration_id), found, moment, gone=gone))


async def test_what_the_platform_reports_leads_on_what_waits_for_it(world: World) -> None:
    where = await place(world)
    made = {
        name: await where.campaign(status, linked=True)
        for name, status in (
            ("accepted", "pending_moderation"),
            ("rejected", "pending_moderation"),
            ("waiting", "pending_moderation"),
            ("drafted", "draft"),
            ("halted", "active"),
            ("gone", "active"),
        )
    }
    external = {name: campaign.external_id for name, campaign in made.items()}
    rejected = {"moderation": Moderation.REJECTED, "state": State.OFF, "reasons": ("bad image", "no licence")}
    count = await observe(
        where,
        seen(external["accepted"], daily_budget=Amount(Decimal("300.5"), "RUB", True)),
        seen(external["rejected"], **rejected),
        seen(external["waiting"], moderation=Moderation.PENDING, state=State.OFF),
        seen(external["drafted"]),
        seen(external["halted"], state=State.SUSPENDED, payment=Payment.DISALLOWED),
        seen("of nobody here"),
        gone=(external["gone"],),
    )
    assert count == len(made)
    now = {name: await get(world.admin, campaign.campaign_id) for name, campaign in made.items()}
    words = {name: CAMPAIGN_STATUSES.word(campaign.status) for name, campaign in now.items()}
    assert words == {
        "accepted": "active",
        "rejected": "draft",
        "waiting": "pending_moderation",
        "drafted": "draft",
        "halted": "active",
        "gone": "active",
    }
    assert now["accepted"].effective_status == campaign_pb2.CAMPAIGN_EFFECTIVE_STATUS_RUNNING
    assert now["accepted"].observed.daily_budget.micros == 300_500_000
    assert now["accepted"].observed.display_name == "There"
    assert now["rejected"].rejection_reason == "bad image; no licence"
    assert list(now["rejected"].observed.reasons) == ["bad image", "no licence"]
    assert now["waiting"].effective_reasons[-1] == campaign_pb2.CAMPAIGN_REASON_IN_MODERATION
    assert set(now["halted"].effective_reasons) == {
        campaign_pb2.CAMPAIGN_REASON_PAUSED_ON_PLATFORM,
        campaign_pb2.CAMPAIGN_REASON_OUT_OF_FUNDS,
    }
    assert now["halted"].effective_status == campaign_pb2.CAMPAIGN_EFFECTIVE_STATUS_STOPPED
    assert now["halted"].etag == made["halted"].etag, "what a platform says is no edit"
    assert list(now["gone"].effective_reasons) == [campaign_pb2.CAMPAIGN_REASON_GONE_ON_PLATFORM]

    changes = change_service_pb2.ListChangesRequest()
    changes.filter.resource_id = made["rejected"].campaign_id
    listed = await world.admin.changes.ListChanges(changes, metadata=world.admin.auth)
    newest = max(listed.changes, key=lambda change: change.change_time.ToDatetime())
    assert newest.action == "sync"
    assert newest.cause.cause_id == where.integration_id

    # An older reading changes nothing, and the same one records nothing.
    assert await observe(where, seen(external["halted"]), at=datetime.now(UTC) - timedelta(hours=1)) == 0
    counted = "SELECT count(*) FROM audit_log WHERE resource_id = $1"
    before = await world.database.fetchval(counted, made["halted"].campaign_id)
    await observe(where, seen(external["halted"], state=State.SUSPENDED, payment=Payment.DISALLOWED))
    assert await world.database.fetchval(counted, made["halted"].campaign_id) == before


async def test_acceptance_waits_for_what_is_missing(world: World) -> None:
    where = await place(world)
    campaign = await where.campaign("pending_moderation", linked=True)
    plan = "UPDATE media_plans SET status = $2 WHERE lineage_id = $1"
    await world.database.execute(plan, UUID(where.lineage_id), "completed")
    await observe(where, seen(campaign.external_id))
    assert (await get(world.admin, campaign.campaign_id)).status == campaign_pb2.CAMPAIGN_STATUS_PENDING_MODERATION
    await world.database.execute(plan, UUID(where.lineage_id), "active")
    await observe(where, seen(campaign.external_id))
    assert (await get(world.admin, campaign.campaign_id)).status == campaign_pb2.CAMPAIGN_STATUS_ACTIVE


_LINKED = {"platform": "vk_ads", "integration_id": uuid4(), "external_id": "1", "integration_status": "connected"}
_SEEN = {"state": "running", "moderation": "accepted", "payment": "allowed"}


@pytest.mark.parametrize(
    ("columns", "status", "reasons"),
    [
        ({"status": "draft"}, "draft", []),
        ({"status": "active"}, "running", []),
        ({"status": "active", "platform": "vk_ads"}, "stopped", ["not_linked"]),
        ({"status": "active", **_LINKED}, "unknown", ["not_synced"]),
        ({"status": "active", **_LINKED, "observed": _SEEN}, "running", []),
        (
            {"status": "active", **_LINKED, "observed": _SEEN, "budget_total": Decimal(5), "budget_spent": Decimal(5)},
            "running",
            ["budget_spent"],
        ),
        ({"status": "active", **_LINKED, "observed": _SEEN | {"payment": "disallowed"}}, "stopped", ["out_of_funds"]),
        ({"status": "active", **_LINKED, "observed": {"state": "ended"}}, "ended", ["ended_on_platform"]),
        ({"status": "active", **_LINKED, "observed": {"state": "archived"}}, "stopped", ["archived_on_platform"]),
        (
            {"status": "active", **_LINKED, "observed": _SEEN, "integration_status": "error"},
            "unknown",
            ["integration_error"],
        ),
        (
            {"status": "active", **_LINKED, "integration_status": "disconnected"},
            "unknown",
            ["integration_disconnected", "not_synced"],
        ),
        (
            {"status": "pending_moderation", **_LINKED, "observed": {"moderation": "pending", "state": "off"}},
            "pending",
            ["paused_on_platform", "in_moderation"],
        ),
        ({"status": "paused", **_LINKED, "observed": _SEEN}, "paused", ["paused_by_us", "running_against_wish"]),
        ({"status": "paused"}, "paused", ["paused_by_us"]),
        ({"status": "archived", **_LINKED, "observed": _SEEN}, "archived", ["running_against_wish"]),
        ({"status": "archived"}, "archived", []),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else value if isinstance(value, str) else "",
)
def test_whether_it_really_runs(columns: dict[str, Any], status: str, reasons: list[str]) -> None:
    fields: dict[str, Any] = {
        "platform": "other",
        "observed": {},
        "budget_total": None,
        "budget_spent": Decimal(),
        "rejection_reason": "",
        "integration_id": None,
        "external_id": None,
        "integration_status": None,
        **columns,
    }
    row = campaigns.Campaign(**{name: fields.get(name) for name in campaigns.Campaign.__dataclass_fields__})  # type: ignore[arg-type]
    found, why = effective.effective(row)
    assert campaign_pb2.CampaignEffectiveStatus.Name(found) == f"CAMPAIGN_EFFECTIVE_STATUS_{status.upper()}"
    assert [campaign_pb2.CampaignReason.Name(each) for each in why] == [
        f"CAMPAIGN_REASON_{reason.upper()}" for reason in reasons
    ]


async def test_a_key_takes_steps_in_its_clients_alone(world: World, failing: Failing) -> None:
    where, elsewhere = await place(world), await place(world)
    key = await world.key([where.client_id], options_pb2.PERMISSION_CAMPAIGNS_WRITE)
    mine, foreign = await where.campaign("active"), await elsewhere.campaign("active")
    assert (await step(key, "pause", mine.campaign_id)).status == campaign_pb2.CAMPAIGN_STATUS_PAUSED
    assert (await failing(step(key, "pause", foreign.campaign_id))).code == grpc.StatusCode.NOT_FOUND
