# ruff: noqa: S608 - the statements are put together from constants of this package
"""Campaigns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, returned
from storage.postgres.ids import new_id
from storage.postgres.revisions import update_row
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Campaign:
    """A row of ``campaigns``. Client, project, platform and currency are set once.

    Attributes:
        plan_lineage_id: The media plan through all its versions; `plan_version` is the one it was made under.
        integration_id: The platform account it runs in, which may belong to an agency above the client.
        external_id: Its id on the platform; None for a draft of ours.
        status: The state we want; what the platform reports is in `observed`.
        budget_spent: Derived from statistics; `update` does not write it.
        settings: The typed settings, under the word of the platform.
        rejection_reason: Why moderation refused it last; empty once it is submitted again.
        integration_status: Whether that account works; None without one. It is the account's own and not written here.
    """

    id: UUID
    client_id: UUID
    project_id: UUID
    plan_lineage_id: UUID | None
    plan_version: int | None
    plan_channel_id: UUID | None
    integration_id: UUID | None
    external_id: str | None
    platform: str
    name: str
    status: str
    currency: str
    budget_daily: Decimal | None
    budget_total: Decimal | None
    budget_spent: Decimal
    configuration: dict[str, Any]
    observed: dict[str, Any]
    last_synced_at: datetime | None
    revision: int
    created_at: datetime
    updated_at: datetime
    settings: dict[str, Any]
    rejection_reason: str
    integration_status: str | None


@dataclass(frozen=True, slots=True)
class CampaignDimension:
    """What the measurements need to know of a campaign. `time_zone` is the client's."""

    campaign_id: UUID
    client_id: UUID
    project_id: UUID
    platform: str
    currency: str
    time_zone: str


@dataclass(frozen=True, slots=True)
class BoundCampaign:
    """What a media plan needs to know of a campaign that it pays for."""

    id: UUID
    name: str
    status: str
    plan_version: int
    plan_channel_id: UUID
    budget_total: Decimal
    plan_lineage_id: UUID


# What comes from another table than `campaigns` belongs into `_VERSION` below, too.
_COLUMNS = """c.id, c.client_id, c.project_id, c.plan_lineage_id, c.plan_version, c.plan_channel_id, c.integration_id,
  c.external_id, c.platform, c.name, c.status, c.currency, c.budget_daily, c.budget_total, c.budget_spent,
  c.configuration, c.observed, c.last_synced_at, c.revision, c.created_at, c.updated_at, c.settings, c.rejection_reason,
  (SELECT i.status FROM client_integrations i WHERE i.id = c.integration_id)"""

_DIMENSION = "c.id, c.client_id, c.project_id, c.platform, c.currency, cl.settings->>'timezone'"

_VISIBLE = visibility.project("c.project_id")

# Adds a campaign.
_CREATE = f"""
INSERT INTO campaigns AS c (id, client_id, project_id, plan_lineage_id, plan_version, plan_channel_id, integration_id,
  external_id, platform, name, status, currency, budget_daily, budget_total, configuration, settings)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) RETURNING {_COLUMNS}"""

# Adds many campaigns; one whose id on the platform is taken is left out.
_CREATE_MANY = f"""
INSERT INTO campaigns AS c (id, client_id, project_id, plan_lineage_id, plan_version, plan_channel_id, external_id,
  platform, name, currency, budget_daily, budget_total, configuration, settings)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::int[], $6::uuid[], $7::text[], $8::text[],
  $9::text[], $10::text[], $11::numeric[], $12::numeric[], $13::jsonb[], $14::jsonb[])
ON CONFLICT DO NOTHING RETURNING {_COLUMNS}"""

# One campaign. The hottest statement of all: by indexes only.
_GET = f"""
SELECT {_COLUMNS} FROM campaigns c JOIN clients cl ON cl.id = c.client_id WHERE c.id = $4 AND {_VISIBLE}"""

# One campaign, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE OF c"

