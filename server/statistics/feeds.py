"""The state of watched campaigns, and the mailboxes of those who watch them."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

from mrm.statistics.v1 import statistics_service_pb2
from server.statistics import frames
from server.statistics.buckets import day_start
from storage.clickhouse.metrics import NO_FIGURES, Figures, LiveTotal
from storage.scope import Scope

ResetReason: TypeAlias = statistics_service_pb2.WatchMetricsResponse.ResetReason.ValueType
WINDOW_MOVED = statistics_service_pb2.WatchMetricsResponse.RESET_REASON_WINDOW_MOVED
CAMPAIGNS_CHANGED = statistics_service_pb2.WatchMetricsResponse.RESET_REASON_CAMPAIGNS_CHANGED


@dataclass(frozen=True, slots=True)
class Span:
    """The time that is watched: some days up to and with today, or a fixed one in Unix seconds."""

    days: int = 0
    start: int = 0
    end: int = 0

    def window(self, zone: ZoneInfo, now: datetime) -> tuple[int, int]:
        """The window at an instant, in Unix seconds, end excluded."""
        if not self.days:
            return self.start, self.end
        today = now.astimezone(zone).date()
        return day_start(today - timedelta(days=self.days - 1), zone), day_start(today + timedelta(days=1), zone)


class State(NamedTuple):
    """The state of a campaign, and its encoded form."""

    totals: Figures
    version: int
    present: bool
    entry: bytes


class Feed:
    """All that is watched of one client over one span.

    Attributes:
        window: Begin and end in Unix seconds; empty until first known.
        watermark: Everything acknowledged before this is in the states, in Unix milliseconds.
        ready: Whether the states cover the window and all campaigns that are watched now.
        campaigns: The client's campaigns and their currencies; None until first known.
        outdated: Whether the client's campaigns must be read again.
    """

    def __init__(self, client_id: UUID, span: Span) -> None:
        self.client_id = client_id
        self.span = span
        self.window = (0, 0)
        self.watermark = 0
        self.ready = False
        self.outdated = True
        self.campaigns: dict[UUID, str] | None = None
        self.mailboxes: set[Mailbox] = set()
        self._zone: ZoneInfo | None = None
        self._states: dict[UUID, State] = {}

    def join(self, mailbox: "Mailbox") -> None:
        """Adds a watcher."""
        self.mailboxes.add(mailbox)
        self.ready = False
        self.outdated |= mailbox.campaign_ids is not None and not mailbox.campaign_ids <= (self.campaigns or {}).keys()

    def selection(self) -> set[UUID] | None:
        """Campaigns to ask for; None for all of the client."""
        wanted: set[UUID] = set()
        for mailbox in self.mailboxes:
            if mailbox.campaign_ids is None:
                return None
            wanted |= mailbox.campaign_ids
        return wanted

    def adopt(self, zone: ZoneInfo, campaigns: dict[UUID, str]) -> None:
        """Takes over the client's time zone, and its campaigns with their currencies."""
        if self._zone not in (None, zone):
            self._move((0, 0))
        if self.campaigns is not None and campaigns.keys() != self.campaigns.keys():
            self.ready = False
            for mailbox in self.mailboxes:
                if mailbox.campaign_ids is None:
                    mailbox.restart(CAMPAIGNS_CHANGED)
        self._zone, self.campaigns, self.outdated = zone, campaigns, False

    def roll(self, now: datetime) -> None:
        """Moves the window with the clock. It never moves back: clocks of two processes differ a little."""
        if self._zone is not None and (window := self.span.window(self._zone, now)) > self.window:
            self._move(window)

    def apply(self, rows: Iterable[LiveTotal], asked: set[UUID] | None, watermark: int) -> bool:
        """Takes over totals.

        Args:
            rows: The totals.
            asked: Campaigns they were asked for, as `selection` was then: a watcher may have joined since.
            watermark: Read before the totals.

        Returns:
            Whether all of the rows are of known campaigns.
        """
        found = {row.campaign_id: row for row in rows}
        known = self.campaigns or {}
        for campaign_id in known.keys() if asked is None else asked & known.keys():
            self._take(campaign_id, found.get(campaign_id), known[campaign_id])
        self.watermark = max(self.watermark, watermark)
        wanted = self.selection()
        self.ready = asked is None or (wanted is not None and wanted <= asked)
        for mailbox in self.mailboxes:
            if mailbox.waiting_for_snapshot or mailbox.changed:
                mailbox.wake.set()
        return found.keys() <= known.keys()

    def entries(self, campaign_ids: Iterable[UUID] | None) -> list[bytes]:
        """Encoded states of some campaigns, or of all."""
        states = self._states
        chosen = states.keys() if campaign_ids is None else [each for each in campaign_ids if each in states]
        return [states[each].entry for each in sorted(chosen)]

    def _move(self, window: tuple[int, int]) -> None:
        self.window = window
        self.ready = False
        self._states.clear()
        for mailbox in self.mailboxes:
            mailbox.restart(WINDOW_MOVED)

    def _take(self, campaign_id: UUID, row: LiveTotal | None, currency: str) -> None:
        before = self._states.get(campaign_id)
        totals, version, present = (row.figures, row.version, True) if row else (NO_FIGURES, 0, False)
        if before is not None:
            if (totals, present) == (before.totals, before.present) or (row and version < before.version):
                return
            version = max(version, before.version)
        entry = frames.campaign_entry(campaign_id, totals, currency, version, present)
        self._states[campaign_id] = State(totals, version, present, entry)
        for mailbox in self.mailboxes:
            mailbox.put(campaign_id)


