"""Alerts: one for each condition however often it is seen, told when it is new, worse, or left alone too long."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.operations.v1 import alert_pb2, change_service_pb2
from mrm.operations.v1 import alert_service_pb2 as pb
from server.alerts import convert
from server.alerts.raising import clear_alerts, raise_alert
from storage.postgres.alerts import Raised, Sighting
from storage.postgres.audit import Cause
from tests.conftest import Failing, World

pytestmark = pytest.mark.bar_e

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
CAUSE = Cause("job", "budget check")


async def sighting(world: World, **fields: object) -> Sighting:
    client = await world.client()
    project = await world.project(client.client_id)
    details = alert_pb2.AlertDetails(budget=alert_pb2.BudgetAlertDetails(threshold_percent=80, pacing="1.2"))
    values = {
        "client_id": UUID(client.client_id),
        "project_id": UUID(project.project_id),
        "kind": "budget_threshold",
        "severity": "warning",
        "dedupe_key": f"threshold:{uuid4()}:80",
        "summary": "80 % spent",
        "details": convert.stored_details(details),
        **fields,
    }
    return Sighting(**values)  # type: ignore[arg-type]


async def see(world: World, seen: Sighting, hours: float) -> Raised | None:
    """Sees it so many hours after noon."""
    async with world.database.transaction("see") as tx:
        at = NOON + timedelta(hours=hours)
        return await raise_alert(tx, seen, cause=CAUSE, settings=world.settings.alerts, at=at)


async def clear(world: World, seen: Sighting, hours: float, keep: tuple[str, ...] = ()) -> list[str]:
    async with world.database.transaction("clear") as tx:
        at = NOON + timedelta(hours=hours)
        return [
            row.dedupe_key for row in await clear_alerts(tx, seen.client_id, [seen.kind], cause=CAUSE, keep=keep, at=at)
        ]


async def act(world: World, verb: str, raised: Raised, **fields: str) -> alert_pb2.Alert:
    if verb == "acknowledge":
        asked = pb.AcknowledgeAlertRequest(alert_id=str(raised.alert.id), **fields)
        return (await world.admin.alerts.AcknowledgeAlert(asked, metadata=world.admin.auth)).alert
    request = pb.ResolveAlertRequest(alert_id=str(raised.alert.id), **fields)
    return (await world.admin.alerts.ResolveAlert(request, metadata=world.admin.auth)).alert


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        pytest.param([("see", 0), ("see", 1), ("see", 23)], [True, False, False], id="seen-again"),
        pytest.param([("see", 0), ("see", 24), ("see", 25), ("see", 48)], [True, True, False, True], id="reminded"),
        pytest.param([("see", 0), ("acknowledge", 0), ("see", 30)], [True, False], id="known"),
        pytest.param([("see", 0), ("worse", 1), ("see", 2)], [True, True, False], id="worse"),
        pytest.param([("see", 0), ("acknowledge", 0), ("worse", 1), ("worse", 25)], [True, True, True], id="opened"),
        pytest.param([("see", 0), ("clear", 1), ("see", 2)], [True, True], id="over-and-back"),
    ],
)  # fmt: skip
async def test_when_people_are_told(world: World, steps: list[tuple[str, int]], told: list[bool]) -> None:
    seen = await sighting(world)
    heard = []
    last: Raised | None = None
    for step, hours in steps:
        match step:
            case "see" | "worse":
                last = await see(world, seen if step == "see" else replace(seen, severity="critical"), hours)
                assert last is not None
                heard.append(last.notify)
            case "clear":
                assert await clear(world, seen, hours) == [seen.dedupe_key]
            case verb:
                assert last is not None
                await act(world, verb, last)
    assert heard == told


async def test_one_alert_counts_its_sightings_and_keeps_its_etag(world: World) -> None:
    seen = await sighting(world)
    first = await see(world, seen, 0)
    again = await see(world, replace(seen, summary="83 % spent"), 1)
    assert first is not None and again is not None and first.alert.id == again.alert.id
    request = pb.ListAlertsRequest(filter=pb.AlertFilter(client_id=str(seen.client_id)))
    [alert] = (await world.admin.alerts.ListAlerts(request, metadata=world.admin.auth)).alerts
    assert (alert.occurrence_count, alert.summary, alert.etag) == (2, "83 % spent", "r1")
    assert alert.details.budget.threshold_percent == 80
    assert alert.last_seen_time.ToDatetime(tzinfo=UTC) == NOON + timedelta(hours=1)


async def test_resolved_by_hand_rests_and_then_is_a_new_one(world: World) -> None:
    seen = await sighting(world)
    hours = (datetime.now(UTC) - NOON).total_seconds() / 3600
    first = await see(world, seen, hours)
    assert first is not None
    assert (await act(world, "resolve", first, comment="known")).status == alert_pb2.ALERT_STATUS_RESOLVED
    assert await see(world, seen, hours + 1) is None
    later = await see(world, seen, hours + 25)
    assert later is not None and later.notify and later.alert.id != first.alert.id


async def test_what_is_still_seen_is_not_cleared(world: World) -> None:
    one = await sighting(world)
    other = replace(one, dedupe_key="other")
    await see(world, one, 0)
    await see(world, other, 0)
    assert await clear(world, one, 1, keep=("other",)) == [one.dedupe_key]
    assert await clear(world, one, 1, keep=("other",)) == []


async def test_states_forbid_and_etags_protect(world: World, failing: Failing) -> None:
    raised = await see(world, await sighting(world), 0)
    assert raised is not None
    assert (await failing(act(world, "acknowledge", raised, etag="r9"))).reason == "ETAG_MISMATCH"
    known = await act(world, "acknowledge", raised, etag="r1", comment="on it")
    assert (known.acknowledger_id, known.comment) == (str(whoami(world)), "on it")
    failure = await failing(act(world, "acknowledge", raised))
    assert (failure.code, failure.metadata["state"]) == (grpc.StatusCode.FAILED_PRECONDITION, "acknowledged")
    await act(world, "resolve", raised)
    failure = await failing(act(world, "resolve", raised))
    assert (failure.code, failure.metadata["state"]) == (grpc.StatusCode.FAILED_PRECONDITION, "resolved")


def whoami(world: World) -> UUID:
    assert world.admin.user_id is not None
    return world.admin.user_id


async def test_the_record_tells_what_the_service_did_and_why(world: World) -> None:
    seen = await sighting(world)
    await see(world, seen, 0)
    await see(world, seen, 1)
    await see(world, replace(seen, severity="critical"), 2)
    await clear(world, seen, 3)
    request = change_service_pb2.ListChangesRequest(
        filter=change_service_pb2.ChangeFilter(client_id=str(seen.client_id), resource_types=["alert"]),
        order=change_service_pb2.CHANGE_ORDER_OLDEST_FIRST,
    )
    changes = (await world.admin.changes.ListChanges(request, metadata=world.admin.auth)).changes
    assert [(change.action, change.cause.cause_id) for change in changes] == [
        ("raise", "budget check"), ("raise", "budget check"), ("resolve", "budget check"),
    ]  # fmt: skip
    status = next(field for field in changes[-1].fields if field.path == "status")
    assert (status.before.string_value, status.after.string_value) == ("ALERT_STATUS_OPEN", "ALERT_STATUS_RESOLVED")


async def test_many_that_see_it_at_once_make_one(world: World) -> None:

    seen = await sighting(world)
    found = await asyncio.gather(*(see(world, seen, 0) for _ in range(8)))
    assert len({raised.alert.id for raised in found if raised}) == 1
    assert sum(raised.notify for raised in found if raised) == 1