# Some campaigns, kept from changing until the transaction ends.
_GET_MANY_FOR_UPDATE = f"""
SELECT {_COLUMNS} FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.id = ANY ($4::uuid[]) AND {_VISIBLE} ORDER BY c.id FOR UPDATE OF c"""

# Which of some campaigns are there.
_VISIBLE_IDS = f"""
SELECT c.id FROM campaigns c JOIN clients cl ON cl.id = c.client_id WHERE c.id = ANY ($4::uuid[]) AND {_VISIBLE}"""

# The projects of some campaigns; a campaign never changes its project.
_PROJECTS = f"""
SELECT DISTINCT c.project_id FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.id = ANY ($4::uuid[]) AND {_VISIBLE}"""

# One page of campaigns.
_LIST_PAGE = f"""
SELECT {_COLUMNS} FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE {_VISIBLE}
  AND ($6::uuid IS NULL OR c.client_id = $6)
  AND ($7::uuid IS NULL OR c.project_id = $7)
  AND ($8::text[] IS NULL OR c.platform = ANY ($8))
  AND ($9::text[] IS NULL OR c.status = ANY ($9))
  AND ($10::uuid IS NULL OR c.plan_lineage_id = $10)
  AND ($11::uuid IS NULL OR c.plan_channel_id = $11)
  AND ($12::uuid IS NULL OR c.integration_id = $12)
  AND ($13::text IS NULL OR c.external_id = $13)
  AND ($14::text IS NULL OR position(lower($14) IN lower(c.name)) > 0)
  AND ($15::timestamptz IS NULL OR c.updated_at >= $15)
  AND ($4::uuid IS NULL OR {{after}})
ORDER BY {{order}} LIMIT $5"""


@dataclass(frozen=True, slots=True)
class Order:
    """An order of campaigns in which pages can be cut.

    Attributes:
        statement: Reads a page.
        key: What a campaign is ordered by before its id, as text; None where the id is all.
        value: What that text stands for.
    """

    statement: str
    key: Callable[[Campaign], str] | None = None
    value: Callable[[str], object] = str


def _order(after: str, order: str) -> str:
    return _LIST_PAGE.format(after=after, order=order)


OLDEST = Order(_order("c.id > $4", "c.id"))
NEWEST = Order(_order("c.id < $4", "c.id DESC"))
BY_NAME = Order(
    _order("""(c.name COLLATE "C", c.id) > ($16::text, $4)""", """c.name COLLATE "C", c.id"""), lambda row: row.name
)
LAST_CHANGED = Order(
    _order("(c.updated_at, c.id) < ($16::timestamptz, $4)", "c.updated_at DESC, c.id DESC"),
    lambda row: row.updated_at.isoformat(),
    datetime.fromisoformat,
)
MOST_SPENT = Order(
    _order("(c.budget_spent, c.id) < ($16::numeric, $4)", "c.budget_spent DESC, c.id DESC"),
    lambda row: str(row.budget_spent),
    Decimal,
)

# What tells one version of a campaign, and of its account `a`, from all others: every transaction that writes a row
# gives it another xmin. Their order says nothing, since a transaction may write what a younger one wrote before it;
# hence a hash.
_VERSION = "hashtextextended(concat(c.id, ':', c.xmin, ':', a.xmin), 0)"

# Whether a project can be seen, and what tells one state of its campaigns from all others.
_STATE = f"""
SELECT s.number, s.digest FROM projects p JOIN clients cl ON cl.id = p.client_id, LATERAL (
  SELECT count(*) AS number, COALESCE(bit_xor(r.version), 0) AS digest
  FROM (
    SELECT {_VERSION} AS version FROM campaigns c LEFT JOIN client_integrations a ON a.id = c.integration_id
    WHERE c.project_id = p.id LIMIT $5) r) s
WHERE p.id = $4 AND {visibility.project("p.id")}"""

