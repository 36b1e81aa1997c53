"""How what was found by meaning and what was found by words become one list.

The score of a thing is a weighted mean of two numbers between 0 and 1: the cosine of its embedding with the question's,
and the share of the question's words that stand in it, each word weighing the more the rarer it is. A convex
combination of such scores does better than merging ranks, and needs one weight (Bruch, Gai and Ingber 2023, "An
Analysis of Fusion Functions for Hybrid Retrieval"); it also means something by itself, so a least score can be asked.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

MEANING_WEIGHT: Final = 0.8
"""What the cosine weighs; the words weigh the rest. Chosen on the half of the labelled questions that is not held
out."""

MOST_WORDS: Final = 48
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Ranked:
    """A thing that was found.

    Attributes:
        score: 0 to 1.
        semantic: The cosine; None if the thing was found by its words alone, and is less near than all that were near.
        keyword: The weighted share of the question's words, 0 to 1.
    """

    id: UUID
    score: float
    semantic: float | None
    keyword: float


def words(text: str) -> list[str]:
    """The words of a question in lower case, none twice; of a long one the first `MOST_WORDS`."""
    return list(dict.fromkeys(word.lower() for word in _WORD.findall(text)))[:MOST_WORDS]


def weight(frequency: int) -> float:
    """What a word weighs that stands in so many things: 1 for one that stands in none or one."""
    return 1.0 / (1.0 + math.log(max(1, frequency)))


def ranked(
    near: Mapping[UUID, float], floor: float, found: Mapping[UUID, Sequence[int]], frequencies: Sequence[int | None]
) -> list[Ranked]:
    """All that was found, the best first.

    Args:
        near: Cosines of what was found by meaning.
        floor: What the others' cosines are at most: that of the last one, or 0 if nothing was left out.
        found: For what was found by words, the places of its words.
        frequencies: In how many things each word stands; none for words that say nothing, which weigh nothing.
    """
    weights = [0.0 if each is None else weight(each) for each in frequencies]
    whole = sum(weights)
    best = [
        _one(id_, near.get(id_), floor, sum(weights[place] for place in found.get(id_, ())) / whole if whole else 0.0)
        for id_ in near.keys() | found.keys()
    ]
    return sorted(best, key=lambda each: (-each.score, each.id))


def _one(id_: UUID, cosine: float | None, floor: float, keyword: float) -> Ranked:
    near = min(1.0, max(0.0, floor if cosine is None else cosine))
    return Ranked(id_, MEANING_WEIGHT * near + (1 - MEANING_WEIGHT) * keyword, cosine, keyword)
