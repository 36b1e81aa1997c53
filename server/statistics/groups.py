"""Who may insert next, and which small batches go together.

All batches wait in one queue. Insert slots go round the clients that have work waiting, an equal number of bytes to
each, so that a flood of one client never holds up another. Small batches that wait at the same time share an insert;
so do large ones of one client that wait behind its running inserts, for an insert costs much whatever is in it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, field
from uuid import UUID

from server.settings import IngestSettings
from server.statistics.wire import Batch
from storage.clickhouse import events
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.events import BatchRejected, Bounds, Group
from storage.clickhouse.pseudonyms import Salt

# Bytes that a client may insert before it is another's turn.
_QUANTUM = 256 * 2**10
# A client that had a faulty batch inserts alone for this long: its next one would spoil the insert for others again.
_SUSPECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Work:
    """A batch to insert.

    Attributes:
        client_id: The client whose campaigns the events must belong to.
        batch: The events.
        bounds: Event times to accept.
        salt: Key of the client's pseudonyms.
    """

    client_id: UUID
    batch: Batch
    bounds: Bounds
    salt: Salt


@dataclass(slots=True, eq=False)
class _Entry:
    """Something that waits for an insert.

    Attributes:
        client_id: Whose turn it takes.
        size: Its bytes.
        done: True once it is stored together with others; False when a slot is its own.
        work: What may be stored together with others; None if it wants a slot of its own.
        small: Whether those others may be other clients'.
    """

    client_id: UUID
    size: int
    done: asyncio.Future[bool]
    work: Work | None
    small: bool


@dataclass(slots=True, eq=False)
class _Lane:
    """What one client has waiting, and how many bytes it may insert in this round."""

    client_id: UUID
    entries: deque[_Entry] = field(default_factory=deque)
    credit: int = 0


class FairQueue:
    """Entries in deficit round robin over their clients."""

    def __init__(self) -> None:
        self._lanes: dict[UUID, _Lane] = {}
        self._ring: deque[_Lane] = deque()
        self._small_bytes = 0
        self._small_events = 0
        self._count = 0
        self._small_count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def small_only(self) -> bool:
        """Whether everything that waits may share an insert with other clients."""
        return self._count == self._small_count

    def fills(self, most_events: int, most_bytes: int) -> bool:
        """Whether the small batches that wait are enough for a whole shared insert."""
        return self._small_events >= most_events or self._small_bytes >= most_bytes

    def push(self, entry: _Entry, *, front: bool = False) -> None:
        """Adds an entry behind those of its client, or before them."""
        lane = self._lanes.get(entry.client_id)
        if lane is None:
            lane = self._lanes[entry.client_id] = _Lane(entry.client_id)
            self._ring.append(lane)
        (lane.entries.appendleft if front else lane.entries.append)(entry)
        self._account(entry, 1)

    def pop(self, may_take: Callable[[_Entry], bool] = lambda entry: True) -> _Entry | None:
        """Takes the next entry.

        Args:
            may_take: Whether it may be this one.

        Returns:
            None if there is no such entry, or only behind one that may not be taken.
        """
        skipped = 0
        while skipped < len(self._ring):
            lane = self._ring[0]
            head = lane.entries[0]
            if not may_take(head):
                skipped += 1
                self._ring.rotate(-1)
            elif lane.credit >= head.size:
                self._take(lane)
                return head
            else:
                skipped = 0
                lane.credit += _QUANTUM
                self._ring.rotate(-1)
        return None

    def pop_small(self, most_events: int, most_bytes: int) -> list[_Entry]:
        """Takes small batches, one of each client in turn, as long as they fit together."""
        taken: list[_Entry] = []
        idle = 0
        while self._ring and idle < len(self._ring):
            lane = self._ring[0]
            head = lane.entries[0]
            if head.work is None or not head.small or head.work.batch.count > most_events or head.size > most_bytes:
                idle += 1
                self._ring.rotate(-1)
                continue
            idle = 0
            most_events -= head.work.batch.count
            most_bytes -= head.size
            # What it takes now beyond its credit it pays back in the next rounds.
            self._take(lane, keep_turn=False)
            if not head.done.done():
                taken.append(head)
        return taken

    def pop_large(self, client_id: UUID, most_events: int, most_bytes: int) -> list[_Entry]:
        """Takes the large batches of a client that are next, as long as they fit together."""
        taken: list[_Entry] = []
        while lane := self._lanes.get(client_id):
            head = lane.entries[0]
            if head.work is None or head.small or head.work.batch.count > most_events or head.size > most_bytes:
                break
            most_events -= head.work.batch.count
            most_bytes -= head.size
            # `_take` looks at the lane whose turn it is.
            self._ring.rotate(-self._ring.index(lane))
            self._take(lane)
            if not head.done.done():
                taken.append(head)
        return taken

    def _take(self, lane: _Lane, *, keep_turn: bool = True) -> None:
        entry = lane.entries.popleft()
        lane.credit -= entry.size
        self._account(entry, -1)
        if not lane.entries:
            self._ring.popleft()
            del self._lanes[lane.client_id]
        elif not keep_turn:
            self._ring.rotate(-1)

    def _account(self, entry: _Entry, sign: int) -> None:
        self._count += sign
        if entry.work is not None and entry.small:
            self._small_count += sign
            self._small_bytes += sign * entry.size
            self._small_events += sign * entry.work.batch.count


class InsertQueue:
    """Inserts batches, several at a time, fairly, and small ones together.

    Args:
        clickhouse: Where events go.
        settings: Limits.
    """

    def __init__(self, clickhouse: ClickHouse, settings: IngestSettings) -> None:
        self._clickhouse = clickhouse
        self._settings = settings
        self._queue = FairQueue()
        self._running = 0
        self._sharing = 0
        self._large_of: dict[UUID, int] = {}
        self._company = False
        self._timer: asyncio.TimerHandle | None = None
        self._waited = False
        self._suspects: dict[UUID, float] = {}
        # The loop itself holds tasks only weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    async def insert(self, work: Work, *, alone: bool = False) -> None:
        """Tries once to store a batch. Doing it again changes nothing.

        Args:
            work: The batch.
            alone: Never together with others.

        Raises:
            BatchRejected: Some event of this very batch is at fault; nothing of it is stored.
            StoreError: It is not known whether anything is stored. So it is after TimeoutError.
        """
        size = len(work.batch.data)
        fits = self._small(work.batch) or size <= self._settings.client_group_bytes
        may_share = fits and not alone and not self._suspected(work.client_id)
        entry = self._entry(work.client_id, size, work if may_share else None)
        if await self._turn(entry):
            return
        try:
            await self._insert_one(work)
        finally:
            self._release()

    @asynccontextmanager
    async def slot(self, client_id: UUID, size: int) -> AsyncIterator[None]:
        """A turn for whatever a client has to write, of about this many bytes."""
        await self._turn(self._entry(client_id, size, None))
        try:
            yield
        finally:
            self._release()

    def suspect(self, client_id: UUID) -> None:
        """Keeps a client's batches away from those of others for a while."""
        now = asyncio.get_running_loop().time()
        self._suspects = {id_: until for id_, until in self._suspects.items() if until > now}
        self._suspects[client_id] = now + _SUSPECT_SECONDS

    def _suspected(self, client_id: UUID) -> bool:
        return self._suspects.get(client_id, 0.0) > asyncio.get_running_loop().time()

    def _small(self, batch: Batch) -> bool:
        return batch.count <= self._settings.small_events and len(batch.data) <= self._settings.small_bytes

    def _entry(self, client_id: UUID, size: int, work: Work | None) -> _Entry:
        small = work is not None and self._small(work.batch)
        return _Entry(client_id, size, asyncio.get_running_loop().create_future(), work, small)

    async def _turn(self, entry: _Entry) -> bool:
        """Waits until an entry is stored (True) or has a slot of its own (False)."""
        self._queue.push(entry)
        self._dispatch()
        try:
            return await entry.done
        except asyncio.CancelledError:
            # The slot may have been given in the very moment of the cancellation.
            done = entry.done
            if done.done() and not done.cancelled() and done.exception() is None and not done.result():
                self._release()
            raise

    def _release(self) -> None:
        self._running -= 1
        self._dispatch()

    def _dispatch(self) -> None:
        """Gives free slots to whoever is next."""
        limits = self._settings
        while self._running < limits.inserts_in_flight and self._queue:
            if self._is_worth_waiting():
                return
            entry = self._queue.pop(self._may_start)
            if entry is None:
                return
            if entry.done.done():
                continue
            self._running += 1
            if entry.work is None:
                entry.done.set_result(False)
                continue
            count, client_id = entry.work.batch.count, entry.client_id
            if entry.small:
                left = limits.group_events - count, limits.group_bytes - entry.size
                entries = [entry, *self._queue.pop_small(*left)]
                self._sharing += 1
                self._company = len(entries) > 1
                self._stop_waiting()
            else:
                left = limits.client_group_events - count, limits.client_group_bytes - entry.size
                entries = [entry, *self._queue.pop_large(client_id, *left)]
                self._large_of[client_id] = self._large_of.get(client_id, 0) + 1
            # A context of its own: the deadline of whose call happens to run this is not that of the others.
            task = asyncio.create_task(self._insert_group(entries), context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _may_start(self, entry: _Entry) -> bool:
        """Whether an entry need not wait for company: some that share are on their way, and more make them smaller."""
        if entry.work is None:
            return True
        running = self._sharing if entry.small else self._large_of.get(entry.client_id, 0)
        return running < self._settings.group_inserts

    def _ended(self, small: bool, client_id: UUID) -> None:
        if small:
            self._sharing -= 1
        else:
            self._large_of[client_id] -= 1
            if not self._large_of[client_id]:
                del self._large_of[client_id]
        self._release()

    def _is_worth_waiting(self) -> bool:
        """Whether small batches should wait a moment for others: never while they come one by one."""
        limits = self._settings
        full = self._queue.fills(limits.group_events, limits.group_bytes)
        if full or not self._queue.small_only or not (self._sharing or self._company):
            self._stop_waiting()
            return False
        if self._timer is None and not self._waited:
            self._timer = asyncio.get_running_loop().call_later(limits.group_delay, self._wait_is_over)
        return not self._waited

    def _wait_is_over(self) -> None:
        # A flag, not a look at the clock: timers may fire a moment early.
        self._timer = None
        self._waited = True
        self._dispatch()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._waited = False

    async def _insert_group(self, entries: list[_Entry]) -> None:
        """Stores batches together and tells each what became of it."""
        small, client_id = entries[0].small, entries[0].client_id
        works = [entry.work for entry in entries if entry.work is not None]
        try:
            await self._insert_works(works)
        except BatchRejected as error:
            if len(entries) == 1:
                _settle(entries, error)
            else:
                # Nothing is stored, and nobody knows whose fault it is: now each for itself.
                for entry in entries:
                    entry.work = None
                    self._queue.push(entry, front=True)
        except Exception as error:
            _settle(entries, error)
        else:
            _settle(entries, None)
        finally:
            self._ended(small, client_id)

    async def _insert_works(self, works: Sequence[Work]) -> None:
        if len(works) == 1:
            await self._insert_one(works[0])
            return
        # What all of them accept; a batch that only fails this is inserted again by itself.
        bounds = Bounds(max(work.bounds.lower for work in works), min(work.bounds.upper for work in works))
        parts: dict[UUID, list[bytes]] = {}
        salts: dict[UUID, Salt] = {}
        for work in works:
            parts.setdefault(work.client_id, []).append(work.batch.data)
            salts[work.client_id] = work.salt
        # Well-formed lists of events that follow one another are one list: batches of one client need no group each.
        groups = [Group(client_id, b"".join(part), salts[client_id]) for client_id, part in parts.items()]
        timeout = self._settings.insert_timeout
        if len(groups) == 1:
            only = groups[0]
            await events.insert(self._clickhouse, only.client_id, only.batch, bounds, only.salt, timeout=timeout)
        else:
            await events.insert_groups(self._clickhouse, groups, bounds, timeout=timeout)

    async def _insert_one(self, work: Work) -> None:
        await events.insert(
            self._clickhouse,
            work.client_id,
            work.batch.data,
            work.bounds,
            work.salt,
            timeout=self._settings.insert_timeout,
        )


def _settle(entries: Sequence[_Entry], error: Exception | None) -> None:
    for entry in entries:
        if entry.done.done():
            continue
        if error is None:
            entry.done.set_result(True)
        else:
            entry.done.set_exception(error)