# The campaigns of a project with what `_STATE` puts together, in one look.
_ALL_OF_PROJECT = f"""
SELECT {_COLUMNS}, {_VERSION}
FROM campaigns c JOIN clients cl ON cl.id = c.client_id LEFT JOIN client_integrations a ON a.id = c.integration_id
WHERE c.project_id = $4 AND {_VISIBLE} ORDER BY c.id LIMIT $5"""

# Replaces what may change of a campaign that still has the expected revision.
_UPDATE = f"""
UPDATE campaigns c SET plan_lineage_id = $6, plan_version = $7, plan_channel_id = $8, integration_id = $9,
  external_id = $10, name = $11, status = $12, budget_daily = $13, budget_total = $14, configuration = $15,
  observed = $16, last_synced_at = $17, settings = $18, rejection_reason = $19
FROM clients cl
WHERE c.id = $4 AND cl.id = c.client_id AND c.revision = $5 AND {_VISIBLE} RETURNING {_COLUMNS}"""

# Replaces what may change of many campaigns that still have the expected revisions.
_UPDATE_MANY = f"""
UPDATE campaigns c SET plan_lineage_id = n.plan_lineage_id, plan_version = n.plan_version,
  plan_channel_id = n.plan_channel_id, external_id = n.external_id, name = n.name, status = n.status,
  budget_daily = n.budget_daily, budget_total = n.budget_total, configuration = n.configuration, settings = n.settings,
  rejection_reason = n.rejection_reason
FROM clients cl, unnest($4::uuid[], $5::bigint[], $6::uuid[], $7::int[], $8::uuid[], $9::text[], $10::text[],
  $11::text[], $12::numeric[], $13::numeric[], $14::jsonb[], $15::jsonb[], $16::text[])
  AS n (id, revision, plan_lineage_id, plan_version, plan_channel_id, external_id, name, status, budget_daily,
    budget_total, configuration, settings, rejection_reason)
WHERE c.id = n.id AND cl.id = c.client_id AND c.revision = n.revision AND {_VISIBLE}
RETURNING c.id, c.revision, c.updated_at"""

# Which ids on a platform are taken by campaigns of a client that are in no account, or by those of an account.
_TAKEN = """
SELECT w.number FROM unnest($1::int[], $2::uuid[], $3::text[], $4::text[], $5::uuid[])
  AS w (number, client_id, platform, external_id, own_id)
WHERE EXISTS (
  SELECT FROM campaigns c WHERE c.client_id = w.client_id AND c.platform = w.platform AND c.integration_id IS NULL
    AND c.external_id = w.external_id AND c.id IS DISTINCT FROM w.own_id)"""

# Other campaigns with the same id on the same platform.
_TRACKED_ELSEWHERE = f"""
SELECT EXISTS (SELECT FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.external_id = $4 AND c.platform = $5 AND c.id <> $6 AND {_VISIBLE})"""

# The projects of an account's campaigns that wait for moderation.
_WAITING_INTERNAL = """
SELECT DISTINCT project_id FROM campaigns
WHERE integration_id = $1 AND external_id = ANY ($2::text[]) AND status = 'pending_moderation' ORDER BY project_id"""

# Campaigns of an account, kept from changing until the transaction ends.
_OF_ACCOUNT_INTERNAL = f"""
SELECT {_COLUMNS} FROM campaigns c
WHERE c.integration_id = $1 AND c.external_id = ANY ($2::text[]) ORDER BY c.id FOR UPDATE OF c"""

# Writes what a platform said. It touches no column that an archive guards: the past may be read there as well.
_OBSERVE_INTERNAL = f"""
UPDATE campaigns c SET observed = n.observed, last_synced_at = $3
FROM unnest($1::uuid[], $2::jsonb[]) AS n (id, observed) WHERE c.id = n.id RETURNING {_COLUMNS}"""

# Takes campaigns a step on, because of what a platform said.
_MOVE_INTERNAL = f"""
UPDATE campaigns c SET status = n.status, rejection_reason = n.reason
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS n (id, status, reason) WHERE c.id = n.id RETURNING {_COLUMNS}"""

