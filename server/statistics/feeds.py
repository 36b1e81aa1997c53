"""The state of watched campaigns, and who watches them.

Watchers hold positions, never states or lists of changes: what one has yet to be told is whatever changed after the
sequence it has seen. So a change costs the same for one watcher and for thousands, and one that does not read costs
nothing.
"""

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

from mrm.statistics.v1 import statistics_service_pb2
from server.statistics import frames
from server.statistics.buckets import day_start
from storage.clickhouse.metrics import NO_FIGURES, Figures, LiveTotal
from storage.postgres.reach import ClientCampaign
from storage.scope import Scope

ResetReason: TypeAlias = statistics_service_pb2.WatchMetricsResponse.ResetReason.ValueType
WINDOW_MOVED = statistics_service_pb2.WatchMetricsResponse.RESET_REASON_WINDOW_MOVED
CAMPAIGNS_CHANGED = statistics_service_pb2.WatchMetricsResponse.RESET_REASON_CAMPAIGNS_CHANGED

# Watchers have no timers of their own: what is due is looked for this often.
LATE_SECONDS = 0.25

# Slow readers differ in what they have missed; updates for so many kinds of them are kept for others to share.
_MOST_SHARED_UPDATES = 16


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


@dataclass(frozen=True, slots=True)
class Choice:
    """Which campaigns of a client are watched: those that pass every part; an empty part lets all pass."""

    campaign_ids: frozenset[UUID] = frozenset()
    project_ids: frozenset[UUID] = frozenset()
    platforms: frozenset[str] = frozenset()

    @property
    def everything(self) -> bool:
        """Whether all campaigns of the client pass."""
        return not (self.campaign_ids or self.project_ids or self.platforms)

    def of(self, campaigns: Mapping[UUID, ClientCampaign]) -> frozenset[UUID]:
        """Ids of the campaigns that pass."""
        return frozenset(campaign_id for campaign_id, campaign in campaigns.items() if self._passes(campaign))

    def _passes(self, campaign: ClientCampaign) -> bool:
        return (
            (not self.campaign_ids or campaign.campaign_id in self.campaign_ids)
            and (not self.project_ids or campaign.project_id in self.project_ids)
            and (not self.platforms or campaign.platform in self.platforms)
        )


class State(NamedTuple):
    """The state of a campaign, its encoded form, and the feed's sequence at which it became so."""

    totals: Figures
    version: int
    present: bool
    entry: bytes
    sequence: int


class Feed:
    """All that is watched of one client over one span.

    Attributes:
        window: Begin and end in Unix seconds; empty until first known.
        watermark: Everything acknowledged before this is in the states, in Unix milliseconds.
        ready: Whether the states cover the window and all campaigns that are watched now.
        campaigns: The client's campaigns; None until first known.
        outdated: Whether the client's campaigns must be read again.
        sequence: Grows with every change of any state.
        states: States by campaign.
    """

    def __init__(self, client_id: UUID, span: Span) -> None:
        self.client_id = client_id
        self.span = span
        self.window = (0, 0)
        self.watermark = 0
        self.ready = False
        self.outdated = True
        self.campaigns: dict[UUID, ClientCampaign] | None = None
        self.sequence = 0
        self.states: dict[UUID, State] = {}
        self._audiences: dict[Choice, Audience] = {}
        self._zone: ZoneInfo | None = None

    @property
    def mailboxes(self) -> Iterator["Mailbox"]:
        """All watchers."""
        return (mailbox for audience in self._audiences.values() for mailbox in audience.mailboxes)

    @property
    def watched(self) -> bool:
        """Whether anyone watches."""
        return bool(self._audiences)

    def join(self, choice: Choice, scope: Scope, draining: asyncio.Event) -> "Mailbox":
        """Adds a watcher.

        Args:
            choice: The campaigns it watches.
            scope: What it may see.
            draining: Set when the server shuts down.
        """
        audience = self._audiences.get(choice)
        if audience is None:
            audience = self._audiences[choice] = Audience(self, choice)
        mailbox = Mailbox(audience, scope, draining)
        audience.mailboxes.add(mailbox)
        self.ready = False
        # One that is not known yet was made a moment ago.
        self.outdated |= not choice.campaign_ids <= (self.campaigns or {}).keys()
        return mailbox

    def leave(self, mailbox: "Mailbox") -> None:
        """Takes a watcher away."""
        audience = mailbox.audience
        audience.mailboxes.discard(mailbox)
        if not audience.mailboxes:
            self._audiences.pop(audience.choice, None)

    def selection(self) -> set[UUID] | None:
        """Campaigns to ask for; None for all of the client."""
        wanted: set[UUID] = set()
        for audience in self._audiences.values():
            if audience.choice.everything:
                return None
            wanted |= audience.campaign_ids
        return wanted

    def adopt(self, zone: ZoneInfo, campaigns: dict[UUID, ClientCampaign]) -> None:
        """Takes over the client's time zone, and its campaigns."""
        if self._zone not in (None, zone):
            self._move((0, 0))
        changed = self.campaigns is not None and campaigns.keys() != self.campaigns.keys()
        self._zone, self.campaigns, self.outdated = zone, campaigns, False
        if changed:
            self.ready = False
            for gone in self.states.keys() - campaigns.keys():
                del self.states[gone]
        for audience in self._audiences.values():
            audience.resolve()

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
        wanted = known.keys() if asked is None else asked & known.keys()
        changed = {each for each in wanted if self._take(each, found.get(each), known[each].currency)}
        if changed:
            self.sequence += 1
            for audience in self._audiences.values():
                audience.note(changed)
        self.watermark = max(self.watermark, watermark)
        selection = self.selection()
        self.ready = asked is None or (selection is not None and selection <= asked)
        return found.keys() <= known.keys()

    def _move(self, window: tuple[int, int]) -> None:
        self.window = window
        self.ready = False
        self.states.clear()
        for audience in self._audiences.values():
            audience.restart(WINDOW_MOVED)

    def _take(self, campaign_id: UUID, row: LiveTotal | None, currency: str) -> bool:
        before = self.states.get(campaign_id)
        totals, version, present = (row.figures, row.version, True) if row else (NO_FIGURES, 0, False)
        if before is not None:
            if (totals, present) == (before.totals, before.present) or (row and version < before.version):
                return False
            version = max(version, before.version)
        entry = frames.campaign_entry(campaign_id, totals, currency, version, present)
        self.states[campaign_id] = State(totals, version, present, entry, self.sequence + 1)
        return True


