"""How much of an answer a person changed."""

import asyncio
import unicodedata
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from rapidfuzz.distance import Levenshtein

_HUNDREDTH: Final = Decimal("0.01")
_ALL: Final = Decimal(100)
# Pairs of characters that may take a quarter of a millisecond. More of them go to a thread, which holds up nobody: the
# library does without the interpreter's lock meanwhile.
_AT_ONCE: Final = 2_000_000


def plain(text: str) -> str:
    """A text in the form in which texts are compared: composed characters, lines that end in a line feed."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n"))


async def percents(pairs: Sequence[tuple[str, str]], turns: asyncio.Semaphore) -> list[Decimal]:
    """For each answer and what became of it, in `plain` form: how much was changed, in percent with two decimals.

    That is the least number of characters to insert, delete or replace, of the length of the longer text; texts that
    differ do so by 0.01 at least.

    Args:
        pairs: The texts.
        turns: Limits how many threads compare at a time: they are the process's, and long texts take seconds.
    """
    if sum(len(before) * len(after) for before, after in pairs) <= _AT_ONCE:
        return _percents(pairs)
    async with turns:
        return await asyncio.to_thread(_percents, pairs)


def _percents(pairs: Sequence[tuple[str, str]]) -> list[Decimal]:
    return [_percent(*pair) for pair in pairs]


def _percent(before: str, after: str) -> Decimal:
    distance = Levenshtein.distance(before, after)
    if not distance:
        return Decimal(0)
    share = Decimal(100 * distance) / max(len(before), len(after))
    return min(max(share.quantize(_HUNDREDTH, ROUND_HALF_EVEN), _HUNDREDTH), _ALL)