# Ids of a project's active campaigns, kept from changing until the transaction ends.
_ACTIVE_OF_PROJECT = f"""
SELECT c.id FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.project_id = $4 AND c.status = 'active' AND {_VISIBLE} ORDER BY c.id FOR UPDATE OF c"""

# Pauses given campaigns.
_PAUSE = f"""
UPDATE campaigns c SET status = 'paused' FROM clients cl
WHERE c.id = ANY ($4::uuid[]) AND cl.id = c.client_id AND c.status = 'active' AND {_VISIBLE}"""

# Campaigns bound to some media plans.
_BOUND = f"""
SELECT c.id, c.name, c.status, c.plan_version, c.plan_channel_id, c.budget_total, c.plan_lineage_id
FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.plan_lineage_id = ANY ($4::uuid[]) AND num_nulls(c.plan_version, c.plan_channel_id, c.budget_total) = 0
  AND {_VISIBLE}
ORDER BY c.id"""

# The present revision, to tell a stale campaign from a missing one.
_REVISION = f"""
SELECT c.revision FROM campaigns c JOIN clients cl ON cl.id = c.client_id WHERE c.id = $4 AND {_VISIBLE}"""

# Dimensions of given campaigns, or of all of one client itself.
_FOR_DIMENSION = f"""
SELECT {_DIMENSION} FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE ($4::uuid[] IS NULL OR c.id = ANY ($4)) AND ($5::uuid IS NULL OR c.client_id = $5) AND {_VISIBLE}
ORDER BY c.id"""

# Dimensions of given campaigns, whoever they belong to.
_DIMENSIONS_INTERNAL = f"""
SELECT {_DIMENSION} FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.id = ANY ($1::uuid[]) AND cl.purged_at IS NULL"""

# One page of all campaigns' dimensions.
_DIMENSION_PAGE_INTERNAL = f"""
SELECT {_DIMENSION} FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE cl.purged_at IS NULL AND ($1::uuid IS NULL OR c.id > $1) ORDER BY c.id LIMIT $2"""


async def create(
    db: Executor,
    *,
    client_id: UUID,
    project_id: UUID,
    platform: str,
    name: str,
    currency: str,
    status: str = "draft",
    plan_lineage_id: UUID | None = None,
    plan_version: int | None = None,
    plan_channel_id: UUID | None = None,
    integration_id: UUID | None = None,
    external_id: str | None = None,
    budget_daily: Decimal | None = None,
    budget_total: Decimal | None = None,
    configuration: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    campaign_id: UUID | None = None,
) -> Campaign:
    """Adds a campaign. The caller has checked that it may add one to the project.

    Raises:
        Conflict: ``campaigns_external_key`` or ``campaigns_imported_key``: that platform campaign is here already.
        Invalid: A value is not allowed, or ``campaigns_project_fkey``: the client has no such project.
    """
    row = await db.fetchrow(
        _CREATE, campaign_id or new_id(), client_id, project_id, plan_lineage_id, plan_version, plan_channel_id,
        integration_id, external_id, platform, name, status, currency, budget_daily, budget_total,
        dict(configuration or {}), dict(settings or {}),
    )  # fmt: skip
    return Campaign(*returned(row))


def draft(
    *,
    campaign_id: UUID,
    client_id: UUID,
    project_id: UUID,
    platform: str,
    name: str,
    currency: str,
    plan_lineage_id: UUID | None,
    plan_version: int | None,
    plan_channel_id: UUID | None,
    external_id: str | None,
    budget_daily: Decimal | None,
    budget_total: Decimal | None,
    configuration: dict[str, Any],
    settings: dict[str, Any],
) -> Campaign:
    """A new campaign as `create_many` takes it: nothing is stored yet."""
    now = datetime.now(UTC)
    return Campaign(
        id=campaign_id,
        client_id=client_id,
        project_id=project_id,
        plan_lineage_id=plan_lineage_id,
        plan_version=plan_version,
        plan_channel_id=plan_channel_id,
        integration_id=None,
        external_id=external_id,
        platform=platform,
        name=name,
        status="draft",
        currency=currency,
        budget_daily=budget_daily,
        budget_total=budget_total,
        budget_spent=Decimal(),
        configuration=configuration,
        observed={},
        last_synced_at=None,
        revision=1,
        created_at=now,
        updated_at=now,
        settings=settings,
        rejection_reason="",
        integration_status=None,
    )