class Audience:
    """The watchers of a feed that chose the same campaigns: they are told the same, in the same bytes.

    Attributes:
        feed: The states.
        choice: What they chose.
        campaign_ids: The campaigns that it is now.
        mailboxes: The watchers.
        sequence: Sequence of the feed at the last change of any of the campaigns.
        changes: Changes of state so far, each campaign's counted.
    """

    def __init__(self, feed: Feed, choice: Choice) -> None:
        self.feed = feed
        self.choice = choice
        self.campaign_ids: frozenset[UUID] = frozenset()
        self.mailboxes: set[Mailbox] = set()
        self.sequence = feed.sequence
        self.changes = 0
        self._snapshot: tuple[object, list[bytes]] = (None, [])
        self._updates: dict[tuple[int, int], list[bytes]] = {}
        if feed.campaigns is not None:
            self.campaign_ids = choice.of(feed.campaigns)

    def resolve(self) -> None:
        """Looks again which campaigns the choice is; the watches start over if these are others than before."""
        found = self.choice.of(self.feed.campaigns or {})
        if found != self.campaign_ids:
            self.campaign_ids, self.sequence = found, self.feed.sequence
            self.restart(CAMPAIGNS_CHANGED)

    def note(self, changed: Set[UUID]) -> None:
        """Notes campaigns that changed at the feed's sequence."""
        count = len(self.campaign_ids & changed)
        if count:
            self.sequence = self.feed.sequence
            self.changes += count
            self._updates.clear()

    def restart(self, reason: ResetReason) -> None:
        """Makes all of the watches start over."""
        self._updates.clear()
        for mailbox in self.mailboxes:
            mailbox.restart(reason)

    def snapshot(self) -> list[bytes]:
        """The state of everything watched: messages that lack their trailer."""
        feed = self.feed
        key = (self.sequence, feed.window, self.campaign_ids)
        if self._snapshot[0] != key:
            states = feed.states
            entries = [states[each].entry for each in sorted(self.campaign_ids) if each in states]
            self._snapshot = (key, frames.snapshot(entries, feed.window))
        return self._snapshot[1]

    def update(self, seen: int, changes: int) -> list[bytes]:
        """What changed since a sequence: messages that lack their trailer.

        Args:
            seen: The sequence.
            changes: Changes since then; those beyond one for each campaign were skipped.
        """
        shared = self._updates.get((seen, changes))
        if shared is None:
            states = self.feed.states
            news = sorted(each for each in self.campaign_ids if each in states and states[each].sequence > seen)
            shared = frames.update([states[each].entry for each in news], changes - len(news))
            if len(self._updates) < _MOST_SHARED_UPDATES:
                self._updates[(seen, changes)] = shared
        return shared


