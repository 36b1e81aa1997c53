"""Long work on the event loop, in pieces."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final, TypeVar

# Items looked at before others on the loop have a turn.
_AT_A_TIME: Final = 50

Item = TypeVar("Item")


async def in_turns(items: Iterable[Item]) -> AsyncIterator[Item]:
    """The items, giving way to others on the loop now and then."""
    for index, item in enumerate(items, start=1):
        yield item
        if index % _AT_A_TIME == 0:
            await asyncio.sleep(0)