async def create_many(db: Executor, drafts: Sequence[Campaign]) -> list[Campaign]:
    """Adds campaigns made by `draft` at once. The caller has checked that it may add them to their projects.

    Returns:
        Those that were added. One is left out if that platform campaign is here already.

    Raises:
        Invalid: A value is not allowed.
        Archived: A client is archived.
    """
    columns = (
        "id", "client_id", "project_id", "plan_lineage_id", "plan_version", "plan_channel_id", "external_id",
        "platform", "name", "currency", "budget_daily", "budget_total", "configuration", "settings",
    )  # fmt: skip
    rows = await db.fetch(_CREATE_MANY, *([getattr(row, column) for row in drafts] for column in columns))
    return [Campaign(*row) for row in rows]


async def get(db: Executor, scope: Scope, campaign_id: UUID) -> Campaign | None:
    """The campaign with this id."""
    row = await db.fetchrow(_GET, *scope.args, campaign_id)
    return None if row is None else Campaign(*row)


async def get_for_update(db: Executor, scope: Scope, campaign_id: UUID) -> Campaign | None:
    """As `get`, and keeps others from changing the campaign until the transaction ends."""
    row = await db.fetchrow(_GET_FOR_UPDATE, *scope.args, campaign_id)
    return None if row is None else Campaign(*row)


async def get_many_for_update(db: Executor, scope: Scope, campaign_ids: Sequence[UUID]) -> list[Campaign]:
    """Those of the campaigns in scope, by id; they do not change until the transaction ends."""
    rows = await db.fetch(_GET_MANY_FOR_UPDATE, *scope.args, list(campaign_ids))
    return [Campaign(*row) for row in rows]


