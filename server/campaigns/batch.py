"""Changes of many campaigns at once, in a number of statements that does not grow with theirs.

A single RPC is a batch of one, so that both follow the same rules. Locks are taken in one order: projects by id, then
campaigns by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from google.protobuf.field_mask_pb2 import FieldMask

from mrm.campaigns.v1 import campaign_pb2
from server.campaigns import convert, lifecycle
from server.campaigns.plan_binding import Place, PlanBook, Wanted, place_of
from server.campaigns.turns import in_turns
from server.rpc import rights
from server.rpc.call import AuditEntry, Mutation
from server.rpc.errors import Aborted, AlreadyExists, DomainError, FailedPrecondition, NotFound
from server.rpc.validation import validate
from server.rpc.values import apply_mask, check_etag, optional_id
from server.sync.making import push_soon
from storage.postgres import campaigns, clients, media_plans, outbox, projects
from storage.postgres.campaigns import Campaign
from storage.postgres.ids import new_id
from storage.postgres.projects import Project

WRITABLE: Final = frozenset(
    {
        "display_name",
        "daily_budget",
        "total_budget",
        "external_id",
        "configuration",
        "settings",
        "media_plan_lineage_id",
        "plan_channel_id",
    }
)
# What a media plan has a say in.
_PLANNED: Final = frozenset({"*", "total_budget", "media_plan_lineage_id", "plan_channel_id"})
_PERMISSION: Final = "CAMPAIGNS_WRITE"


@dataclass(frozen=True, slots=True)
class Operation:
    """One step on one campaign.

    Attributes:
        action: ``create``, ``update``, or a name of `lifecycle.STEPS`.
        campaign: The new campaign, or the one of the request with its new values; nothing for steps.
        campaign_id: Which one; for a new one, the id it gets.
        etag: Its etag as the caller knows it; empty if that is all the same.
        mask: Fields to change.
        reason: Why it is refused, for people.
    """

    action: str
    campaign_id: UUID
    campaign: campaign_pb2.Campaign = field(default_factory=campaign_pb2.Campaign)
    etag: str = ""
    mask: FieldMask = field(default_factory=FieldMask)
    reason: str = ""

    @property
    def planned(self) -> bool:
        """Whether budgets of a media plan, or the state of the project, have to hold still meanwhile."""
        match self.action:
            case "create":
                return bool(self.campaign.media_plan_lineage_id or self.campaign.plan_channel_id)
            case "update":
                return any(path.partition(".")[0] in _PLANNED for path in self.mask.paths)
            case action:
                return action in lifecycle.TOWARDS_ACTIVE or action == "restore"


def creation(campaign: campaign_pb2.Campaign) -> Operation:
    """The step that makes a campaign."""
    return Operation("create", new_id(), campaign)


@dataclass(slots=True)
class Work:
    """What becomes of an operation.

    Attributes:
        before: The campaign as it was.
        after: The campaign as it is to be; of a new one, all but what the store decides.
        shown: The campaign as callers saw it before.
        error: Why the step cannot be taken.
    """

    operation: Operation
    before: Campaign | None = None
    after: Campaign | None = None
    shown: campaign_pb2.Campaign | None = None
    error: DomainError | None = None


@dataclass(frozen=True, slots=True)
class World:
    """What the operations of a batch need to know, read once and locked as far as it must hold still."""

    rows: dict[UUID, Campaign]
    projects: dict[UUID, Project]
    archived: set[UUID]
    runnable: set[UUID]
    book: PlanBook


async def run_one(call: Mutation, operation: Operation) -> campaign_pb2.Campaign:
    """Takes one step and returns the campaign.

    Raises:
        DomainError: It cannot be taken.
    """
    (outcome,) = await run(call, [operation], single=True)
    if isinstance(outcome, DomainError):
        raise outcome
    return outcome


async def run(
    call: Mutation,
    operations: Sequence[Operation],
    *,
    validate_only: bool = False,
    atomic: bool = False,
    failed: bool = False,
    single: bool = False,
) -> list[campaign_pb2.Campaign | DomainError]:
    """Takes steps, each on a campaign of its own.

    Args:
        call: Whose transaction, scope and record it is.
        operations: The steps.
        validate_only: Only say what would come of it.
        atomic: Take all of them or none.
        failed: None of them may be taken, since others of the same batch were at fault before.
        single: It is a call of its own, which fails as a whole: what the store refuses need not be looked up before.

    Returns:
        For each step, in their order, the campaign as it is now (or would be), or why the step is not taken.
    """
    world = await _world(call, operations, single)
    works = [_checked(operation, world) async for operation in in_turns(operations)]
    _check_budgets(works, world.book)
    if not single:
        await _check_external_ids(call, works)
        await _explain(call, works)
    if failed or (atomic and any(work.error for work in works)):
        for work in works:
            work.error = work.error or Aborted("another step of the batch cannot be taken", reason="BATCH_ABORTED")
    elif not validate_only:
        await _write(call, works)
    return [work.error or _shown(work, stored=not validate_only) for work in works]


async def _world(call: Mutation, operations: Sequence[Operation], single: bool) -> World:
    present = [each.campaign_id for each in operations if each.action != "create"]
    wanted_projects = {UUID(each.campaign.project_id) for each in operations if each.action == "create"}
    planned = any(each.planned for each in operations)
    if planned and present:
        wanted_projects |= set(await campaigns.projects_of(call.tx, call.scope, present))
    read = projects.get_many_for_update if planned else projects.get_many
    found = await read(call.tx, call.scope, sorted(wanted_projects)) if wanted_projects else []
    rows = await campaigns.get_many_for_update(call.tx, call.scope, present) if present else []
    archived: set[UUID] = set()
    if not single:
        # One of them must not fail all.
        owners = {row.client_id for row in rows} | {project.client_id for project in found}
        archived = await clients.archived_internal(call.tx, sorted(owners))
    lineages = {row.plan_lineage_id for row in rows if row.plan_lineage_id is not None}
    runnable: set[UUID] = set()
    if lineages and any(each.action in lifecycle.TOWARDS_ACTIVE for each in operations):
        runnable = await media_plans.runnable(call.tx, call.scope, sorted(lineages))
    if planned:
        given = (optional_id(each.campaign.media_plan_lineage_id) for each in operations)
        lineages |= {lineage_id for lineage_id in given if lineage_id is not None}
    return World(
        {row.id: row for row in rows},
        {project.id: project for project in found},
        archived,
        runnable,
        await PlanBook.open(call, lineages if planned else ()),
    )


def _checked(operation: Operation, world: World) -> Work:
    work = Work(operation)
    try:
        if operation.action == "create":
            work.after = _created(operation, world)
            return work
        row = world.rows.get(operation.campaign_id)
        if row is None:
            raise NotFound.resource("campaign", str(operation.campaign_id))
        check_etag(operation.etag, row.revision)
        if row.client_id in world.archived:
            raise FailedPrecondition.archived("client")
        work.before, work.shown = row, convert.campaign(row)
        if operation.action == "update":
            work.after = _updated(operation, row, work.shown, world)
        else:
            work.after = _stepped(operation, row, world)
    except DomainError as error:
        work.error = error
    return work


def _created(operation: Operation, world: World) -> Campaign:
    wanted = operation.campaign
    project = world.projects.get(UUID(wanted.project_id))
    if project is None:
        raise NotFound.resource("project", wanted.project_id)
    if project.client_id in world.archived:
        raise FailedPrecondition.archived("client")
    if project.status in ("completed", "archived"):
        raise FailedPrecondition(
            f"a project that is {project.status} takes no campaigns",
            metadata={"state": project.status, "wanted": "active"},
        )
    platform = convert.PLATFORMS.word(wanted.platform)
    currency = wanted.currency_code or project.budget_currency
    columns = convert.writable(wanted, platform, currency, None)
    if operation.planned:
        columns |= world.book.columns(
            Wanted(
                project.id,
                currency,
                columns["budget_total"],
                optional_id(wanted.media_plan_lineage_id),
                optional_id(wanted.plan_channel_id),
                None,
            )
        )
    else:
        columns |= {"plan_lineage_id": None, "plan_version": None, "plan_channel_id": None}
    return campaigns.draft(
        campaign_id=operation.campaign_id,
        client_id=project.client_id,
        project_id=project.id,
        platform=platform,
        currency=currency,
        **columns,
    )


def _updated(operation: Operation, row: Campaign, shown: campaign_pb2.Campaign, world: World) -> Campaign:
    if row.status == "archived":
        raise FailedPrecondition(
            "an archived campaign is read only", metadata={"state": "archived", "wanted": "update"}
        )
    wanted = apply_mask(shown, operation.campaign, operation.mask, WRITABLE, "campaign")
    validate(wanted, "campaign")
    columns = convert.writable(wanted, row.platform, row.currency, row)
    if row.integration_id is not None and columns["external_id"] != row.external_id:
        raise FailedPrecondition(
            "the campaign is linked to an account: unlink it before its external_id is changed",
            metadata={"resource_type": "campaign", "state": "linked", "wanted": "unlinked"},
        )
    if operation.planned:
        lineage_id = optional_id(wanted.media_plan_lineage_id)
        channel_id = optional_id(wanted.plan_channel_id)
        kept = (lineage_id, channel_id) == (row.plan_lineage_id, row.plan_channel_id)
        columns |= world.book.columns(
            Wanted(
                row.project_id,
                row.currency,
                columns["budget_total"],
                lineage_id,
                channel_id,
                row.plan_version if kept else None,
            )
        )
    after = replace(row, **columns)
    lifecycle.check_keeps(row, after)
    return after


def _stepped(operation: Operation, row: Campaign, world: World) -> Campaign:
    step = operation.action
    leads = lifecycle.check_step(row, step)
    if step in lifecycle.TOWARDS_ACTIVE:
        project = world.projects.get(row.project_id)
        if project is None:
            raise NotFound.resource("campaign", str(row.id))
        lifecycle.check_ready(row, leads, project.status, world.runnable)
    match step:
        case "submit":
            return replace(row, status=leads, rejection_reason="")
        case "reject":
            return replace(row, status=leads, rejection_reason=operation.reason)
        case _:
            return replace(row, status=leads)


def _check_budgets(works: Sequence[Work], book: PlanBook) -> None:
    """Holds what all campaigns would take against their plans; if that is too much, those stay out that come last."""
    changed = [work for work in works if work.after is not None and _takes(work)]
    places: list[tuple[Work, Place | None, Place | None]] = []
    for work in changed:
        assert work.after is not None
        place = place_of(work.after)
        places.append((work, place, book.put(work.after.id, place)))
    try:
        for place in {(each.lineage_id, each.channel_id): each for _, each, _ in places if each is not None}.values():
            book.check(place)
    except FailedPrecondition:
        for work, _, former in places:
            book.put(work.operation.campaign_id, former)
        for work, place, former in places:
            book.put(work.operation.campaign_id, place)
            try:
                if place is not None:
                    book.check(place)
            except FailedPrecondition as error:
                work.error, work.after = error, None
                book.put(work.operation.campaign_id, former)


def _takes(work: Work) -> bool:
    """Whether a step changes what is taken from a plan, or ties to it anew."""
    operation = work.operation
    return (operation.planned and operation.action not in lifecycle.TOWARDS_ACTIVE) or operation.action == "archive"


async def _check_external_ids(call: Mutation, works: Sequence[Work]) -> None:
    """Tells apart which of many campaigns has an id that is taken; the store would refuse them all."""
    asked: list[tuple[Work, tuple[UUID, str, str, UUID | None]]] = []
    seen: set[tuple[UUID, str, str]] = set()
    for work in works:
        after, before = work.after, work.before
        if after is None or after.external_id is None or after.integration_id is not None:
            continue
        if before is not None and before.external_id == after.external_id:
            continue
        key = (after.client_id, after.platform, after.external_id)
        if key in seen:
            work.error, work.after = _taken(), None
        else:
            seen.add(key)
            asked.append((work, (*key, None if before is None else before.id)))
    if asked:
        for index in await campaigns.taken_internal(call.tx, [each for _, each in asked]):
            asked[index][0].error, asked[index][0].after = _taken(), None


def _taken() -> AlreadyExists:
    return AlreadyExists(
        "another campaign of the client has this external_id on this platform",
        metadata={"constraint": "campaigns_imported_key"},
    )


async def _explain(call: Mutation, works: Sequence[Work]) -> None:
    """Tells who sees a thing but may not change it, as the pipeline does for a single call."""
    seen = rights.sight(call.principal)
    lost = [work for work in works if isinstance(work.error, NotFound)]
    if not lost or seen is call.scope:
        return
    ids = [work.operation.campaign_id for work in lost if work.operation.action != "create"]
    visible = await campaigns.visible_ids(call.tx, seen, ids) if ids else set()
    places = [UUID(work.operation.campaign.project_id) for work in lost if work.operation.action == "create"]
    if places:
        known = {project.id for project in await projects.get_many(call.tx, seen, sorted(set(places)))}
        visible |= {
            work.operation.campaign_id
            for work in lost
            if work.operation.action == "create" and UUID(work.operation.campaign.project_id) in known
        }
    for work in lost:
        if work.operation.campaign_id in visible:
            work.error = rights.denied(_PERMISSION)


async def _write(call: Mutation, works: Sequence[Work]) -> None:
    made = [work.after for work in works if work.after is not None and work.before is None]
    changed = [work.after for work in works if work.after is not None and work.before is not None]
    stored: dict[UUID, Campaign] = {}
    if made:
        stored = {row.id: row for row in await campaigns.create_many(call.tx, made)}
        if len(stored) < len(made):
            # Somebody was quicker since this was looked up, or it is a single step, for which it was not.
            raise _taken()
        await outbox.append_all(call.tx, "campaign", [str(row.id) for row in made])
    if changed:
        marks = await campaigns.update_many(call.tx, call.scope, changed)
        for row in changed:
            if row.id not in marks:
                raise NotFound.resource("campaign", str(row.id))
            revision, updated_at = marks[row.id]
            stored[row.id] = replace(row, revision=revision, updated_at=updated_at)
    await push_soon(call.tx, {row.integration_id for row in changed})
    async for work in in_turns(works):
        if work.after is not None:
            row = work.after = stored[work.after.id]
            before, work.shown = work.shown, convert.campaign(row)
            action = work.operation.action
            await call.record(AuditEntry(action, "campaign", row.id, row.client_id, row.project_id, before, work.shown))


def _shown(work: Work, *, stored: bool) -> campaign_pb2.Campaign:
    assert work.after is not None
    if stored and work.shown is not None:
        return work.shown
    message = convert.campaign(work.after)
    if work.before is None:
        for name in ("campaign_id", "etag", "create_time", "update_time"):
            message.ClearField(name)
    return message
