"""Open streams: ended when the session or key behind them ends, asked to finish when the server drains."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from server.rpc import logs
from server.rpc.call import Principal
from server.rpc.errors import Unauthenticated


class Guard:
    """One open stream."""

    def __init__(self, task: asyncio.Task[object]) -> None:
        self._task = task
        self._ended = False

    def end(self) -> None:
        """Ends the stream because its credentials ended."""
        self._ended = True
        self._task.cancel()

    def raise_if_ended(self) -> None:
        """Turns the cancellation that `end` caused into the error to answer."""
        if self._ended:
            self._task.uncancel()
            raise Unauthenticated("the session or key behind this stream has ended", reason="CREDENTIALS_ENDED")


class StreamRegistry:
    """All open streams of a process.

    Args:
        alive: Given credentials, returns those that still work.
        interval: Seconds between two checks.
    """

    def __init__(self, alive: Callable[[list[Principal]], Awaitable[set[str]]], interval: float) -> None:
        self._alive = alive
        self._interval = interval
        self._guards: dict[str, set[Guard]] = defaultdict(set)
        self._principals: dict[str, Principal] = {}
        self._woken = asyncio.Event()
        self._log = logs.get("streams")
        self.draining = asyncio.Event()

    @contextmanager
    def guard(self, principal: Principal) -> Iterator[Guard]:
        """Watches over the current task's stream while inside."""
        task = asyncio.current_task()
        assert task is not None
        guard = Guard(task)
        key = principal.credential
        self._guards[key].add(guard)
        self._principals[key] = principal
        try:
            yield guard
        finally:
            self._guards[key].discard(guard)
            if not self._guards[key]:
                del self._guards[key], self._principals[key]

    def wake(self) -> None:
        """Has the credentials checked at once: some of them are known to have ended."""
        self._woken.set()

    async def run(self) -> None:
        """Checks the credentials of all open streams again and again; one question for all of them."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._woken.wait()
            self._woken.clear()
            principals = list(self._principals.values())
            if not principals:
                continue
            try:
                alive = await self._alive(principals)
            except Exception as error:
                # A store that is down ends no stream: rights cannot be seen to have ended.
                self._log.warning("recheck_failed", exc_info=error)
                continue
            for principal in principals:
                if principal.credential not in alive:
                    for guard in list(self._guards.get(principal.credential, ())):
                        guard.end()
