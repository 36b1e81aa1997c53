"""The job that looks at budgets and has people told: after each synchronisation of a client, and by the clock."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from server.alerts.raising import clear_alerts, raise_alert
from server.jobs.handling import JobContext, Stores
from server.pacing.conditions import KINDS, sightings
from server.pacing.policies import holding
from server.pacing.states import look
from server.statistics.watermark import WatermarkReader
from storage.postgres import budget_policies, budgets, jobs
from storage.postgres.alerts import Sighting
from storage.postgres.audit import Cause
from storage.postgres.database import Transaction
from storage.postgres.jobs import Job
from storage.scope import EVERYTHING

TYPE: Final = "budget_check"
QUEUE: Final = "sync"


class CheckBudgets(BaseModel):
    """Payload of a ``budget_check`` job.

    Attributes:
        client_id: Whose budgets; None makes a job for each client that has a project that runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    client_id: UUID | None = None


async def enqueue_check(tx: Transaction, client_id: UUID) -> None:
    """Has a client's budgets looked at, once however often it is asked for meanwhile."""
    await jobs.enqueue_internal(
        tx,
        type=TYPE,
        queue=QUEUE,
        payload=CheckBudgets(client_id=client_id).model_dump(mode="json"),
        client_id=client_id,
        unique_key=f"{TYPE}:{client_id}",
    )


async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
    """Looks at a client's budgets, or has each client's looked at."""
    client_id = CheckBudgets.model_validate(job.payload).client_id
    if client_id is None:
        clients = await budgets.running_clients_internal(context.stores.database)
        async with context.transaction("check_all_budgets") as tx:
            for each in clients:
                await enqueue_check(tx, each)
        return {"clients": len(clients)}
    seen = await _seen(context.stores, client_id)
    cause = Cause("job", str(job.id), "budget check")
    async with context.transaction("check_budgets") as tx:
        told = 0
        for sighting in seen:
            raised = await raise_alert(tx, sighting, cause=cause, settings=context.stores.settings.alerts)
            told += raised is not None and raised.notify
        over = await clear_alerts(tx, client_id, KINDS, cause=cause, keep=[each.dedupe_key for each in seen])
    return {"seen": len(seen), "told": told, "over": len(over)}


async def _seen(stores: Stores, client_id: UUID) -> list[Sighting]:
    """What needs attention in the projects of a client that run."""
    database = stores.database
    projects = await budgets.projects(database, EVERYTHING, running_of=client_id)
    if not projects:
        return []
    at = await WatermarkReader(database).instant() or datetime.now(UTC)
    found = await look(database, stores.clickhouse, EVERYTHING, projects, at)
    policies = await budget_policies.of_client(database, EVERYTHING, client_id)
    return [
        sighting
        for state in found.states
        if state.level in ("project", "campaign")
        for sighting in sightings(
            state, holding(policies, client_id, state.campaign_id, stores.settings.alerts), client_id, found.now
        )
    ]
