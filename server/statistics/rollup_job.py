"""The job that brings measured days into the daily figures of PostgreSQL, and compares the two."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from mrm.operations.v1.alert_pb2 import AlertDetails, RollupAlertDetails
from server.alerts.convert import stored_details
from server.alerts.raising import clear_alerts, raise_alert
from server.jobs.handling import JobContext, Stores
from server.rpc import logs
from server.settings import RollupSettings
from server.statistics import days
from server.statistics.aggregator import CHANNEL
from server.statistics.days import ONE
from server.statistics.figures import MICROS, quotient
from server.statistics.marking import QUEUE, TYPE, enqueue
from storage.clickhouse import daily
from storage.clickhouse.daily import CampaignDay, Measured
from storage.clickhouse.metrics import NO_FIGURES, Figures
from storage.errors import StoreUnavailable
from storage.postgres import audit, rollups
from storage.postgres.alerts import Sighting
from storage.postgres.audit import Cause, Record
from storage.postgres.database import Transaction
from storage.postgres.jobs import Job
from storage.postgres.rollups import Found, NewDay, RollupState, StoredDay

__all__ = ["QUEUE", "TYPE", "Rollup", "RollupDaily", "handle"]

_ALERT_KEY: Final = "rollup_drift"
# Whoever changes measurements marks their day a moment later.
_MARK_SECONDS: Final = 1.0

Progress = Callable[[int, int, str], Awaitable[None]]


class RollupDaily(BaseModel):
    """Payload of a ``rollup_daily`` job.

    Attributes:
        client_id: Whose days; None to make a job for each client that has some.
        cause: ``day_close``: what has ended, and what is still restated as a rule; ``new_reading``: days that are
            marked; ``requested``: days that are named.
        first: First of the named days.
        last: Last of the named days.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    client_id: UUID | None = None
    cause: Literal["day_close", "new_reading", "requested"] = "day_close"
    first: date | None = None
    last: date | None = None


async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
    """Rolls up days of a client, or finds the clients that have days to roll up."""
    payload = RollupDaily.model_validate(job.payload)
    now = datetime.now(UTC)
    if payload.client_id is None:
        return {"clients": await make_due(context.stores, now)}
    found = await rollups.states_internal(context.stores.database, payload.client_id)
    if not found:
        return {"days": 0}
    return await Rollup(context.stores, found[0], job.id, now, context.progress).run(payload)


async def make_due(stores: Stores, now: datetime) -> int:
    """Makes a job for each client whose day has ended, or whose marks nobody takes; returns how many there are."""
    settings, due = stores.settings.rollup, 0
    for state in await rollups.states_internal(stores.database):
        closed = days.closed(now, ZoneInfo(state.time_zone), settings.grace)
        is_due = state.rolled_through is None or state.rolled_through < closed or state.rolled_zone != state.time_zone
        if not is_due and not state.marked:
            continue
        due += 1
        async with stores.database.transaction("rollup_due") as tx:
            if is_due:
                await enqueue(tx, state.client_id, {"cause": "day_close"}, f"rollup:{state.client_id}:day_close")
            if state.marked:
                await enqueue(tx, state.client_id, {"cause": "new_reading"}, f"rollup:{state.client_id}:left")
    return due


@dataclass(slots=True)
class Tally:
    """What a rollup has done, in days of campaigns but for the first."""

    days: int = 0
    written: int = 0
    restated: int = 0
    drifted: int = 0