class Mailbox:
    """What one watcher has been told, and how to wake it.

    Attributes:
        audience: Those who are told the same.
        scope: What the watcher may see.
        draining: Set when the server shuts down.
        reset: Why the watch starts over, if it does.
        waiting_for_snapshot: Whether the next thing to send is a snapshot.
        revoked: Whether the watcher may no longer see the client.
        due: When to wake the watcher though there is no news, by the loop's clock.
        cut_off_at: When to give up on the message that is being written, by the loop's clock.
    """

    __slots__ = (
        "_begun",
        "_changes",
        "_cut_off",
        "_seen",
        "_task",
        "_waiter",
        "audience",
        "cut_off_at",
        "draining",
        "due",
        "reset",
        "revoked",
        "scope",
        "waiting_for_snapshot",
    )

    def __init__(self, audience: Audience, scope: Scope, draining: asyncio.Event) -> None:
        self.audience = audience
        self.scope = scope
        self.draining = draining
        self.reset: ResetReason | None = None
        self.waiting_for_snapshot = True
        self.revoked = False
        self.due = math.inf
        self.cut_off_at = math.inf
        self._seen = self._changes = 0
        self._begun = self._cut_off = False
        self._waiter: asyncio.Future[bool] | None = None
        self._task: asyncio.Task[object] | None = None

    @property
    def feed(self) -> Feed:
        """The states."""
        return self.audience.feed

    @property
    def changed(self) -> bool:
        """Whether a campaign changed since the last message."""
        return self._seen < self.audience.sequence

    @property
    def news(self) -> bool:
        """Whether there may be something to send."""
        return self.waiting_for_snapshot or self.changed

    async def wait(self, until: float) -> bool:
        """Waits for news, at most until a time of the loop's clock (and up to `LATE_SECONDS` longer).

        Returns:
            Whether there may be something to send; False when the time is over.
        """
        loop = asyncio.get_running_loop()
        if until <= loop.time():
            return False
        self.due = until
        self._waiter = loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def wake(self, news: bool = True) -> bool:
        """Wakes the watcher if it waits; returns whether it does.

        Args:
            news: Whether there is something to send.
        """
        waiter = self._waiter
        if waiter is None or waiter.done():
            return False
        waiter.set_result(news)
        return True

    def tend(self, now: float) -> bool:
        """Does what is due by the loop's clock; returns whether that woke the watcher."""
        if self.cut_off_at <= now:
            self.cut_off()
        if self._waiter is None:
            return False
        if self.draining.is_set() or self.revoked or self.reset is not None:
            return self.wake()
        return self.due <= now and self.wake(news=False)

    def begin_write(self, until: float) -> None:
        """Says that a message is on its way, and until when it may be."""
        self._task = asyncio.current_task()
        self.cut_off_at = until

    def end_write(self) -> None:
        """Says that it has left."""
        self.cut_off_at = math.inf

    def cut_off(self) -> None:
        """Gives up on the message that is being written."""
        self.cut_off_at = math.inf
        self._cut_off = True
        if self._task is not None:
            self._task.cancel()

    def was_cut_off(self) -> bool:
        """Whether a cancellation is the one that `cut_off` caused; it is taken back then."""
        if self._cut_off and self._task is not None:
            self._cut_off = False
            # Cancelled by someone else, too: then the call has ended in any case.
            return self._task.uncancel() == 0
        return False

    def restart(self, reason: ResetReason) -> None:
        """Makes the watch start over, if it has begun."""
        if not self._begun:
            return
        self._catch_up()
        self.reset = reason
        self.waiting_for_snapshot = True

    def revoke(self) -> None:
        """Ends the watch."""
        self.revoked = True
        self.wake()

    def take_reset(self) -> ResetReason | None:
        """Why the watch starts over, once."""
        reason, self.reset = self.reset, None
        return reason

    def take_snapshot(self) -> list[bytes]:
        """The state of everything watched: messages that lack their trailer."""
        self._begun = True
        self.waiting_for_snapshot = False
        self._catch_up()
        return self.audience.snapshot()

    def take_update(self) -> list[bytes]:
        """What changed since the last message: messages that lack their trailer."""
        messages = self.audience.update(self._seen, self.audience.changes - self._changes)
        self._catch_up()
        return messages

    def _catch_up(self) -> None:
        self._seen, self._changes = self.audience.sequence, self.audience.changes


def utc_now() -> datetime:
    """The clock by which windows move."""
    return datetime.now(UTC)


def by_client(rows: Iterable[ClientCampaign]) -> Mapping[UUID, dict[UUID, ClientCampaign]]:
    """Client to campaigns by id."""
    grouped: dict[UUID, dict[UUID, ClientCampaign]] = {}
    for row in rows:
        grouped.setdefault(row.client_id, {})[row.campaign_id] = row
    return grouped
