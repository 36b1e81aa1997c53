"""What the rows of a file of campaigns come to: which are new, which change something, which are at fault."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from mrm.campaigns.v1 import campaign_import_service_pb2 as pb
from server.campaigns.convert import CAMPAIGN_STATUSES, PLATFORMS
from server.campaigns.storable import holds_nul
from server.rpc.errors import InvalidRequest
from server.rpc.validation import violations
from server.rpc.values import json_of
from storage.postgres.campaign_imports import Account, Held
from storage.postgres.ids import new_id

_LARGEST_CONFIGURATION: Final = 64 * 1024
_LONGEST_FIELD: Final = 100


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with one row."""

    line: int
    field: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A row that keeps its rules; absent is what it does not say.

    Attributes:
        integration_id: The account it names, or the only one that it can mean; None for none.
        any_account: Whether it names no account, so that the client's campaigns in any of them may be meant.
    """

    line: int
    platform: str
    external_id: str
    integration_id: UUID | None
    any_account: bool
    name: str
    status: str
    currency: str
    budget_daily: Decimal | None
    budget_total: Decimal | None
    configuration: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """Where rows go.

    Attributes:
        client_id: The project's client.
        project_id: The project.
        currency: The project's.
        accounts: Accounts that campaigns of the client may run in.
    """

    client_id: UUID
    project_id: UUID
    currency: str
    accounts: Sequence[Account]


@dataclass(slots=True)
class Outcome:
    """What some rows come to.

    Attributes:
        created: Campaigns to add.
        updated: Campaigns to change: as they are, and as they are to be.
        updated_rows: Rows that change something.
        skipped: Rows whose campaign stays as it is.
        faults: What is wrong.
        failed: Rows at fault.
    """

    created: list[Held] = field(default_factory=list)
    updated: list[tuple[Held, Held]] = field(default_factory=list)
    updated_rows: int = 0
    skipped: int = 0
    faults: list[Fault] = field(default_factory=list)
    failed: int = 0

    def refuse(self, line: int, found: Iterable[tuple[str, str, str]]) -> None:
        """Notes a row at fault: field, reason and message of each fault."""
        self.failed += 1
        self.faults += [Fault(line, name[:_LONGEST_FIELD], reason, message) for name, reason, message in found]


def read(row: pb.CampaignImportRow, target: Target) -> Wanted | list[tuple[str, str, str]]:
    """A row, or field, reason and message of everything that is wrong with it alone."""
    faults = [(found.field, found.reason, found.description) for found in violations(row)]
    if "\x00" in row.external_id + row.display_name + row.account_id:
        faults.append(("", "NUL_CHARACTER", "holds a NUL character"))
    if faults:
        return faults
    daily = _amount(row.daily_budget_micros) if row.HasField("daily_budget_micros") else None
    total = _amount(row.total_budget_micros) if row.HasField("total_budget_micros") else None
    if daily is not None and total is not None and daily > total:
        faults.append(("daily_budget_micros", "BUDGET_ORDER", "must not be above total_budget_micros"))
    status = CAMPAIGN_STATUSES.optional_word(row.status) or "archived"
    if row.configuration.ByteSize() > _LARGEST_CONFIGURATION:
        faults.append(("configuration", "TOO_LARGE", "is larger than 64 KiB"))
    configuration: dict[str, Any] = {}
    try:
        configuration = json_of(row.configuration, "configuration")
    except InvalidRequest as error:
        faults += [(found.field, found.reason, found.description) for found in error.violations]
    if holds_nul(configuration):
        faults.append(("configuration", "NUL_CHARACTER", "holds a NUL character"))
    platform = PLATFORMS.word(row.platform)
    integration_id, unknown = _account(platform, row.account_id, target.accounts)
    if unknown:
        faults.append(("account_id", "ACCOUNT_UNKNOWN", "neither the client nor an agency above it has this account"))
    if faults:
        return faults
    return Wanted(
        line=row.line,
        platform=platform,
        external_id=row.external_id.strip(),
        integration_id=integration_id,
        any_account=not row.account_id,
        name=row.display_name.strip() or row.external_id.strip(),
        status=status,
        currency=row.currency_code or target.currency,
        budget_daily=daily,
        budget_total=total,
        configuration=configuration,
    )


def decide(rows: Sequence[Wanted], held: Iterable[Held], target: Target, update: bool, outcome: Outcome) -> None:
    """Sorts rows into what they come to.

    Args:
        rows: The rows.
        held: Campaigns that are there and that any of the rows may mean.
        target: Where they go.
        update: Whether rows change campaigns that are there.
        outcome: Takes what they come to.
    """
    there: dict[tuple[str, str], list[Held]] = {}
    for each in held:
        there.setdefault((each.platform, each.external_id), []).append(each)
    # Campaigns by id, as they are to be; those of earlier rows are changed by later ones like any other.
    new: dict[UUID, Held] = {}
    changed: dict[UUID, tuple[Held, Held]] = {}
    for row in rows:
        key = (row.platform, row.external_id)
        known = _meant(row, there.get(key, ()), target.client_id)
        if known is None:
            campaign = _campaign(row, target)
            new[campaign.id] = campaign
            there.setdefault(key, []).append(campaign)
        elif faults := _conflicts(row, known, target, update):
            outcome.refuse(row.line, faults)
        elif not update:
            outcome.skipped += 1
        else:
            now = new.get(known.id) or changed.get(known.id, (known, known))[1]
            wanted = _merged(row, now)
            if fault := _unaffordable(wanted, now):
                outcome.refuse(row.line, [fault])
            elif wanted == now:
                outcome.skipped += 1
            else:
                outcome.updated_rows += 1
                if known.id in new:
                    new[known.id] = wanted
                else:
                    changed[known.id] = (known, wanted)
    outcome.created += new.values()
    outcome.updated += changed.values()


def _account(platform: str, named: str, accounts: Sequence[Account]) -> tuple[UUID | None, bool]:
    """The account that a row means, and whether it names one that is not there."""
    of_platform = [each for each in accounts if each.platform == platform]
    if named:
        # A client's own account comes before one of an agency with the same name.
        found = sorted((each for each in of_platform if each.account_id == named), key=lambda each: not each.own)
        return (found[0].id, False) if found else (None, True)
    own = [each for each in of_platform if each.own]
    return (own[0].id if len(own) == 1 else None), False


def _meant(row: Wanted, candidates: Sequence[Held], client_id: UUID) -> Held | None:
    """The campaign that a row means, if it is there."""
    exact = next((each for each in candidates if each.integration_id == row.integration_id), None)
    if exact is not None or not row.any_account:
        return exact
    return next((each for each in candidates if each.client_id == client_id), None)


def _conflicts(row: Wanted, known: Held, target: Target, update: bool) -> list[tuple[str, str, str]]:
    if known.client_id != target.client_id:
        return [("external_id", "EXTERNAL_ID_TAKEN", "another client has this campaign of the account")]
    if known.project_id != target.project_id:
        return [("external_id", "OTHER_PROJECT", "the client has this campaign in another project")]
    if update and known.currency != row.currency:
        return [("currency_code", "CURRENCY_MISMATCH", "the campaign is there in another currency")]
    return []


def _merged(row: Wanted, known: Held) -> Held:
    """A campaign with what a row says of it."""
    return replace(
        known,
        name=row.name,
        budget_daily=known.budget_daily if row.budget_daily is None else row.budget_daily,
        budget_total=known.budget_total if row.budget_total is None else row.budget_total,
        configuration=row.configuration or known.configuration,
    )


def _unaffordable(wanted: Held, known: Held) -> tuple[str, str, str] | None:
    if wanted.budget_total != known.budget_total and known.plan_channel_id is not None:
        return "total_budget_micros", "BUDGET_PLANNED", "a media plan pays for the campaign: use UpdateCampaign"
    if None not in (wanted.budget_daily, wanted.budget_total) and wanted.budget_daily > wanted.budget_total:  # type: ignore[operator]
        return "daily_budget_micros", "BUDGET_ORDER", "the daily budget would be above the total one"
    return None


def _campaign(row: Wanted, target: Target) -> Held:
    return Held(
        id=new_id(),
        client_id=target.client_id,
        project_id=target.project_id,
        integration_id=row.integration_id,
        platform=row.platform,
        external_id=row.external_id,
        name=row.name,
        status=row.status,
        currency=row.currency,
        budget_daily=row.budget_daily,
        budget_total=row.budget_total,
        configuration=row.configuration,
        plan_channel_id=None,
    )


def _amount(micros: int) -> Decimal:
    return Decimal(micros).scaleb(-6)