class Mailbox:
    """What one watcher has yet to be told. It holds ids, never states: those it will get are the newest ones.

    Attributes:
        feed: The states.
        scope: What the watcher may see.
        campaign_ids: Only these campaigns; None for all.
        wake: Set when there may be something to send.
        changed: Campaigns whose state changed since the last message.
        skipped: States among them that were replaced unsent.
        reset: Why the watch starts over, if it does.
        waiting_for_snapshot: Whether the next thing to send is a snapshot.
        revoked: Whether the watcher may no longer see the client.
    """

    def __init__(self, feed: Feed, scope: Scope, campaign_ids: frozenset[UUID] | None) -> None:
        self.feed = feed
        self.scope = scope
        self.campaign_ids = campaign_ids
        self.wake = asyncio.Event()
        self.changed: set[UUID] = set()
        self.skipped = 0
        self.reset: ResetReason | None = None
        self.waiting_for_snapshot = True
        self.revoked = False
        self._begun = False

    def put(self, campaign_id: UUID) -> None:
        """Notes a new state."""
        if self.waiting_for_snapshot or (self.campaign_ids is not None and campaign_id not in self.campaign_ids):
            return
        self.skipped += campaign_id in self.changed
        self.changed.add(campaign_id)

    def restart(self, reason: ResetReason) -> None:
        """Makes the watch start over, if it has begun."""
        if not self._begun:
            return
        self.changed.clear()
        self.skipped = 0
        self.reset = reason
        self.waiting_for_snapshot = True
        self.wake.set()

    def revoke(self) -> None:
        """Ends the watch."""
        self.revoked = True
        self.wake.set()

    def take_reset(self) -> ResetReason | None:
        """Why the watch starts over, once."""
        reason, self.reset = self.reset, None
        return reason

    def take_snapshot(self) -> list[bytes]:
        """The state of everything watched."""
        self._begun = True
        self.waiting_for_snapshot = False
        self.changed.clear()
        self.skipped = 0
        return self.feed.entries(self.campaign_ids)

    def take_update(self) -> tuple[list[bytes], int]:
        """The states that changed, and how many were skipped."""
        entries, skipped = self.feed.entries(self.changed), self.skipped
        self.changed.clear()
        self.skipped = 0
        return entries, skipped


def utc_now() -> datetime:
    """The clock by which windows move."""
    return datetime.now(UTC)


def by_client(rows: Iterable[tuple[UUID, UUID, str]]) -> Mapping[UUID, dict[UUID, str]]:
    """Client to campaign to currency."""
    grouped: dict[UUID, dict[UUID, str]] = {}
    for client_id, campaign_id, currency in rows:
        grouped.setdefault(client_id, {})[campaign_id] = currency
    return grouped
