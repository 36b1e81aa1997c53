"""The job that tells a platform what we want of its campaigns, and reads what it says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from server.campaigns.observing import observed, record_observed
from server.jobs.handling import JobContext, JobFailed
from server.platforms.interface import CampaignConnector, PlatformCampaign
from server.sync import pushing, running, trouble
from server.sync.account import OpenAccount
from server.sync.making import ENTITIES, QUEUE
from storage.errors import Archived
from storage.postgres import sync_streams
from storage.postgres.jobs import Job
from storage.postgres.sync_streams import Stream

__all__ = ["QUEUE", "TYPE", "handle"]

TYPE: Final = ENTITIES


async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
    """Tells and reads an account, or makes a job for each stream whose time has come."""
    return await running.read(job, context, "entities", _work)


async def _work(job: Job, context: JobContext, account: OpenAccount) -> Mapping[str, Any]:
    connector = account.connector
    if not isinstance(connector, CampaignConnector):
        raise JobFailed("no campaigns run there", final=True)
    database, integration_id = context.stores.database, account.integration.id
    stream = await sync_streams.begin_internal(database, integration_id, "entities")
    reading = Entities(context, account, connector, stream)
    pushed = await pushing.push(context, account, connector, reading.whole)
    result = await reading.run()
    async with context.transaction("sync_entities_done") as tx:
        await sync_streams.succeed_internal(
            tx, integration_id, "entities", cursor=reading.cursor, whole=reading.was_whole
        )
        await trouble.recovered_stream(tx, job, account.integration, "entities")
    return {**result, **pushed}


class Entities:
    """Reads the campaigns of an account.

    Every page is stored before the next one is asked for, and the platform's mark is taken before the first and stored
    after the last: whatever is cut off is read again.

    Args:
        context: Whose try it is.
        account: Whom to ask.
        connector: The same.
        stream: How far it was read.

    Attributes:
        cursor: The platform's mark for the next time.
        was_whole: All campaigns were read.
    """

    def __init__(self, context: JobContext, account: OpenAccount, connector: CampaignConnector, stream: Stream) -> None:
        self._context = context
        self._account = account
        self._connector = connector
        self._stream = stream
        self._read = 0
        self._linked = 0
        self._gone = 0
        self.cursor = stream.cursor
        self.was_whole = False

    async def run(self) -> Mapping[str, Any]:
        """Reads what has changed, or all if nobody can tell; returns what there was."""
        asked_at = datetime.now(UTC)
        changed = await self._changed()
        if changed is None:
            await self.whole()
        else:
            ids, gone = changed
            for part in _parts(ids, self._connector.capabilities.page_size):
                page = await self._account.ask(
                    lambda account, part=part: self._connector.list_campaigns(account, ids=part)  # type: ignore[misc]
                )
                await self._store(page.campaigns, asked_at)
            if gone:
                await self._store((), asked_at, gone)
        return {"read": self._read, "linked": self._linked, "gone": self._gone, "whole": self.was_whole}

    async def whole(self) -> None:
        """Reads all campaigns; those that were there and are not listed any more are gone."""
        asked_at, page = datetime.now(UTC), ""
        while True:
            found = await self._account.ask(
                lambda account, page=page: self._connector.list_campaigns(account, page=page)  # type: ignore[misc]
            )
            await self._store(found.campaigns, asked_at)
            page = found.next_page
            if not page:
                break
        async with self._context.transaction("sync_unseen") as tx:
            gone = await sync_streams.unseen_internal(tx, self._account.integration.id, asked_at)
        if gone:
            await self._store((), asked_at, gone)
        self.was_whole = True

    async def _changed(self) -> tuple[list[str], list[str]] | None:
        """Which campaigns have changed and which are gone; None if all are to be read."""
        if not self._connector.capabilities.changes:
            return None
        database, integration = self._context.stores.database, self._account.integration
        linked = await sync_streams.measured_internal(database, integration.id, None)
        ids = running.askable(each.external_id for each in linked)
        changes = await self._account.ask(
            lambda account: self._connector.changes(account, self._stream.cursor, campaign_ids=ids)
        )
        self.cursor = changes.cursor
        overdue = datetime.now(UTC) - self._context.stores.settings.sync.whole_every
        if changes.complete or self._stream.whole_at is None or self._stream.whole_at < overdue:
            return None
        # What was linked since has not been read for its campaign yet.
        unread = await sync_streams.unobserved_internal(database, integration.id, ids)
        return sorted({*changes.campaign_ids, *unread} - set(changes.gone)), list(changes.gone)

    async def _store(self, seen: Sequence[PlatformCampaign], at: datetime, gone: Sequence[str] = ()) -> None:
        if not seen and not gone:
            return
        context, integration_id = self._context, self._account.integration.id
        try:
            await self._stored(seen, at, gone)
        except Archived:
            # One of an archived client cannot be taken a step on: the others can, and it is still seen.
            for each in seen:
                try:
                    await self._stored([each], at, ())
                except Archived:
                    async with context.transaction("sync_archived") as tx:
                        await sync_streams.see_internal(tx, integration_id, {each.external_id: observed(each, at)}, at)
            if gone:
                await self._stored((), at, gone)
        self._read += len(seen)
        self._gone += len(gone)
        await context.progress(self._read, 0, "campaigns")

    async def _stored(self, seen: Sequence[PlatformCampaign], at: datetime, gone: Sequence[str]) -> None:
        integration_id = self._account.integration.id
        async with self._context.transaction("sync_entities") as tx:
            linked = await record_observed(tx, integration_id, seen, at, gone=gone)
            await sync_streams.see_internal(
                tx, integration_id, {each.external_id: observed(each, at) for each in seen}, at
            )
            await sync_streams.gone_internal(tx, integration_id, gone, at)
        self._linked += len(linked)


def _parts(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
