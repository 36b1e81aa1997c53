"""Bar: planners who edit and decide on the same plans at the same time never bring one into an illegal state."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import grpc
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.conftest import Caller, World
from tests.planning import plans
from tests.planning.plans import UNIT, Office, change, channel, create, rub, step, version

pytestmark = pytest.mark.bar_d
FULL = os.environ.get("MRM_BARS") == "full"
CLIENTS = 50 if FULL else 6
# The first example that hypothesis tries is always the simplest, in which little happens.
EXAMPLES, ROUNDS = (10, 20) if FULL else (4, 8)
BUDGET = 10 * UNIT
VERBS = (
    "submit", "change", "version", "create", "approve", "override", "reject", "recall", "activate", "complete",
    "delete", "bind", "grow",
)  # fmt: skip
# Some are what the next step of a plan needs more often than the others.
WEIGHTED = (*VERBS, "change", "version", "submit", "submit", "approve", "approve", "approve", "activate", "activate")
REFUSALS = {
    grpc.StatusCode[name]
    for name in ("FAILED_PRECONDITION", "ABORTED", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED")
}

# What must hold whatever happened; each returns rows only where it does not.
INVARIANTS = {
    "one version of a lineage runs": """
SELECT lineage_id FROM media_plans WHERE project_id = $1 AND status = 'active' GROUP BY 1 HAVING count(*) > 1""",
    "one version of a lineage is open": """
SELECT lineage_id FROM media_plans WHERE project_id = $1 AND status IN ('draft', 'pending_approval')
GROUP BY 1 HAVING count(*) > 1""",
    "nobody approved their own": """
SELECT id FROM media_plans WHERE project_id = $1 AND (approved_by = created_by OR approved_by = ANY (author_ids)
  OR approved_by = submitted_by)""",
    "an approver decided on what is approved": """
SELECT id FROM media_plans m WHERE project_id = $1 AND status IN ('approved', 'active', 'completed') AND (
  approved_by IS NULL OR 1 <> (SELECT count(*) FROM media_plan_decisions d
    WHERE d.media_plan_id = m.id AND d.kind = 'approve' AND d.decided_by = m.approved_by))""",
    "channels cost what the plan does": """
SELECT id FROM media_plans m WHERE project_id = $1 AND total_budget * 1000000 <> (
  SELECT COALESCE(sum((c->>'budget')::numeric), 0) FROM jsonb_array_elements(channels) c)""",
    "campaigns stay within the channels of what is approved": """
SELECT m.id FROM media_plans m JOIN campaigns c ON c.plan_lineage_id = m.lineage_id
JOIN LATERAL jsonb_array_elements(m.channels) e ON (e->>'channel_id')::uuid = c.plan_channel_id
WHERE m.project_id = $1 AND m.status = 'active' GROUP BY m.id, e
HAVING sum(c.budget_total) * 1000000 > (e->>'budget')::numeric""",
    "what runs has the channels of all campaigns": """
SELECT m.id FROM media_plans m JOIN campaigns c ON c.plan_lineage_id = m.lineage_id
WHERE m.project_id = $1 AND m.status = 'active' AND NOT m.channels @> jsonb_build_array(
  jsonb_build_object('channel_id', c.plan_channel_id)) AND NOT EXISTS (
    SELECT FROM media_plans n WHERE n.lineage_id = m.lineage_id AND n.version > m.version)""",
}
# What the approved plans may cost at most, and whether that was ever overridden.
SUMS = """
SELECT COALESCE(sum(dearest), 0), bool_or(overridden) FROM (
  SELECT max(total_budget) FILTER (
      WHERE status = 'active' OR status = 'approved' AND version > COALESCE(ran, 0)) dearest,
    bool_or(override_reason <> '') overridden
  FROM (SELECT m.*, max(version) FILTER (WHERE status IN ('active', 'completed')) OVER (PARTITION BY lineage_id) ran
        FROM media_plans m WHERE project_id = $1) v GROUP BY lineage_id) lineages"""
FROZEN = """
SELECT id, md5(row(name, version, total_budget, currency, channels, targeting, author_ids, submitted_by, approved_by,
  approved_at, override_reason)::text) FROM media_plans