class Rollup:
    """Rolls up days of one client.

    Each span of days is read and written under a lock of the client, so that of two rollups the one that read later
    also writes later; a worker that lost its lease writes what is true all the same.

    Args:
        stores: Where everything is.
        state: The client, and how far it is.
        job_id: The job that this is.
        now: The time.
        progress: Told after each span: days done, days in all, and what was done.
    """

    def __init__(self, stores: Stores, state: RollupState, job_id: UUID, now: datetime, progress: Progress) -> None:
        self._stores = stores
        self._state = state
        self._client_id = state.client_id
        self._job_id = job_id
        self._cause = Cause("job", str(job_id), "daily rollup")
        self._progress = progress
        self._zone = ZoneInfo(state.time_zone)
        self._settings: RollupSettings = stores.settings.rollup
        self._ended = days.closed(now, self._zone)
        self._closed = days.closed(now, self._zone, self._settings.grace)
        self._oldest = days.months_before(self._ended, self._settings.keep_months)
        # What was never rolled up, or by another calendar, cannot have drifted.
        same_zone = state.rolled_zone == state.time_zone
        self._rolled = state.rolled_through if same_zone and state.rolled_through else date.min
        self._tally = Tally()
        self._log = logs.get("rollup")

    async def run(self, payload: RollupDaily) -> Mapping[str, Any]:
        """Does what a payload asks for; returns the result of the job."""
        if payload.cause == "new_reading":
            await self._marked()
        elif payload.cause == "requested" and payload.first and payload.last:
            wanted = days.between(max(payload.first, self._oldest), min(payload.last, self._ended))
            await self._spans(wanted, "requested")
        else:
            await self._day_close()
        if self._tally.written:
            # Watchers look by themselves, too.
            with suppress(StoreUnavailable):
                await self._stores.signals.publish(CHANNEL, json.dumps({"clients": [str(self._client_id)]}).encode())
        tally = self._tally
        return {"days": tally.days, "written": tally.written, "restated": tally.restated, "drifted": tally.drifted}

    async def _day_close(self) -> None:
        """What has ended and what is still restated as a rule; then compares the days before."""
        trailing = self._closed - ONE * self._settings.trailing_days
        if self._rolled == date.min:
            begin = await daily.first_day(self._stores.clickhouse, self._client_id) or self._closed
            first = max(begin, self._oldest)
        else:
            # Days that were still restated as a rule when this ran last, however long ago that was.
            first = min(trailing, self._rolled - ONE * (self._settings.trailing_days - 1))
        await self._spans(days.between(first, self._closed), "day_close")
        database = self._stores.database
        await rollups.advance_internal(database, self._client_id, self._closed, self._state.time_zone)
        if self._rolled != date.min:
            compared = days.between(self._closed - ONE * self._settings.check_days, first - ONE)
            await self._spans(compared, "reconciliation")
        async with database.transaction("rollup_spent") as tx:
            if adrift := await rollups.spend_internal(tx, self._client_id):
                self._log.warning("budget_spent_drift", client_id=str(self._client_id), projects=len(adrift))
            if not self._tally.drifted:
                await clear_alerts(tx, self._client_id, ["rollup_drift"], cause=self._cause)

    async def _marked(self) -> None:
        """Days that sources have stated anew after they had ended."""
        async with self._stores.database.transaction("rollup_take") as tx:
            marks = await rollups.take_marks_internal(tx, self._client_id)
        await self._spans([day for day in marks if day <= self._ended], "new_reading", marks)

    async def _spans(
        self, wanted: Sequence[date], cause: rollups.Cause, marks: Mapping[date, int] | None = None
    ) -> None:
        done = 0
        for first, last in days.spans(wanted):
            span = days.between(first, last)
            await self._roll(span, cause, {day: mark for day, mark in (marks or {}).items() if first <= day <= last})
            done += len(span)
            await self._progress(done, len(wanted), cause)

    async def _roll(self, span: Sequence[date], cause: rollups.Cause, marks: Mapping[date, int]) -> None:
        stores, client_id, zone_name = self._stores, self._client_id, self._state.time_zone
        span, starts = days.starts(span, self._zone)
        async with stores.database.transaction("rollup_daily") as tx:
            await rollups.enter_internal(tx, client_id)
            measured = await daily.read(stores.clickhouse, client_id, self._zone, span, starts)
            stored = await self._stored(tx, span)
            rows = [row for row in self._rows(measured, stored) if row.day >= self._oldest]
            adrift = await self._adrift(tx, rows, measured, stored, marks)
            written, restated = await rollups.write_internal(tx, client_id, zone_name, rows, cause, self._job_id)
            too_late = self._rows({key: each for key, each in measured.items() if key.day < self._oldest}, {})
            await rollups.quarantine_internal(tx, client_id, zone_name, too_late)
            if written:
                await rollups.spend_internal(tx, client_id, {row.campaign_id for row in rows})
            now_stored = await self._stored(tx, span) if written else stored
            found = self._compared(span, measured, stored, now_stored, adrift)
            await rollups.note_checks_internal(tx, client_id, found)
            await rollups.unmark_internal(tx, client_id, marks)
            if restated or adrift:
                await self._record(tx, span, restated, found)
        self._tally.days += len(span)
        self._tally.written += written
        self._tally.restated += restated
        self._tally.drifted += len(adrift)

    async def _stored(self, tx: Transaction, span: Sequence[date]) -> dict[CampaignDay, StoredDay]:
        rows = await rollups.stored_internal(tx, self._client_id, span[0], span[-1])
        return {CampaignDay(row.campaign_id, row.day): row for row in rows}

    def _rows(self, measured: Mapping[CampaignDay, Measured], stored: Mapping[CampaignDay, StoredDay]) -> list[NewDay]:
        """What has to be written: rows that are missing or say something else."""
        final = self._closed - ONE * self._settings.trailing_days
        rows = []
        for key, each in measured.items():
            before = stored.get(key)
            is_final = key.day <= final or (before is not None and before.is_final)
            wanted = (each.figures, self._state.time_zone, is_final)
            if before is None or (before.figures, before.time_zone, before.is_final) != wanted:
                rows.append(
                    NewDay(
                        key.campaign_id,
                        key.day,
                        each.figures,
                        before.figures if before else None,
                        is_final,
                        each.version,
                        each.delivery_source,
                        each.outcome_source,
                    )
                )
        for key, row in stored.items():
            # By the calendar of another time zone there were figures on this day, by the present one there are none.
            if key not in measured and row.time_zone != self._state.time_zone:
                rows.append(NewDay(key.campaign_id, key.day, NO_FIGURES, row.figures, row.is_final, 0, "", ""))
        return rows

    async def _adrift(
        self,
        tx: Transaction,
        rows: Sequence[NewDay],
        measured: Mapping[CampaignDay, Measured],
        stored: Mapping[CampaignDay, StoredDay],
        marks: Mapping[date, int],
    ) -> set[CampaignDay]:
        """Where the figures differ from what is measured though nobody has announced that it would."""
        zone, rolled = self._state.time_zone, self._rolled
        adrift = {
            CampaignDay(row.campaign_id, row.day)
            for row in rows
            if row.day <= rolled and row.day not in marks and row.before != row.figures
        }
        adrift |= {key for key, row in stored.items() if key not in measured and row.time_zone == zone}
        suspects = {key.day for key in adrift}
        if not suspects:
            return adrift
        await asyncio.sleep(_MARK_SECONDS)
        announced = await rollups.marked_internal(tx, self._client_id, min(suspects), max(suspects))
        return {key for key in adrift if key.day not in announced}

    def _compared(
        self,
        span: Sequence[date],
        measured: Mapping[CampaignDay, Measured],
        before: Mapping[CampaignDay, StoredDay],
        after: Mapping[CampaignDay, StoredDay],
        adrift: Collection[CampaignDay],
    ) -> list[Found]:
        """The sums of each day and currency on both sides."""
        wanted = _sums(((key.day, each.currency, each.figures) for key, each in measured.items()), self._oldest)
        was = _sums(((row.day, row.currency, row.figures) for row in before.values()), self._oldest)
        now = _sums(((row.day, row.currency, row.figures) for row in after.values()), self._oldest)
        currencies = {key: each.currency for key, each in measured.items()}
        currencies |= {key: row.currency for key, row in before.items()}
        differing: dict[tuple[date, str], int] = {}
        for key in adrift:
            place = (key.day, currencies[key])
            differing[place] = differing.get(place, 0) + 1
        found = []
        for place in sorted({*wanted, *was, *now}):
            expected, count = wanted.get(place, NO_FIGURES), differing.get(place, 0)
            fits = now.get(place, NO_FIGURES) == expected and not any(
                key.day == place[0] and key not in measured for key in adrift
            )
            state: rollups.CheckState = "drifted" if not fits else "healed" if count else "matched"
            held = was if count else now
            found.append(Found(*place, state, count, held.get(place, NO_FIGURES), expected))
        return found

    async def _record(self, tx: Transaction, span: Sequence[date], restated: int, found: Sequence[Found]) -> None:
        """Puts it on record that figures have changed, and tells that they were not what they should have been."""
        diff: dict[str, Any] = {"first_date": [None, span[0].isoformat()], "last_date": [None, span[-1].isoformat()]}
        if restated:
            await self._append(tx, "restate", diff | {"restated_campaign_days": [None, restated]})
        adrift = [each for each in found if each.state != "matched"]
        if adrift:
            named = sorted({each.day.isoformat() for each in adrift})
            self._log.warning("rollup_drift", client_id=str(self._client_id), days=named)
            await self._append(tx, "find_drift", diff | {"drifted_dates": [None, named]})
            await raise_alert(
                tx,
                Sighting(
                    self._client_id,
                    "rollup_drift",
                    "critical" if any(each.state == "drifted" for each in adrift) else "warning",
                    _ALERT_KEY,
                    f"daily figures of {len(named)} days were not what was measured, the first one on {named[0]}",
                    stored_details(AlertDetails(rollup=_details(adrift[0]))),
                ),
                cause=self._cause,
                settings=self._stores.settings.alerts,
            )

    async def _append(self, tx: Transaction, action: str, diff: Mapping[str, Any]) -> None:
        record = Record(
            actor_kind="system",
            actor_id=None,
            action=action,
            resource_type="rollup",
            resource_id=self._client_id,
            client_id=self._client_id,
            diff=diff,
            cause=self._cause,
        )
        await audit.append(tx, record)


def _details(found: Found) -> RollupAlertDetails:
    """The first figure of a day that differs; where only campaigns do, that is told by equal ones."""
    pairs = list(zip(Figures._fields, found.measured, found.stored, strict=True))
    name, expected, stored = next((each for each in pairs if each[1] != each[2]), pairs[0])
    scale = MICROS if name.endswith("_micros") else 1
    return RollupAlertDetails(
        date=found.day.isoformat(),
        figure=name.removesuffix("_micros"),
        expected=quotient(expected, scale) or "",
        found=quotient(stored, scale) or "",
    )


def _sums(rows: Any, oldest: date) -> dict[tuple[date, str], Figures]:
    sums: dict[tuple[date, str], Figures] = {}
    for day, currency, figures in rows:
        if day >= oldest:
            total = sums.get((day, currency), NO_FIGURES)
            sums[day, currency] = Figures(*map(sum, zip(total, figures, strict=True)))
    return sums
