"""The deadline of the call being served, from which every store derives its timeouts."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, Token

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)

# Drivers read a timeout of zero as "none" or fail before trying; this is as good as over.
_LEAST = 0.001


def set_deadline(loop_time: float | None) -> Token[float | None]:
    """Sets when the current task's work must be done.

    Args:
        loop_time: A time of the running loop's clock in seconds, or None for no deadline.

    Returns:
        What `reset_deadline` takes to restore the deadline before.
    """
    return _deadline.set(loop_time)


def reset_deadline(token: Token[float | None]) -> None:
    """Restores the deadline that was in force before `set_deadline`."""
    _deadline.reset(token)


def remaining(default: float) -> float:
    """Seconds a store call may take: what is left until the deadline, at most `default`, and always above zero."""
    deadline = _deadline.get()
    if deadline is None:
        return default
    return max(_LEAST, min(default, deadline - asyncio.get_running_loop().time()))