async def visible_ids(db: Executor, scope: Scope, campaign_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the campaigns that are in scope."""
    return {row[0] for row in await db.fetch(_VISIBLE_IDS, *scope.args, list(campaign_ids))}


async def projects_of(db: Executor, scope: Scope, campaign_ids: Sequence[UUID]) -> list[UUID]:
    """The projects of those of the campaigns in scope."""
    return [row[0] for row in await db.fetch(_PROJECTS, *scope.args, list(campaign_ids))]


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    after_key: str = "",
    order: Order = OLDEST,
    client_id: UUID | None = None,
    project_id: UUID | None = None,
    platforms: Sequence[str] | None = None,
    statuses: Sequence[str] | None = None,
    plan_lineage_id: UUID | None = None,
    plan_channel_id: UUID | None = None,
    integration_id: UUID | None = None,
    external_id: str | None = None,
    name_contains: str | None = None,
    updated_since: datetime | None = None,
) -> list[Campaign]:
    """Up to `limit` campaigns, in an order; a filter that is None lets all pass.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        limit: The most campaigns to return.
        after: Id of the last campaign of the page before.
        after_key: Its `order.key`, where the order has one.
        order: Their order.
        client_id: Only campaigns of this client itself.
        project_id: Only campaigns of this project.
        platforms: Only campaigns on one of these.
        statuses: Only campaigns in one of these.
        plan_lineage_id: Only campaigns of this media plan.
        plan_channel_id: Only campaigns of this channel.
        integration_id: Only campaigns of this account.
        external_id: Only campaigns with this id on their platform.
        name_contains: Only campaigns whose name contains this, whatever the case.
        updated_since: Only campaigns that changed at this instant or later.

    Raises:
        ValueError: `after_key` is no key of this order.
    """
    keys = ()
    if order.key is not None:
        keys = (order.value(after_key) if after is not None else None,)  # type: ignore[assignment]
    rows = await db.fetch(
        order.statement, *scope.args, after, limit, client_id, project_id,
        None if platforms is None else list(platforms), None if statuses is None else list(statuses),
        plan_lineage_id, plan_channel_id, integration_id, external_id, name_contains, updated_since, *keys,
    )  # fmt: skip
    return [Campaign(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class ProjectState:
    """What tells one state of a project's campaigns from all others, earlier and later ones.

    Whatever has committed before a state is read is a part of it, whoever wrote it and however.

    Attributes:
        number: How many campaigns, up to the limit that was given.
        digest: Of the versions of all campaigns and of their accounts.
    """

    number: int
    digest: int


async def project_state(db: Executor, scope: Scope, project_id: UUID, limit: int) -> ProjectState | None:
    """The state of a project's campaigns, looking at up to `limit` of them; None if the project is not in scope."""
    row = await db.fetchrow(_STATE, *scope.args, project_id, limit)
    return None if row is None else ProjectState(*row)


async def all_of_project(
    db: Executor, scope: Scope, project_id: UUID, limit: int
) -> tuple[ProjectState, list[Campaign]]:
    """Up to `limit` campaigns of a project, oldest first, and the state that they are in."""
    rows = await db.fetch(_ALL_OF_PROJECT, *scope.args, project_id, limit)
    digest = 0
    for row in rows:
        digest ^= row[-1]
    return ProjectState(len(rows), digest), [Campaign(*row[:-1]) for row in rows]


async def update(
    db: Executor, scope: Scope, changed: Campaign, expected_revision: int | None = None
) -> Campaign | None:
    """Writes a campaign that was read and changed.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        changed: The campaign as read, with its new values. What is set once, money spent and times are ignored.
        expected_revision: The revision the change is based on; that of `changed` when None.

    Returns:
        The campaign as it is now, or None when there is none in scope.

    Raises:
        StaleRevision: It was changed since.
        Conflict: That platform campaign is here already.
        Invalid: A value is not allowed, for example ``campaigns_budget_order``.
    """
    expected = changed.revision if expected_revision is None else expected_revision
    row = await update_row(
        db, _UPDATE, _REVISION, scope, changed.id, expected,
        changed.plan_lineage_id, changed.plan_version, changed.plan_channel_id, changed.integration_id,
        changed.external_id, changed.name, changed.status, changed.budget_daily, changed.budget_total,
        changed.configuration, changed.observed, changed.last_synced_at, changed.settings, changed.rejection_reason,
    )  # fmt: skip
    return None if row is None else Campaign(*row)


async def update_many(db: Executor, scope: Scope, changed: Sequence[Campaign]) -> dict[UUID, tuple[int, datetime]]:
    """Writes campaigns that were read for update and changed. Accounts and what platforms said are left alone.

    Returns:
        New revision and time of each that was written.

    Raises:
        Conflict: A platform campaign is here already.
        Invalid: A value is not allowed.
    """
    columns = (
        "id", "revision", "plan_lineage_id", "plan_version", "plan_channel_id", "external_id", "name", "status",
        "budget_daily", "budget_total", "configuration", "settings", "rejection_reason",
    )  # fmt: skip
    rows = await db.fetch(_UPDATE_MANY, *scope.args, *([getattr(row, column) for row in changed] for column in columns))
    return {row[0]: (row[1], row[2]) for row in rows}


async def taken_internal(db: Executor, wanted: Sequence[tuple[UUID, str, str, UUID | None]]) -> set[int]:
    """Positions of those of `wanted` whose id on the platform another campaign of the client has, in no account.

    Args:
        db: Where to run it.
        wanted: Client, platform, id on the platform, and the campaign's own id unless it is new. The caller has
            checked that it may write to those clients.
    """
    columns = [[each[index] for each in wanted] for index in range(4)]
    return {row[0] for row in await db.fetch(_TAKEN, list(range(len(wanted))), *columns)}


async def tracked_elsewhere(db: Executor, scope: Scope, row: Campaign, external_id: str) -> bool:
    """Whether another campaign in scope has this id on the platform of `row`."""
    return bool(await db.fetchval(_TRACKED_ELSEWHERE, *scope.args, external_id, row.platform, row.id))


async def waiting_internal(db: Executor, integration_id: UUID, external_ids: Sequence[str]) -> list[UUID]:
    """The projects of those of an account's campaigns that wait for moderation. For the service's own jobs."""
    return [row[0] for row in await db.fetch(_WAITING_INTERNAL, integration_id, list(external_ids))]


async def of_account_internal(db: Executor, integration_id: UUID, external_ids: Sequence[str]) -> list[Campaign]:
    """Campaigns of an account by their ids there, kept from changing. For the service's own jobs: no scope."""
    return [Campaign(*row) for row in await db.fetch(_OF_ACCOUNT_INTERNAL, integration_id, list(external_ids))]


async def record_observed_internal(
    db: Executor, observed: Mapping[UUID, Mapping[str, Any]], at: datetime
) -> dict[UUID, Campaign]:
    """Writes what a platform said of campaigns, and when it was asked. For the service's own jobs: no scope."""
    rows = await db.fetch(_OBSERVE_INTERNAL, list(observed), [dict(each) for each in observed.values()], at)
    return {row[0]: Campaign(*row) for row in rows}


async def move_internal(db: Executor, moved: Mapping[UUID, tuple[str, str]]) -> dict[UUID, Campaign]:
    """Gives campaigns the status that follows from what a platform said, and the reason of a rejection.

    For the service's own jobs: no scope.

    Raises:
        Archived: A client is archived.
    """
    steps = list(moved.values())
    rows = await db.fetch(_MOVE_INTERNAL, list(moved), [step[0] for step in steps], [step[1] for step in steps])
    return {row[0]: Campaign(*row) for row in rows}


async def bound(db: Executor, scope: Scope, *lineage_ids: UUID) -> list[BoundCampaign]:
    """The campaigns bound to some media plans, archived ones as well, oldest first."""
    return [BoundCampaign(*row) for row in await db.fetch(_BOUND, *scope.args, list(lineage_ids))]


async def active_of_project(db: Executor, scope: Scope, project_id: UUID) -> list[UUID]:
    """Ids of the active campaigns of a project; they stay active until the transaction ends."""
    return [row[0] for row in await db.fetch(_ACTIVE_OF_PROJECT, *scope.args, project_id)]


async def pause(db: Executor, scope: Scope, campaign_ids: Sequence[UUID]) -> None:
    """Pauses those of the campaigns that are active. The caller records it."""
    await db.execute(_PAUSE, *scope.args, list(campaign_ids))


async def for_dimension(
    db: Executor, scope: Scope, *, campaign_ids: Sequence[UUID] | None = None, client_id: UUID | None = None
) -> list[CampaignDimension]:
    """Dimensions of those of `campaign_ids` in scope, or of the campaigns of one client itself; at least one is given.

    Raises:
        ValueError: Neither is given.
    """
    if campaign_ids is None and client_id is None:
        raise ValueError("campaign_ids or client_id is needed")
    wanted = None if campaign_ids is None else list(campaign_ids)
    return [CampaignDimension(*row) for row in await db.fetch(_FOR_DIMENSION, *scope.args, wanted, client_id)]


async def dimensions_internal(db: Executor, campaign_ids: Sequence[UUID]) -> list[CampaignDimension]:
    """Dimensions of those of `campaign_ids` that exist and are not purged. For the service's own jobs: no scope."""
    return [CampaignDimension(*row) for row in await db.fetch(_DIMENSIONS_INTERNAL, list(campaign_ids))]


async def dimension_page_internal(db: Executor, *, limit: int, after: UUID | None = None) -> list[CampaignDimension]:
    """Up to `limit` campaigns' dimensions, by id from `after` on. For the service's own jobs: no scope."""
    return [CampaignDimension(*row) for row in await db.fetch(_DIMENSION_PAGE_INTERNAL, after, limit)]
