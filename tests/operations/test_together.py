"""Whatever is asked for at the same time shares a statement, up to a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from server.jobs.together import Together


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1] * 7, [[1], [1] * 4, [1, 1]]),
        ([1, 3, 1, 2, 2, 9, 1], [[1], [3, 1], [2, 2], [9], [1]]),
        ([9], [[9]]),
    ],
    ids=["alike", "unlike", "too-large"],
)
async def test_what_fits_goes_together_and_nobody_is_left(sizes: list[int], expected: list[list[int]]) -> None:
    asked: list[list[int]] = []

    async def ask(items: Sequence[int]) -> list[int]:
        asked.append(list(items))
        await asyncio.sleep(0)
        return [item * 10 for item in items]

    together = Together(ask, 4, lambda item: item)
    waiting = [asyncio.create_task(together(sizes[0]))]
    while not asked:
        await asyncio.sleep(0)
    waiting += [asyncio.create_task(together(size)) for size in sizes[1:]]
    assert await asyncio.gather(*waiting) == [size * 10 for size in sizes]
    assert asked == expected