WHERE project_id = $1 AND status IN ('approved', 'active', 'completed')"""


@dataclass
class Scene:
    """The project that all act on."""

    world: World
    where: Office
    callers: list[Caller]
    frozen: dict[UUID, str] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)

    @classmethod
    async def made(cls, world: World) -> Scene:
        where = await plans.office(world, BUDGET)
        people = [where.author, where.accountable, world.admin, where.colleague]
        people += [await world.user("pm", where.client_id) for _ in range(2)]
        scene = cls(world, where, [people[number % len(people)] for number in range(CLIENTS)])
        for micros in (2, 3):
            await create(where.author, where.project_id, micros * UNIT, UNIT)
        return scene

    async def act(self, number: int, verb: str, choice: int, micros: int) -> None:
        """One client does one thing to one of the plans; whatever it is told must be an answer that helps."""
        caller = self.callers[number]
        rows = await self.world.database.fetch(
            "SELECT id, lineage_id, channels->0->>'channel_id' FROM media_plans WHERE project_id = $1 ORDER BY id",
            UUID(self.where.project_id),
        )
        if not rows:
            verb = "create"
        try:
            await self._call(caller, verb, rows[-1 - choice % len(rows)] if rows else None, micros)
        except grpc.aio.AioRpcError as error:
            if error.code() not in REFUSALS:
                raise
            return
        self.outcomes[verb] = self.outcomes.get(verb, 0) + 1

    async def _call(self, caller: Caller, verb: str, row: Any, micros: int) -> None:
        project_id = self.where.project_id
        if verb == "create":
            await create(caller, project_id, micros, UNIT)
            return
        plan_id, lineage_id, channel_id = str(row[0]), str(row[1]), row[2]
        bond = {"media_plan_lineage_id": lineage_id, "plan_channel_id": channel_id}
        match verb:
            case "change":
                parts = [channel(micros, channel_id or ""), channel(1)]
                await change(caller, plan_id, channels=parts, total_budget=None)
            case "grow":
                await change(caller, plan_id, total_budget=rub(micros))
            case "version":
                await version(caller, plan_id)
            case "override":
                await step(caller, "approve", plan_id, override_reason="now and then" if micros % 5 == 0 else "")
            case "bind":
                await self.world.campaign(project_id, total_budget=rub(micros // 4), **bond)
            case _:
                await step(caller, verb, plan_id)

    async def together(self, actions: list[tuple[int, str, int, int]]) -> None:
        await asyncio.gather(*(self.act(*action) for action in actions))

    async def check(self) -> None:
        database, project_id = self.world.database, UUID(self.where.project_id)
        for name, statement in INVARIANTS.items():
            assert await database.fetch(statement, project_id) == [], name
        spent, overridden = await database.fetchrow(SUMS, project_id)
        assert overridden or spent * UNIT <= BUDGET
        now = {row[0]: row[1] for row in await database.fetch(FROZEN, project_id)}
        assert self.frozen.items() <= now.items(), "an approved version changed or is gone"
        self.frozen = now


@pytest.mark.timeout(1800)
async def test_no_interleaving_reaches_an_illegal_state(world: World) -> None:
    loop = asyncio.get_running_loop()
    outcomes: dict[str, int] = {}

    def wait(call: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(call, loop).result(300)

    class Planners(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.scene: Scene = wait(Scene.made(world))

        @rule(
            actions=st.lists(
                st.tuples(
                    st.integers(0, CLIENTS - 1),
                    st.sampled_from(WEIGHTED),
                    st.integers(0, 3),
                    st.integers(1, 6 * UNIT),
                ),
                min_size=CLIENTS,
                max_size=CLIENTS,
            )
        )
        def act(self, actions: list[tuple[int, str, int, int]]) -> None:
            wait(self.scene.together(actions))

        @invariant()
        def nothing_is_illegal(self) -> None:
            wait(self.scene.check())

        def teardown(self) -> None:
            for verb, count in self.scene.outcomes.items():
                outcomes[verb] = outcomes.get(verb, 0) + count

    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=ROUNDS,
        deadline=None,
        database=None,
        # An interleaving does not come again: a failure is not worth shrinking.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    await asyncio.to_thread(run_state_machine_as_test, Planners, settings=chosen)
    print("succeeded", outcomes)
    if FULL:
        assert outcomes.keys() >= set(VERBS) - {"grow"}, "some steps were never legal"
