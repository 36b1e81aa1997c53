"""MediaPlanService over gRPC: versions, decisions, budgets."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.campaigns.v1 import campaign_pb2
from mrm.campaigns.v1 import campaign_service_pb2 as campaigns_pb
from mrm.planning.v1 import media_plan_pb2, project_member_pb2, project_pb2, project_service_pb2
from mrm.planning.v1 import media_plan_service_pb2 as pb
from tests.conftest import Caller, Failing, Failure, World
from tests.planning import plans
from tests.planning.plans import DAYS, UNIT, Office, approved, change, channel, create, flight, get, rub, step, version

pytestmark = pytest.mark.bar_d
STATES = ("draft", "pending_approval", "approved", "active", "completed")
STEPS = {
    "submit": ("draft", "pending_approval"),
    "approve": ("pending_approval", "approved"),
    "reject": ("pending_approval", "draft"),
    "recall": ("pending_approval", "draft"),
    "activate": ("approved", "active"),
    "complete": ("active", "completed"),
}


@pytest.fixture(scope="module")
async def where(world: World) -> Office:
    return await plans.office(world, None)


async def force(world: World, where: Office, plan_id: str, state: str) -> None:
    """Puts a version into a state as if all steps had been taken."""
    decided = state not in ("draft", "pending_approval")
    await world.database.execute(
        "UPDATE media_plans SET status = $2, submitted_by = $3, approved_by = $4, "
        "approved_at = CASE WHEN $4::uuid IS NOT NULL THEN now() END WHERE id = $1",
        UUID(plan_id),
        state,
        None if state == "draft" else where.author.user_id,
        where.accountable.user_id if decided else None,
    )


def named(failure: Failure) -> dict[str, str]:
    """What a refusal says beside the id of its call."""
    return {key: value for key, value in failure.metadata.items() if key != "request_id"}


def word(status: int) -> str:
    return media_plan_pb2.MediaPlanStatus.Name(status).removeprefix("MEDIA_PLAN_STATUS_").lower()  # type: ignore[arg-type]


@pytest.mark.parametrize("state", STATES)
async def test_every_step_from_every_state(world: World, failing: Failing, where: Office, state: str) -> None:
    for verb, (before, after) in STEPS.items():
        plan = await create(where.author, where.project_id, 5)
        await force(world, where, plan.media_plan_id, state)
        caller = where.accountable if verb in ("approve", "reject") else where.colleague
        if state == before:
            reply = await step(caller, verb, plan.media_plan_id)
            assert word(reply.media_plan.status) == after
            [decision] = await plans.decisions(where.author, plan.media_plan_id)
            assert decision.kind == media_plan_pb2.MediaPlanDecisionKind.Value(
                f"MEDIA_PLAN_DECISION_KIND_{verb.upper()}"
            )
            assert decision.decider_id == str(caller.user_id)
            continue
        failure = await failing(step(caller, verb, plan.media_plan_id))
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATE_FORBIDS"), verb
        assert (failure.metadata["state"], failure.metadata["wanted"]) == (state, after)
        assert state in failure.message
        assert after in failure.message
        assert word((await get(where.author, plan.media_plan_id)).status) == state


@pytest.mark.parametrize("state", STATES)
async def test_only_drafts_are_written_and_deleted(world: World, failing: Failing, where: Office, state: str) -> None:
    plan = await create(where.author, where.project_id, 5)
    await force(world, where, plan.media_plan_id, state)
    if state == "draft":
        changed = await change(where.author, plan.media_plan_id, display_name="New")
        assert changed.display_name == "New"
        await step(where.author, "delete", plan.media_plan_id)
        failure = await failing(get(where.author, plan.media_plan_id))
        assert failure.code is grpc.StatusCode.NOT_FOUND
        left = await world.database.fetchval("SELECT count(*) FROM plan_lineages WHERE id = $1", UUID(plan.lineage_id))
        assert left == 0
        return
    for call, wanted in (
        (change(where.author, plan.media_plan_id, display_name="New"), "updated"),
        (step(where.author, "delete", plan.media_plan_id), "deleted"),
    ):
        failure = await failing(call)
        assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
        assert (failure.metadata["state"], failure.metadata["wanted"]) == (state, wanted)
        assert state in failure.message
    assert (await get(where.author, plan.media_plan_id)).display_name == "Plan"


async def test_a_plan_is_stored_as_it_was_given(where: Office) -> None:
    rich = channel(
        3,
        format="240x400",
        flight=flight("2026-03-01", "2026-03-31"),
        kpis=[
            media_plan_pb2.PlanKpi(metric=media_plan_pb2.KPI_METRIC_CTR, target="1.250"),
            media_plan_pb2.PlanKpi(metric=media_plan_pb2.KPI_METRIC_ROMI, target="-3"),
        ],
        extra={"placement": "top"},
    )
    targeting = media_plan_pb2.Targeting(
        geo=["RU", "RU-MOW"],
        ages=[media_plan_pb2.AgeRange(min_years=25, max_years=44), media_plan_pb2.AgeRange(min_years=65)],
        genders=[media_plan_pb2.GENDER_FEMALE],
        interests=["sport"],
        extra={"note": "x"},
    )
    made = await create(where.author, where.project_id, channels=[rich, channel(4)], targeting=targeting)
    assert made == await get(where.author, made.media_plan_id)
    assert (made.version, made.channel_count, made.total_budget) == (1, 2, rub(7))
    assert made.author_ids == [str(where.author.user_id)]
    assert made.targeting == targeting
    kept = made.channels[0]
    assert UUID(kept.channel_id)
    rich.channel_id, rich.kpis[0].target = kept.channel_id, "1.25"
    assert kept == rich


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"channels": [channel(1), channel(1, str(uuid4()))]}, "media_plan.channels[1].channel_id", "CHANNEL_UNKNOWN"),
        ({"channels": [channel(-1)]}, "media_plan.channels[0].budget.micros", "NEGATIVE_AMOUNT"),
        ({"channels": [channel(10**18)]}, "media_plan.channels[0].budget.micros", "AMOUNT_TOO_LARGE"),
        (
            {"channels": [channel(1, flight=flight("2026-02-30", "2026-03-01"))]},
            "media_plan.channels[0].flight.start_date",
            "DATE_INVALID",
        ),
        (
            {"channels": [channel(1), channel(1, flight=flight("2026-02-28", "2026-03-01"))]},
            "media_plan.channels[1].flight",
            "FLIGHT_OUTSIDE_PROJECT",
        ),
        (
            {"channels": [channel(1, flight=flight("2026-05-01", "2026-06-01"))]},
            "media_plan.channels[0].flight",
            "FLIGHT_OUTSIDE_PROJECT",
        ),
        (
            {"channels": [channel(1, kpis=[{"metric": 4, "target": "1"}, {"metric": 4, "target": "2"}])]},
            "media_plan.channels[0].kpis[1].metric",
            "KPI_DUPLICATE",
        ),
        (
            {"channels": [channel(1, kpis=[{"metric": 5, "target": "-1"}])]},
            "media_plan.channels[0].kpis[0].target",
            "KPI_NEGATIVE",
        ),
        ({"channels": [channel(1, extra={"x": "y" * 9000})]}, "media_plan.channels[0].extra", "TOO_LARGE"),
        (
            {"total_budget": {"currency_code": "USD", "micros": 1}},
            "media_plan.total_budget.currency_code",
            "CURRENCY_MISMATCH",
        ),
    ],
)
async def test_refused_plans_name_the_field(
    world: World, failing: Failing, where: Office, fields: dict[str, Any], field: str, reason: str
) -> None:
    project = await world.project(where.client_id, **DAYS)
    failure = await failing(create(where.author, project.project_id, **fields))
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {field: reason})


@pytest.mark.parametrize("off", [-1, 1])
async def test_channels_cost_what_the_plan_does_to_the_millionth(failing: Failing, where: Office, off: int) -> None:
    parts = (333_333, 333_333, 333_334)
    made = await create(where.author, where.project_id, *parts, total_budget=rub(UNIT))
    for call in (
        create(where.author, where.project_id, *parts, total_budget=rub(UNIT + off)),
        change(where.author, made.media_plan_id, total_budget=rub(UNIT + off)),
    ):
        failure = await failing(call)
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BUDGET_MISMATCH")
        assert named(failure) == {
            "rule": "channels_equal_plan",
            "sum": "1",
            "limit": "1.000001" if off == 1 else "0.999999",
            "difference": "-0.000001" if off == 1 else "0.000001",
            "currency_code": "RUB",
        }
        assert "0.000001 RUB" in failure.message


async def test_an_update_is_guarded_by_the_etag_and_keeps_channels(failing: Failing, where: Office) -> None:
    made = await create(where.author, where.project_id, 1, 2)
    kept = made.channels[1]
    changed = await change(
        where.colleague, made.media_plan_id, made.etag, channels=[channel(9), kept], total_budget=None
    )
    assert [each.budget.micros for each in changed.channels] == [9, 2]
    assert changed.channels[1].channel_id == kept.channel_id
    assert changed.channels[0].channel_id not in {each.channel_id for each in made.channels}
    assert changed.total_budget == rub(11)
    assert changed.author_ids == [str(where.author.user_id), str(where.colleague.user_id)]
    failure = await failing(change(where.author, made.media_plan_id, made.etag, display_name="x"))
    assert failure.reason == "ETAG_MISMATCH"
    failure = await failing(change(where.author, made.media_plan_id, channels=[kept, kept], total_budget=None))
    assert failure.fields == {"media_plan.channels[1].channel_id": "CHANNEL_DUPLICATE"}
    failure = await failing(change(where.author, made.media_plan_id, status=1))
    assert failure.fields == {"update_mask": "FIELD_NOT_WRITABLE"}


async def test_versions_go_on_and_are_restored(world: World, failing: Failing) -> None:
    where = await plans.office(world)
    first = await create(where.author, where.project_id, 1, 2)
    failure = await failing(version(where.author, first.media_plan_id))
    assert failure.metadata["state"] == "draft"
    assert failure.metadata["media_plan_id"] == first.media_plan_id
    await approved(where, first, active=True)
    second = await version(where.colleague, first.media_plan_id)
    assert (second.version, second.lineage_id, second.status) == (2, first.lineage_id, 1)
    assert second.channels == first.channels
    assert second.author_ids == [str(where.colleague.user_id)]
    dropped = second.channels[0]
    second = await change(
        where.colleague, second.media_plan_id, channels=[second.channels[1]], total_budget=None, display_name="Less"
    )
    reply = await step(where.colleague, "submit", second.media_plan_id)
    await step(where.accountable, "approve", second.media_plan_id)
    reply = await step(where.author, "activate", second.media_plan_id)
    former = reply.superseded_media_plan
    assert (former.media_plan_id, word(former.status)) == (first.media_plan_id, "completed")
    assert former.superseded_by_id == second.media_plan_id
    # A channel of an earlier version comes back under its own id.
    third = await version(where.author, second.media_plan_id)
    third = await change(where.author, third.media_plan_id, channels=[dropped], total_budget=None)
    assert third.channels[0].channel_id == dropped.channel_id
    await step(where.author, "delete", third.media_plan_id)
    restored = await version(where.author, first.media_plan_id)
    assert (restored.version, list(restored.channels)) == (3, list(first.channels))
    kinds = [
        media_plan_pb2.MediaPlanDecisionKind.Name(each.kind).removeprefix("MEDIA_PLAN_DECISION_KIND_").lower()
        for each in await plans.decisions(where.author, first.media_plan_id, whole_lineage=True)
    ]
    assert kinds == ["submit", "approve", "activate", "submit", "approve", "supersede", "activate"]
    request = pb.ListMediaPlansRequest(filter=pb.MediaPlanFilter(lineage_id=first.lineage_id))
    listed = (await where.author.plans.ListMediaPlans(request, metadata=where.author.auth)).media_plans
    assert [(each.version, each.channel_count, len(each.channels)) for each in listed] == [
        (1, 2, 0),
        (2, 1, 0),
        (3, 2, 0),
    ]


async def test_an_approved_version_that_was_overtaken_stays_what_it_is(world: World, failing: Failing) -> None:
    where = await plans.office(world, 10)
    first = await create(where.author, where.project_id, 8)
    await approved(where, first)
    second = await version(where.author, first.media_plan_id)
    await change(where.author, second.media_plan_id, channels=[channel(3)], total_budget=None)
    await approved(where, second, active=True)
    failure = await failing(step(where.author, "activate", first.media_plan_id))
    assert (failure.metadata["state"], failure.metadata["later_version"]) == ("approved", "2")
    # What can no longer run holds no money.
    await approved(where, await create(where.author, where.project_id, 7))


async def test_nobody_approves_their_own_work(world: World, failing: Failing) -> None:
    where = await plans.office(world)
    admin, chief = world.admin, where.accountable

    async def refused(caller: Caller, plan_id: str, part: str) -> None:
        failure = await failing(step(caller, "approve", plan_id))
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OWN_WORK")
        assert failure.metadata["part"] == part

    begun = await create(admin, where.project_id, 1)
    await step(where.author, "submit", begun.media_plan_id)
    await refused(admin, begun.media_plan_id, "wrote")
    await step(chief, "approve", begun.media_plan_id)

    # An early edit counts also when somebody else has edited since.
    edited = await create(where.author, where.project_id, 1)
    await change(chief, edited.media_plan_id, display_name="Mine")
    await change(where.author, edited.media_plan_id, display_name="Ours")
    await step(where.author, "submit", edited.media_plan_id)
    await refused(chief, edited.media_plan_id, "wrote")
    await step(admin, "approve", edited.media_plan_id)

    sent = await create(where.author, where.project_id, 1)
    await step(chief, "submit", sent.media_plan_id)
    await refused(chief, sent.media_plan_id, "submitted")
    await step(where.author, "recall", sent.media_plan_id)
    await step(where.author, "submit", sent.media_plan_id)
    assert (await step(chief, "approve", sent.media_plan_id)).media_plan.approver_id == str(chief.user_id)


async def test_a_key_stands_for_whoever_made_it(world: World, failing: Failing) -> None:
    from mrm.common.v1 import options_pb2

    where = await plans.office(world)
    key = await world.key([where.client_id], options_pb2.PERMISSION_MEDIA_PLANS_WRITE)
    plan = await create(key, where.project_id, 1)
    assert (plan.creator_id, plan.author_ids) == ("", [str(world.admin.user_id)])
    await step(key, "submit", plan.media_plan_id)
    assert (await failing(step(world.admin, "approve", plan.media_plan_id))).reason == "OWN_WORK"
    await step(where.accountable, "approve", plan.media_plan_id)


async def test_only_the_accountable_and_administrators_decide(world: World, failing: Failing, where: Office) -> None:
    plan = await create(where.author, where.project_id, 1)
    await step(where.author, "submit", plan.media_plan_id)
    for verb in ("approve", "reject"):
        failure = await failing(step(where.colleague, verb, plan.media_plan_id))
        assert (failure.code, failure.metadata["permission"]) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "MEDIA_PLANS_APPROVE",
        )
    stranger = await world.user("media_planner")
    assert (await failing(get(stranger, plan.media_plan_id))).code is grpc.StatusCode.NOT_FOUND
    for verb in ("reject", "recall"):
        caller = where.accountable if verb == "reject" else where.author
        assert list((await failing(step(caller, verb, plan.media_plan_id, comment=""))).fields) == ["comment"]
        assert list((await failing(step(caller, verb, plan.media_plan_id, comment=" "))).fields) == ["comment"]
    await step(where.accountable, "reject", plan.media_plan_id, comment="too dear")
    [_, rejection] = await plans.decisions(where.author, plan.media_plan_id)
    assert (rejection.comment, rejection.decider_id) == ("too dear", str(where.accountable.user_id))


async def test_approved_plans_stay_within_the_project(world: World, failing: Failing) -> None:
    where = await plans.office(world, 10 * UNIT)
    first = await approved(where, await create(where.author, where.project_id, 6 * UNIT))
    second = await create(where.author, where.project_id, 4 * UNIT + 1)
    await step(where.author, "submit", second.media_plan_id)
    for reason in ("", "   "):
        failure = await failing(step(where.accountable, "approve", second.media_plan_id, override_reason=reason))
        assert failure.reason == "BUDGET_MISMATCH"
        assert named(failure) == {
            "rule": "plans_within_project",
            "sum": "10.000001",
            "limit": "10",
            "difference": "0.000001",
            "currency_code": "RUB",
        }
    reply = await step(where.accountable, "approve", second.media_plan_id, override_reason="the client said so")
    assert reply.media_plan.override_reason == "the client said so"
    assert (await plans.decisions(where.author, second.media_plan_id))[-1].override_reason == "the client said so"
    recorded = await world.database.fetchval(
        "SELECT diff->'override_reason' FROM audit_log WHERE resource_id = $1 AND action = 'approve'",
        second.media_plan_id,
    )
    assert recorded == [None, "the client said so"]
    # A new version stands in the place of the one before it, and the dearer of both counts until it runs.
    newer = await version(where.author, first.media_plan_id)
    await change(where.author, newer.media_plan_id, channels=[channel(1 * UNIT)], total_budget=None)
    assert (await failing(approved(where, newer))).metadata["sum"] == "10.000001"
    reply = await step(where.accountable, "approve", newer.media_plan_id, override_reason="less, in fact")
    await step(where.author, "activate", newer.media_plan_id)
    await approved(where, await create(where.author, where.project_id, 5 * UNIT - 1))


async def lower(caller: Caller, project_id: str, micros: int | None) -> None:
    wanted = project_pb2.Project(project_id=project_id, total_budget=None if micros is None else rub(micros))
    request = project_service_pb2.UpdateProjectRequest(project=wanted, update_mask={"paths": ["total_budget"]})  # type: ignore[arg-type]
    await caller.projects.UpdateProject(request, metadata=caller.auth)


async def test_a_project_keeps_what_its_plans_were_promised(world: World, failing: Failing) -> None:
    where = await plans.office(world, 10)
    await approved(where, await create(where.author, where.project_id, 6))
    failure = await failing(lower(world.admin, where.project_id, 5))
    assert (failure.reason, failure.metadata["difference"]) == ("BUDGET_MISMATCH", "0.000001")
    await lower(world.admin, where.project_id, 6)
    await lower(world.admin, where.project_id, None)
    assert (await failing(lower(world.admin, where.project_id, 5))).reason == "BUDGET_MISMATCH"


async def test_flights_are_looked_at_again_when_decided(world: World, failing: Failing) -> None:
    where = await plans.office(world, **DAYS)
    plan = await create(
        where.author, where.project_id, channels=[channel(1, flight=flight("2026-03-01", "2026-05-31"))]
    )
    wanted = project_pb2.Project(project_id=where.project_id, end_date="2026-05-30")
    request = project_service_pb2.UpdateProjectRequest(project=wanted, update_mask={"paths": ["end_date"]})  # type: ignore[arg-type]
    await world.admin.projects.UpdateProject(request, metadata=world.admin.auth)
    failure = await failing(step(where.author, "submit", plan.media_plan_id))
    assert failure.metadata["field"] == "channels[0].flight"
    empty = await create(where.author, where.project_id)
    assert (await failing(step(where.author, "submit", empty.media_plan_id))).metadata["state"] == "empty"


async def campaign(caller: Caller, campaign_id: str, **fields: Any) -> campaign_pb2.Campaign:
    wanted = campaign_pb2.Campaign(campaign_id=campaign_id, **fields)
    request = campaigns_pb.UpdateCampaignRequest(campaign=wanted, update_mask={"paths": list(fields)})  # type: ignore[arg-type]
    return (await caller.campaigns.UpdateCampaign(request, metadata=caller.auth)).campaign


async def test_campaigns_stay_within_their_channel(world: World, failing: Failing) -> None:
    where = await plans.office(world, 100)
    plan = await approved(where, await create(where.author, where.project_id, 10, 20), active=True)
    small, large = (each.channel_id for each in plan.channels)
    bond = {"media_plan_lineage_id": plan.lineage_id, "plan_channel_id": small}
    bound = await world.campaign(where.project_id, total_budget=rub(6), **bond)
    assert (bound.media_plan_lineage_id, bound.plan_channel_id, bound.media_plan_version) == (plan.lineage_id, small, 1)
    failure = await failing(world.campaign(where.project_id, total_budget=rub(5), **bond))
    assert failure.reason == "BUDGET_MISMATCH"
    assert named(failure) == {
        "rule": "campaigns_within_channel",
        "sum": "0.000011",
        "limit": "0.00001",
        "difference": "0.000001",
        "currency_code": "RUB",
        "channel_id": small,
    }
    other = await world.campaign(where.project_id, total_budget=rub(4), **bond)
    assert (await failing(campaign(world.admin, other.campaign_id, total_budget=rub(5)))).reason == "BUDGET_MISMATCH"
    moved = await campaign(world.admin, other.campaign_id, plan_channel_id=large, total_budget=rub(20))
    assert moved.plan_channel_id == large
    free = await campaign(world.admin, other.campaign_id, media_plan_lineage_id="", plan_channel_id="")
    assert (free.media_plan_lineage_id, free.media_plan_version) == ("", 0)
    await campaign(world.admin, other.campaign_id, total_budget=rub(10**9))

    # A version that takes a bound campaign its channel, or its money, is refused.
    newer = await version(where.author, plan.media_plan_id)
    await change(where.author, newer.media_plan_id, channels=[channel(20, large)], total_budget=None)
    failure = await failing(step(where.author, "submit", newer.media_plan_id))
    assert (failure.reason, failure.metadata["campaign_ids"]) == ("STATE_FORBIDS", bound.campaign_id)
    assert bound.display_name in failure.message
    await change(where.author, newer.media_plan_id, channels=[channel(5, small)], total_budget=None)
    assert (await failing(step(where.author, "submit", newer.media_plan_id))).metadata["difference"] == "0.000001"
    await change(where.author, newer.media_plan_id, channels=[channel(7, small)], total_budget=None)
    await approved(where, newer)
    # From its approval on it binds campaigns, beside the version that runs.
    failure = await failing(campaign(world.admin, bound.campaign_id, total_budget=rub(8)))
    assert failure.metadata["limit"] == "0.000007"
    later = await world.campaign(where.project_id, total_budget=rub(20), **{**bond, "plan_channel_id": large})
    failure = await failing(step(where.author, "activate", newer.media_plan_id))
    assert failure.metadata["campaign_ids"] == later.campaign_id
    await world.database.execute("UPDATE campaigns SET status = 'archived' WHERE id = $1", UUID(later.campaign_id))
    await step(where.author, "activate", newer.media_plan_id)
    # Campaigns keep the number of the version they were bound under.
    changed = await campaign(world.admin, bound.campaign_id, total_budget=rub(7))
    assert changed.media_plan_version == 1


async def test_a_bond_is_whole_and_within_the_project(world: World, failing: Failing) -> None:
    where = await plans.office(world, 100)
    plan = await create(where.author, where.project_id, 10)
    bond = {"media_plan_lineage_id": plan.lineage_id, "plan_channel_id": plan.channels[0].channel_id}
    elsewhere = await world.project(where.client_id)
    for project_id, fields, field, reason in (
        (elsewhere.project_id, {**bond, "total_budget": rub(1)}, "media_plan_lineage_id", "PLAN_UNKNOWN"),
        (where.project_id, {**bond, "plan_channel_id": ""}, "plan_channel_id", "PLAN_INCOMPLETE"),
        (where.project_id, {**bond, "media_plan_lineage_id": ""}, "media_plan_lineage_id", "PLAN_INCOMPLETE"),
        (where.project_id, {**bond, "plan_channel_id": str(uuid4())}, "plan_channel_id", "CHANNEL_UNKNOWN"),
        (where.project_id, bond, "total_budget", "BUDGET_MISSING"),
        (where.project_id, {**bond, "currency_code": "USD"}, "currency_code", "CURRENCY_MISMATCH"),
    ):
        failure = await failing(world.campaign(project_id, **fields))
        assert failure.fields == {f"campaign.{field}": reason}
    bound = await world.campaign(where.project_id, total_budget=rub(1), **bond)
    failure = await failing(step(where.author, "delete", plan.media_plan_id))
    assert failure.metadata["campaign_ids"] == bound.campaign_id


async def test_comments_are_for_those_who_work_on_the_project(world: World, failing: Failing, where: Office) -> None:
    plan = await create(where.author, where.project_id, 1)

    async def say(caller: Caller, **fields: Any) -> media_plan_pb2.MediaPlanComment:
        wanted = media_plan_pb2.MediaPlanComment(**{"media_plan_id": plan.media_plan_id, "text": "Hm.", **fields})
        request = pb.CreateMediaPlanCommentRequest(comment=wanted)
        return (await caller.plans.CreateMediaPlanComment(request, metadata=caller.auth)).comment

    consulted, informed = [await world.user("specialist") for _ in range(2)]
    for person, raci in ((consulted, project_member_pb2.RACI_CONSULTED), (informed, project_member_pb2.RACI_INFORMED)):
        assert person.user_id
        await world.member(where.project_id, person.user_id, project_member_pb2.PROJECT_ROLE_ANALYST, raci)
    said = [
        await say(consulted, channel_id=plan.channels[0].channel_id),
        await say(where.author),
        await say(where.accountable),
    ]
    failure = await failing(say(informed))
    assert (failure.code, failure.metadata["permission"]) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "MEDIA_PLANS_COMMENT",
    )
    assert (await failing(say(await world.user("pm")))).code is grpc.StatusCode.NOT_FOUND
    assert (await failing(say(where.author, channel_id=str(uuid4())))).fields == {
        "comment.channel_id": "CHANNEL_UNKNOWN"
    }
    request = pb.ListMediaPlanCommentsRequest(media_plan_id=plan.media_plan_id)
    listed = (await informed.plans.ListMediaPlanComments(request, metadata=informed.auth)).comments
    assert list(listed) == said
    assert said[0].author_id == str(consulted.user_id)


@pytest.mark.parametrize("state", ["completed", "archived"])
async def test_a_project_that_is_over_takes_no_plans(world: World, failing: Failing, state: str) -> None:
    where = await plans.office(world)
    plan = await create(where.author, where.project_id, 1)
    await world.database.execute("UPDATE projects SET status = $2 WHERE id = $1", UUID(where.project_id), state)
    for call in (
        create(where.author, where.project_id, 1),
        change(where.author, plan.media_plan_id, display_name="x"),
        step(where.author, "submit", plan.media_plan_id),
        version(where.author, plan.media_plan_id),
    ):
        assert (await failing(call)).metadata["state"] == state


async def test_a_diff_tells_what_differs(world: World, failing: Failing) -> None:
    where = await plans.office(world)
    kpis = [{"metric": 4, "target": "1"}, {"metric": 5, "target": "2"}]
    first = await create(
        where.author, where.project_id, channels=[channel(1, kpis=kpis), channel(2), channel(3, format="x")]
    )
    await approved(where, first)
    second = await version(where.author, first.media_plan_id)
    changed, gone, same = first.channels
    changed.budget.micros, changed.kpis[0].target, changed.format = 5, "1.5", "240x400"
    await change(
        where.author,
        second.media_plan_id,
        channels=[same, changed, channel(7)],
        total_budget=None,
        targeting=media_plan_pb2.Targeting(geo=["RU"]),
    )
    request = pb.DiffMediaPlansRequest(base_media_plan_id=first.media_plan_id, other_media_plan_id=second.media_plan_id)
    diff = await where.author.plans.DiffMediaPlans(request, metadata=where.author.auth)
    assert (diff.base.version, diff.other.version, diff.total_difference) == (1, 2, rub(9))
    assert [each.path for each in diff.fields] == ["targeting.geo", "total_budget"]
    assert [each.budget.micros for each in diff.added_channels] == [7]
    assert [each.channel_id for each in diff.removed_channels] == [gone.channel_id]
    [only] = diff.changed_channels
    assert (only.base.channel_id, only.budget_difference) == (changed.channel_id, rub(4))
    values = {each.path: (each.before, each.after) for each in only.fields}
    assert list(values) == ["budget", "format", "kpis.ctr"]
    assert [value.string_value for value in values["kpis.ctr"]] == ["1", "1.5"]
    assert not only.fields[1].HasField("before")
    elsewhere = await create(where.author, where.project_id, 1)
    request.other_media_plan_id = elsewhere.media_plan_id
    failure = await failing(where.author.plans.DiffMediaPlans(request, metadata=where.author.auth))
    assert failure.fields == {"other_media_plan_id": "OTHER_LINEAGE"}
