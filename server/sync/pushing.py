"""Tells a platform what we want of its campaigns: what has changed here since it was told last, and nothing else.

So what somebody changes there stays until we want something else; `Campaign.effective_reasons` shows the difference.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final

from server.campaigns import convert
from server.jobs.handling import JobContext
from server.platforms.interface import Action, CampaignConnector, DesiredCampaign, Refused
from server.rpc.auditing import SYSTEM, append_to, recorder
from server.rpc.call import AuditEntry
from server.sync import mapping, running
from server.sync.account import OpenAccount
from storage.errors import Conflict
from storage.postgres import audit, campaign_pushes, campaigns, sync_streams
from storage.postgres.audit import Cause, Record
from storage.postgres.campaign_pushes import Push
from storage.scope import EVERYTHING

# The rest comes with the next job.
_MOST: Final = 1_000
_NO_DAILY: Final = "the platform cannot be told that there is no budget any more"


async def push(
    context: JobContext, account: OpenAccount, connector: CampaignConnector, whole: Callable[[], Awaitable[None]]
) -> Mapping[str, Any]:
    """Tells an account what it has not been told yet; returns how much it took and how much it refused.

    Args:
        context: Whose try it is.
        account: Whom to tell.
        connector: The same.
        whole: Reads all campaigns, before one is created there.
    """
    return await _Pushing(context, account, connector).run(whole)


class _Pushing:
    def __init__(self, context: JobContext, account: OpenAccount, connector: CampaignConnector) -> None:
        self._context = context
        self._account = account
        self._connector = connector
        self._told = 0
        self._refused = 0

    async def run(self, whole: Callable[[], Awaitable[None]]) -> Mapping[str, Any]:
        database, integration_id = self._context.stores.database, self._account.integration.id
        wanted = await campaign_pushes.open_internal(database, integration_id, _MOST)
        if any(each.creates for each in wanted):
            # Only who knows what is there can tell what has come.
            await whole()
        changes: list[Push] = []
        for each in wanted:
            if each.creates:
                await self._create(each)
            elif not running.askable([each.external_id or ""]):
                await self._refuse(each, Refused("there is no such campaign"))
            elif set(each.parts) == {"state"} or await self._update(each):
                changes.append(each)
        await self._turn(changes)
        return {"told": self._told, "refused": self._refused} if wanted else {}

    async def _create(self, push: Push) -> None:
        """Creates a campaign, unless an earlier try did: platforms make a second one without asking."""
        context, integration_id = self._context, self._account.integration.id
        database = context.stores.database
        external_id = ""
        if push.creating_at is not None:
            found = await sync_streams.new_by_name_internal(
                database, integration_id, push.creating_name, push.creating_at
            )
            external_id = found[0] if found else ""
        if not external_id:
            try:
                desired = self._desired(push, None)
                async with context.transaction("sync_creating") as tx:
                    await campaign_pushes.creating_internal(tx, push.campaign_id, push.name)
                external_id = await self._account.ask(lambda account: self._connector.create_campaign(account, desired))
            except Refused as error:
                await self._refuse(push, error)
                return
        async with context.transaction("sync_created") as tx:
            before = await campaigns.get_for_update(tx, EVERYTHING, push.campaign_id)
            try:
                async with tx.savepoint():
                    made = await campaign_pushes.created_internal(tx, push.campaign_id, integration_id, external_id)
            except Conflict:
                made = False
            await campaign_pushes.done_internal(tx, [(push.campaign_id, push.version)])
            after = await campaigns.get_for_update(tx, EVERYTHING, push.campaign_id)
            if made and before is not None and after is not None:
                record = recorder(append_to(tx), SYSTEM, cause=Cause("platform", str(integration_id), "created there"))
                shown = convert.campaign(before), convert.campaign(after)
                await record(AuditEntry("publish", "campaign", after.id, after.client_id, after.project_id, *shown))
        self._told += 1

    async def _update(self, push: Push) -> bool:
        """Changes a campaign; whether nothing was refused."""
        external_id = push.external_id or ""
        if ("daily_budget" in push.parts and push.budget_daily is None) or (
            "total_budget" in push.parts and push.budget_total is None and self._connector.capabilities.total_budgets
        ):
            await self._refuse(push, Refused(_NO_DAILY))
            return False
        try:
            desired = self._desired(push, push.parts)
            if desired == DesiredCampaign():
                return True
            await self._account.ask(lambda account: self._connector.update_campaign(account, external_id, desired))
        except Refused as error:
            await self._refuse(push, error)
            return False
        return True

    async def _turn(self, pushes: Sequence[Push]) -> None:
        """Halts, resumes and puts away, many at once, and notes what was done."""
        turned = [each for each in pushes if "state" in each.parts]
        away = {each.external_id or "" for each in turned if each.observed.get("state") == "archived"}
        wanted = {run: [each.external_id or "" for each in turned if each.run == run] for run in ("on", "off", "away")}
        steps = (
            (Action.UNARCHIVE, [each for each in (*wanted["on"], *wanted["off"]) if each in away]),
            (Action.RESUME, wanted["on"]),
            # What runs cannot be put away.
            (Action.SUSPEND, [*wanted["off"], *(each for each in wanted["away"] if each not in away)]),
            (Action.ARCHIVE, wanted["away"]),
        )
        faults: dict[str, str] = {}
        size = self._connector.capabilities.action_size
        for action, ids in steps:
            left = [each for each in ids if each not in faults]
            for start in range(0, len(left), size):
                part = left[start : start + size]
                errors = await self._account.ask(
                    lambda account, action=action, part=part: self._connector.act(account, action, part)  # type: ignore[misc]
                )
                # A campaign that never ran cannot be halted everywhere, and need not be to be put away.
                if action is not Action.SUSPEND:
                    faults |= {each.external_id: each.text for each in errors}
                else:
                    faults |= {each.external_id: each.text for each in errors if each.external_id in wanted["off"]}
        done = [each for each in pushes if (each.external_id or "") not in faults]
        async with self._context.transaction("sync_told") as tx:
            await campaign_pushes.done_internal(tx, [(each.campaign_id, each.version) for each in done])
            if done:
                await audit.append(tx, *(self._record(each, {"told": [None, list(each.parts)]}) for each in done))
        self._told += len(done)
        for each in pushes:
            if (each.external_id or "") in faults:
                await self._refuse(each, Refused(faults[each.external_id or ""]))

    def _desired(self, push: Push, parts: Collection[str] | None) -> DesiredCampaign:
        """What to tell: these parts, or everything if the campaign is to be created."""
        told = {"name", "daily_budget", "total_budget"} if parts is None else set(parts)
        total = push.budget_total if self._connector.capabilities.total_budgets else None
        return DesiredCampaign(
            name=push.name if "name" in told else None,
            daily_budget=push.budget_daily if "daily_budget" in told else None,
            total_budget=total if "total_budget" in told else None,
            configuration=mapping.written(push.settings, _whole(push.configuration), push.budget_daily, parts),
        )

    async def _refuse(self, push: Push, error: Refused) -> None:
        text = "; ".join(dict.fromkeys([str(error), *(each.text for each in error.errors)]))
        async with self._context.transaction("sync_refused") as tx:
            await campaign_pushes.refused_internal(tx, push.campaign_id, push.version, text)
            await audit.append(tx, self._record(push, {"refused": [None, text]}))
        self._refused += 1

    def _record(self, push: Push, diff: Mapping[str, Any]) -> Record:
        """What became of it, on record."""
        return Record(
            actor_kind="system",
            actor_id=None,
            action="push",
            resource_type="campaign",
            resource_id=push.campaign_id,
            client_id=push.client_id,
            project_id=push.project_id,
            diff=diff,
            cause=Cause("platform", str(self._account.integration.id), "told to the platform"),
        )


def _whole(value: Any) -> Any:
    """Numbers of a Struct, which knows only floats, as the whole ones that they mean."""
    match value:
        case dict():
            return {name: _whole(each) for name, each in value.items()}
        case list():
            return [_whole(each) for each in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
