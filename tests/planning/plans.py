"""What tests of media plans share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from mrm.common.v1 import channel_pb2, money_pb2, platform_pb2, time_pb2
from mrm.planning.v1 import media_plan_pb2
from mrm.planning.v1 import media_plan_service_pb2 as pb
from tests.conftest import Caller, World

UNIT = 10**6
DAYS = {"start_date": "2026-03-01", "end_date": "2026-05-31"}


def rub(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="RUB", micros=micros)


def channel(micros: int, channel_id: str = "", **fields: Any) -> media_plan_pb2.PlanChannel:
    values = {
        "channel_type": channel_pb2.CHANNEL_TYPE_SEARCH,
        "platform": platform_pb2.PLATFORM_YANDEX_DIRECT,
        **fields,
    }
    return media_plan_pb2.PlanChannel(channel_id=channel_id, budget=rub(micros), **values)


def flight(start: str, end: str) -> time_pb2.DateRange:
    return time_pb2.DateRange(start_date=start, end_date=end)


@dataclass(frozen=True)
class Office:
    """A project and the people who plan in it: `author` and `colleague` write, `accountable` decides."""

    client_id: str
    project_id: str
    author: Caller
    colleague: Caller
    accountable: Caller


async def office(world: World, budget: int | None = 1000 * UNIT, **fields: Any) -> Office:
    client = await world.client()
    if budget is not None:
        fields["total_budget"] = rub(budget)
    project = await world.project(client.client_id, **fields)
    author, colleague = [await world.user("media_planner", client.client_id) for _ in range(2)]
    accountable = await world.user("analyst")
    assert accountable.user_id
    await world.database.execute(
        "UPDATE project_team SET user_id = $2 WHERE project_id = $1 AND raci = 'A'",
        UUID(project.project_id),
        accountable.user_id,
    )
    return Office(client.client_id, project.project_id, author, colleague, accountable)


async def create(
    caller: Caller, project_id: str, *budgets: int, channels: list[Any] | None = None, **fields: Any
) -> media_plan_pb2.MediaPlan:
    wanted = media_plan_pb2.MediaPlan(
        project_id=project_id,
        display_name="Plan",
        channels=[channel(micros) for micros in budgets] if channels is None else channels,
        **fields,
    )
    reply = await caller.plans.CreateMediaPlan(pb.CreateMediaPlanRequest(media_plan=wanted), metadata=caller.auth)
    return reply.media_plan


async def get(caller: Caller, plan_id: str) -> media_plan_pb2.MediaPlan:
    reply = await caller.plans.GetMediaPlan(pb.GetMediaPlanRequest(media_plan_id=plan_id), metadata=caller.auth)
    return reply.media_plan


async def change(caller: Caller, plan_id: str, etag: str = "", **fields: Any) -> media_plan_pb2.MediaPlan:
    wanted = media_plan_pb2.MediaPlan(
        media_plan_id=plan_id, etag=etag, **{name: value for name, value in fields.items() if value is not None}
    )
    request = pb.UpdateMediaPlanRequest(media_plan=wanted, update_mask={"paths": list(fields)})  # type: ignore[arg-type]
    return (await caller.plans.UpdateMediaPlan(request, metadata=caller.auth)).media_plan


async def version(caller: Caller, plan_id: str) -> media_plan_pb2.MediaPlan:
    request = pb.CreateMediaPlanVersionRequest(media_plan_id=plan_id)
    return (await caller.plans.CreateMediaPlanVersion(request, metadata=caller.auth)).media_plan


async def step(caller: Caller, verb: str, plan_id: str, **fields: Any) -> Any:
    """Takes a step and returns the whole reply; what needs a comment gets one."""
    name = f"{verb.capitalize()}MediaPlan"
    if verb in ("reject", "recall"):
        fields = {"comment": "because", **fields}
    request = getattr(pb, f"{name}Request")(media_plan_id=plan_id, **fields)
    return await getattr(caller.plans, name)(request, metadata=caller.auth)


async def approved(
    where: Office, plan: media_plan_pb2.MediaPlan, *, active: bool = False, **fields: Any
) -> media_plan_pb2.MediaPlan:
    """Takes a draft to approval, and lets it run."""
    await step(where.author, "submit", plan.media_plan_id)
    reply = await step(where.accountable, "approve", plan.media_plan_id, **fields)
    if active:
        reply = await step(where.author, "activate", plan.media_plan_id)
    return reply.media_plan  # type: ignore[no-any-return]


async def decisions(caller: Caller, plan_id: str, **fields: Any) -> list[media_plan_pb2.MediaPlanDecision]:
    request = pb.ListMediaPlanDecisionsRequest(media_plan_id=plan_id, **fields)
    return list((await caller.plans.ListMediaPlanDecisions(request, metadata=caller.auth)).decisions)


@asynccontextmanager
async def without_seeds(world: World) -> AsyncIterator[None]:
    """Hides benchmarks of no industry, which other tests register and every client falls back on."""
    await world.database.execute("CREATE TABLE hidden_benchmarks AS SELECT * FROM benchmarks WHERE industry = ''")
    await world.database.execute("DELETE FROM benchmarks WHERE industry = ''")
    try:
        yield
    finally:
        await world.database.execute("INSERT INTO benchmarks SELECT * FROM hidden_benchmarks ON CONFLICT DO NOTHING")
        await world.database.execute("DROP TABLE hidden_benchmarks")
