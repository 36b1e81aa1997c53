"""What a platform says of campaigns, and what follows from it: for synchronisation, which alone calls this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from server.campaigns import convert, lifecycle
from server.platforms.interface import Amount, PlatformCampaign, State
from server.rpc.auditing import SYSTEM, as_callback, recorder
from server.rpc.call import AuditEntry
from storage.postgres import audit, campaigns, media_plans, projects
from storage.postgres.audit import Cause, Record
from storage.postgres.campaigns import Campaign
from storage.postgres.database import Transaction
from storage.scope import EVERYTHING

_MOST_REASONS: Final = 20
_LONGEST_TEXT: Final = 500
# What counts as news. The rest, such as when it was seen, differs with every look.
_NEWS = ("state", "moderation", "payment")


async def record_observed(
    tx: Transaction,
    integration_id: UUID,
    seen: Sequence[PlatformCampaign],
    at: datetime,
    *,
    gone: Sequence[str] = (),
    announce: Callable[[], None] | None = None,
) -> list[Campaign]:
    """Writes what a platform said of an account's campaigns, and takes those a step on that waited for it.

    Of a campaign that waits for moderation, acceptance makes an active one (unless something is missing for that: then
    it waits on, and the next sync asks again), and rejection a draft that keeps the reason. Nothing else that a
    platform says changes what we want. Steps, and news of state, moderation and payment, are recorded with the platform
    as their cause. Campaigns that are not linked here are passed over, and so are readings older than the last one.

    Args:
        tx: Where to run it.
        integration_id: The account.
        seen: Its campaigns, as the platform has them.
        at: When the platform was asked.
        gone: External ids that are not there any more.
        announce: Told after the commit that there are new records.

    Returns:
        The campaigns that are linked here, as they are now.

    Raises:
        Archived: A campaign to be taken a step on is of an archived client.
    """
    words = {each.external_id: observed(each, at) for each in seen}
    words |= {external_id: {"state": "gone", "at": at.isoformat()} for external_id in gone if external_id not in words}
    # In the order in which everybody locks: projects, then campaigns.
    waiting = await campaigns.waiting_internal(tx, integration_id, list(words))
    locked = {row.id: row for row in await projects.get_many_for_update(tx, EVERYTHING, waiting)} if waiting else {}
    rows = [
        row
        for row in await campaigns.of_account_internal(tx, integration_id, list(words))
        if row.last_synced_at is None or row.last_synced_at <= at
    ]
    if not rows:
        return []
    lineages = {row.plan_lineage_id for row in rows if row.plan_lineage_id and row.status == "pending_moderation"}
    runnable = await media_plans.runnable(tx, EVERYTHING, sorted(lineages)) if lineages else set()
    moved = {}
    for row in rows:
        project = locked.get(row.project_id)
        if row.status == "pending_moderation" and project is not None:
            step = _follows(row, words[row.external_id or ""], project.status, runnable)
            if step is not None:
                moved[row.id] = step
    stored = await campaigns.record_observed_internal(tx, {row.id: words[row.external_id or ""] for row in rows}, at)
    if moved:
        stored |= await campaigns.move_internal(tx, moved)
    entries = [
        AuditEntry(
            "sync",
            "campaign",
            row.id,
            row.client_id,
            row.project_id,
            convert.campaign(row),
            convert.campaign(stored[row.id]),
        )
        for row in rows
        if row.id in moved or any(row.observed.get(word) != stored[row.id].observed.get(word) for word in _NEWS)
    ]
    if entries:
        records: list[Record] = []

        async def keep(record: Record) -> None:
            records.append(record)

        record = recorder(keep, SYSTEM, cause=Cause("platform", str(integration_id), "the platform reported it"))
        for entry in entries:
            await record(entry)
        await audit.append(tx, *records)
        if announce is not None:
            tx.after_commit(as_callback(announce))
    return list(stored.values())


def _follows(
    row: Campaign, seen: Mapping[str, Any], project_status: str, runnable: set[UUID]
) -> tuple[str, str] | None:
    """The status that a campaign which waits for moderation gets, and the reason of a rejection."""
    match seen.get("moderation"):
        case "rejected":
            return lifecycle.STEPS["reject"][1], "; ".join(seen.get("reasons", ())) or "the platform gave no reason"
        case "accepted" if not lifecycle.missing(row, project_status, runnable):
            return lifecycle.STEPS["activate"][1], ""
        case _:
            return None


def observed(seen: PlatformCampaign, at: datetime) -> dict[str, Any]:
    """What a platform said, as it is stored. What it did not say is left out."""
    words: dict[str, Any] = {
        "state": seen.state.value,
        "moderation": seen.moderation.value,
        "payment": seen.payment.value,
        "reasons": [_text(reason) for reason in seen.reasons[:_MOST_REASONS]],
        "at": at.isoformat(),
        "name": _text(seen.name),
    }
    for name, amount in (("daily_budget", seen.daily_budget), ("total_budget", seen.total_budget)):
        if amount is not None:
            words[name] = _money(amount)
    return {name: value for name, value in words.items() if value not in (State.UNKNOWN.value, [])}


def _text(found: str) -> str:
    """What a platform wrote, as far as it can be stored."""
    return found.replace("\x00", "")[:_LONGEST_TEXT]


def _money(amount: Amount) -> dict[str, Any]:
    return {"currency_code": amount.currency, "micros": amount.micros}
