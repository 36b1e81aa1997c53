"""One statement for all who ask for the same at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Together(Generic[Item, Answer]):
    """Gathers what comes while the statement before runs, and asks for all of it with the next one.

    Nobody waits for others: the first asks at once. Under load a statement serves many.

    Args:
        ask: Answers several, in their order.
        most: The most at a time.
        size: For how many one counts; one that counts for more than `most` is asked for by itself.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        most: int,
        size: Callable[[Item], int] = lambda item: 1,
    ) -> None:
        self._ask = ask
        self._most = most
        self._size = size
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Answer:
        """The answer for one."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._asking is None:
            # A context of its own: the statement has not the deadline of the call that happens to begin it.
            self._asking = asyncio.create_task(self._ask_all(), context=Context())
        return await answer

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                count = self._fitting()
                now, self._waiting = self._waiting[:count], self._waiting[count:]
                try:
                    answers = await self._ask([item for item, _ in now])
                except Exception as error:
                    for _, answer in now:
                        if not answer.done():
                            answer.set_exception(error)
                else:
                    for (_, answer), given in zip(now, answers, strict=True):
                        if not answer.done():
                            answer.set_result(given)
        finally:
            self._asking = None

    def _fitting(self) -> int:
        """How many of those that wait go together."""
        total = 0
        for count, (item, _) in enumerate(self._waiting):
            total += self._size(item)
            if count and total > self._most:
                return count
        return len(self._waiting)
