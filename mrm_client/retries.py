"""Pauses between attempts, and when to stop trying."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from mrm_client.errors import DOUBTFUL, TRANSIENT, CallError

OnRetry = Callable[[CallError, float], None]
"""Told of each failure that is being retried, and of the pause in seconds before the next attempt."""

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_DOUBTFUL_ATTEMPTS = 5


class Retries:
    """Counts the failures since the last success."""

    def __init__(self, patience: float, on_retry: OnRetry | None) -> None:
        """See `Producer` for the arguments."""
        self._patience = patience
        self._on_retry = on_retry
        self._failures = 0
        self._since = 0.0

    def succeeded(self) -> None:
        """The server answered: the next failure begins a new row."""
        self._failures = 0

    async def pause_or_raise(self, error: CallError, *, retriable: bool = False) -> None:
        """Waits before the next attempt: what the server asks for, or ever longer with jitter.

        Raises:
            CallError: The given one, because trying again is of no use or patience has run out.
        """
        if self._failures == 0:
            self._since = time.monotonic()
        self._failures += 1
        doubtful = error.code in DOUBTFUL and self._failures < _DOUBTFUL_ATTEMPTS
        if not (retriable or error.code in TRANSIENT or doubtful):
            raise error
        ceiling = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(self._failures - 1, 10))
        # Jitter spreads the callers of a server that comes back; it never shortens what the server asked for.
        pause = max(error.retry_after, ceiling * 0.5) + ceiling * random.uniform(0, 0.5)  # noqa: S311
        if time.monotonic() + pause - self._since > self._patience:
            raise error
        if self._on_retry is not None:
            self._on_retry(error, pause)
        await asyncio.sleep(pause)
