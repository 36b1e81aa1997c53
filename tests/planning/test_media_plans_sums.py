"""Sums of budgets, against whole numbers, over many plans; and plans as large as they get."""

from __future__ import annotations

import os
import random
import time
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from mrm.planning.v1 import media_plan_service_pb2 as pb
from server import budgets
from server.rpc.errors import FailedPrecondition
from storage.postgres.ids import new_id
from tests.conftest import World
from tests.planning import plans
from tests.planning.plans import channel, create

pytestmark = pytest.mark.bar_d
FULL = os.environ.get("MRM_BARS") == "full"
PLANS = 10**6 if FULL else 10**4
# In seconds; see the policies of GetMediaPlan and ListMediaPlans.
READ_DEADLINE, LIST_DEADLINE = 3.0, 5.0
_ID = UUID(int=1)


def refused(error: FailedPrecondition, rule: str, spent: int, limit: int) -> bool:
    """Whether a refusal tells the truth, to the millionth."""
    told = {name: Decimal(error.metadata[name]) * 10**6 for name in ("sum", "limit", "difference")}
    assert told == {"sum": spent, "limit": limit, "difference": spent - limit}
    assert error.metadata["rule"] == rule
    assert budgets.text(abs(spent - limit)) in error.message
    return True


def outcome(rule: str, spent: int, limit: int, check: object, *arguments: object) -> bool:
    """Whether a check refuses; if so, its refusal is true."""
    try:
        check(*arguments)  # type: ignore[operator]
    except FailedPrecondition as error:
        return refused(error, rule, spent, limit)
    return False


@pytest.mark.timeout(1200)
def test_sums_are_exact_over_random_plans() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(PLANS):
        # From millionths to the largest amounts, so that nothing but whole numbers could hold the sums.
        parts = [chance.randrange(10 ** chance.randint(1, 17)) for _ in range(chance.randint(1, 6))]
        total = sum(parts)
        off = chance.choice((-1, 0, 0, 1, chance.randint(-(10**6), 10**6)))
        limit = max(total + off, 0)
        assert outcome("channels_equal_plan", total, limit, budgets.check_plan, parts, limit, "RUB") == (total != limit)
        assert outcome("plans_within_project", total, limit, budgets.check_project, parts, limit, "RUB") == (
            total > limit
        )
        shares = [budgets.Share(_ID, "c", "x", micros) for micros in parts]
        assert outcome(
            "campaigns_within_channel", total, limit, budgets.check_campaigns, shares, {"x": limit}, total, "RUB", 1
        ) == (total > limit)


def test_campaigns_of_several_channels_stay_within_the_plan() -> None:
    shares = [budgets.Share(uuid4(), "c", name, 5) for name in "ab"]
    budgets.check_campaigns(shares, {"a": 5, "b": 5}, 10, "RUB", 1)
    with pytest.raises(FailedPrecondition) as caught:
        budgets.check_campaigns(shares, {"a": 5, "b": 5}, 9, "RUB", 1)
    assert refused(caught.value, "campaigns_within_plan", 10, 9)


def test_many_homeless_campaigns_are_named_by_the_first() -> None:
    shares = [budgets.Share(uuid4(), f"c{number}", "gone", 1) for number in range(12)]
    with pytest.raises(FailedPrecondition, match=r"'c0', .* 'c9' and 2 more") as caught:
        budgets.check_campaigns(shares, {}, 0, "RUB", 3)
    assert caught.value.metadata["campaign_ids"].count(",") == 9


def test_a_project_without_a_budget_has_no_limit() -> None:
    budgets.check_project([10**17, 10**17], None, "RUB")


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "0"), (1, "0.000001"), (-1, "-0.000001"), (10**6, "1"), (10 * 10**6, "10"), (1_500_000, "1.5")],
)
def test_amounts_as_texts(micros: int, text: str) -> None:
    assert budgets.text(micros) == text


async def test_two_hundred_channels_in_fifty_versions_are_read_in_time(world: World) -> None:
    where = await plans.office(world, None)
    kpis = [{"metric": metric, "target": "1.5"} for metric in (1, 4, 5, 8)]
    first = await create(
        where.author, where.project_id, channels=[channel(number, kpis=kpis) for number in range(1, 201)]
    )
    # Later versions as if each had been written and decided on, every channel dearer than before.
    await world.database.execute(
        "UPDATE media_plans SET status = 'approved', approved_by = $2, approved_at = now() WHERE id = $1",
        UUID(first.media_plan_id),
        where.accountable.user_id,
    )
    later = [new_id() for _ in range(49)]
    for number, plan_id in enumerate(later, start=2):
        await world.database.execute(
            """INSERT INTO media_plans (id, lineage_id, project_id, name, version, status, total_budget, channels,
                 approved_by, approved_at)
               SELECT $3, lineage_id, project_id, name, $2::int, 'approved', total_budget + 0.0002 * ($2 - 1),
                 (SELECT jsonb_agg(jsonb_set(c, '{budget}', to_jsonb((c->>'budget')::bigint + ($2 - 1) * 1)))
                  FROM jsonb_array_elements(channels) c), approved_by, now()
               FROM media_plans WHERE id = $1""",
            UUID(first.media_plan_id),
            number,
            plan_id,
        )
    author, auth = where.author.plans, where.author.auth
    began = time.monotonic()
    diff = await author.DiffMediaPlans(
        pb.DiffMediaPlansRequest(base_media_plan_id=first.media_plan_id, other_media_plan_id=str(later[-1])),
        metadata=auth,
        timeout=READ_DEADLINE,
    )
    compared = time.monotonic()
    request = pb.ListMediaPlansRequest(filter=pb.MediaPlanFilter(lineage_id=first.lineage_id), page_size=500)
    listed = await author.ListMediaPlans(request, metadata=auth, timeout=LIST_DEADLINE)
    print(f"diff {compared - began:.3f} s, list {time.monotonic() - compared:.3f} s")
    assert len(diff.changed_channels) == 200
    assert all([field.path for field in each.fields] == ["budget"] for each in diff.changed_channels)
    assert diff.total_difference.micros == 200 * 49
    assert [each.version for each in listed.media_plans] == list(range(1, 51))
