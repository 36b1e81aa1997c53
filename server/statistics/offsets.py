"""Makes durable how far streams are: one statement for all that get on at the same time."""

import asyncio
from contextvars import Context
from uuid import UUID

from storage.postgres import streams
from storage.postgres.database import Database
from storage.postgres.streams import Move

_MOST = 500


class OffsetKeeper:
    """Moves the offsets of streams. While one statement is on its way, the moves that come collect for the next.

    Args:
        database: Where the offsets are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[Move, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None

    async def advance(self, move: Move) -> bool:
        """Moves one stream's offset; its events are durable by now.

        Returns:
            False when another writer has opened the stream, or the offset is not `from_offset`.

        Raises:
            StoreError: It is not known whether the offset is moved. So it is after TimeoutError.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((move, done))
        if self._task is None or self._task.done():
            # A context of its own: the statement is not bound to the call that happens to begin it.
            self._task = asyncio.create_task(self._run(), context=Context())
        return await done

    async def _run(self) -> None:
        while self._waiting:
            taken, self._waiting = _distinct(self._waiting)
            try:
                moved = await streams.advance(self._database, [move for move, _ in taken])
            except Exception as error:
                for _, done in taken:
                    if not done.done():
                        done.set_exception(error)
            else:
                for move, done in taken:
                    if not done.done():
                        done.set_result((move.client_id, move.stream_id) in moved)


_Waiting = list[tuple[Move, asyncio.Future[bool]]]


def _distinct(waiting: _Waiting) -> tuple[_Waiting, _Waiting]:
    """Takes the first move of each stream; a fenced writer and its successor may both have one."""
    taken: _Waiting = []
    left: _Waiting = []
    seen: set[tuple[UUID, str]] = set()
    for item in waiting:
        stream = (item[0].client_id, item[0].stream_id)
        if stream in seen or len(taken) >= _MOST:
            left.append(item)
        else:
            seen.add(stream)
            taken.append(item)
    return taken, left
