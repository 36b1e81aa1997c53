"""How far a share that was counted can be trusted."""

import math
from typing import Final

# Of the standard normal distribution: 2.5 % lie above it.
_Z: Final = 1.959963984540054


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Where a share lies with 95 % confidence, as shares of 1: Wilson's score interval (1927), of one try at least.

    It keeps its confidence with few tries and near 0 and 1, where the textbook's normal one does not.
    """
    share = hits / count
    middle, spread = share + _Z**2 / (2 * count), _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    # At its ends the formula is exact, the arithmetic is not.
    low = 0.0 if hits == 0 else (middle - spread) / scale
    high = 1.0 if hits == count else (middle + spread) / scale
    return low, high
