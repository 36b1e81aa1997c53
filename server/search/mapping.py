"""Which column of a file is which column of a template: names and types compared, then put together one to one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from rapidfuzz import fuzz, process

from server.search import tables
from server.search.vocabulary import concept, plain

LEAST_PAIR: Final = 0.5
LEARNED: Final = "learned"
SAME_NAME: Final = "same_name"
SYNONYM: Final = "synonym"
SIMILAR_NAME: Final = "similar_name"
MEANING: Final = "meaning"
TYPE: Final = "type"

_SYNONYM_SCORE: Final = 0.95
_MOST_SIMILAR: Final = 0.9
_LEAST_SIMILAR: Final = 0.7
_MOST_MEANING: Final = 0.85
# Cosines of names that have nothing to do with each other, and of those that mean the same.
_UNRELATED: Final = 0.45
_RELATED: Final = 0.85
# Both names are known, and known to mean different things.
_DIFFERENT: Final = 0.5
_UNKNOWN_TYPE: Final = 0.97
_TYPES: Final = {
    frozenset({tables.INTEGER, tables.NUMBER}): 0.97,
    frozenset({tables.DATE, tables.DATE_TIME}): 0.97,
    frozenset({tables.NUMBER, tables.DATE}): 0.4,
    frozenset({tables.INTEGER, tables.DATE}): 0.5,
    frozenset({tables.NUMBER, tables.DATE_TIME}): 0.4,
    frozenset({tables.INTEGER, tables.DATE_TIME}): 0.4,
}
_WITH_TEXT: Final = 0.85
_ODD_TYPES: Final = 0.6

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Pair:
    """A column of a file that is one of a template.

    Attributes:
        score: How likely that is, 0 to 1.
        reasons: What speaks for it, the strongest first.
    """

    source: str
    target: str
    score: float
    reasons: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Fit:
    """How a file goes with a template.

    Attributes:
        score: 0 to 1: the scores of the pairs, twice, by the number of columns on both sides.
        unmatched: Columns of the file alone.
        missing: Columns of the template alone.
    """

    score: float
    pairs: list[Pair] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def rough(
    source: Sequence[Mapping[str, str]], target: Sequence[Mapping[str, str]], aliases: Mapping[str, str]
) -> float:
    """How many columns are the same by name, alias or synonym, 0 to 1: tells which templates are worth a look."""
    known = {_key(column["name"]) for column in target}
    both = sum(_key(column["name"]) in known or plain(column["name"]) in aliases for column in source)
    return 2 * min(both, len(target)) / (len(source) + len(target))


def fit(
    source: Sequence[Mapping[str, str]],
    target: Sequence[Mapping[str, str]],
    aliases: Mapping[str, str],
    vectors: Mapping[str, Any],
) -> Fit:
    """Puts columns together.

    Args:
        source: Those of the file, ``{name, type}`` each.
        target: Those of the template.
        aliases: Names under which columns came before, as `plain` leaves them, to the column's name.
        vectors: Embeddings of names, of unit length; names without one are not compared by meaning.
    """
    names, wanted = [column["name"] for column in source], [column["name"] for column in target]
    spelled = process.cdist([*map(plain, names)], [*map(plain, wanted)], scorer=fuzz.token_sort_ratio) / 100.0
    meant = _meaning(names, wanted, vectors)
    scores = np.zeros((len(names), len(wanted)))
    reasons: dict[tuple[int, int], list[tuple[str, float]]] = {}
    for i, column in enumerate(source):
        for j, other in enumerate(target):
            found = _names(names[i], wanted[j], aliases, float(spelled[i, j]), float(meant[i, j]))
            if found:
                types = type_score(column["type"], other["type"])
                scores[i, j] = found[0][1] * types
                reasons[i, j] = [*found, (TYPE, types)]
    pairs = [
        Pair(names[i], wanted[j], float(scores[i, j]), reasons[i, j])
        for i, j in assignment(np.where(scores >= LEAST_PAIR, scores, 0.0))
        if scores[i, j] >= LEAST_PAIR
    ]
    taken, given = {pair.source for pair in pairs}, {pair.target for pair in pairs}
    return Fit(
        2 * sum(pair.score for pair in pairs) / (len(names) + len(wanted)),
        pairs,
        [name for name in names if name not in taken],
        [name for name in wanted if name not in given],
    )


def type_score(one: str, other: str) -> float:
    """How well two types go together, 0 to 1; an empty one is not known."""
    if one == other:
        return 1.0
    if not one or not other:
        return _UNKNOWN_TYPE
    if tables.TEXT in (one, other):
        return _WITH_TEXT
    return _TYPES.get(frozenset({one, other}), _ODD_TYPES)


def assignment(scores: Array) -> list[tuple[int, int]]:
    """Rows and columns put together one to one so that the sum of scores is the highest there is (Hungarian method).

    Args:
        scores: At least one row and one column, none negative.
    """
    if scores.shape[0] > scores.shape[1]:
        return sorted((row, column) for column, row in assignment(scores.T))
    rows, columns = scores.shape
    # Kuhn-Munkres with potentials: rows come in one by one, each along the cheapest path of exchanges.
    cost = -scores
    row_potential, column_potential = np.zeros(rows + 1), np.zeros(columns + 1)
    owner, way = np.zeros(columns + 1, dtype=int), np.zeros(columns + 1, dtype=int)
    for row in range(1, rows + 1):
        owner[0] = row
        at = 0
        least = np.full(columns + 1, np.inf)
        used = np.zeros(columns + 1, dtype=bool)
        while True:
            used[at] = True
            reduced = cost[owner[at] - 1] - row_potential[owner[at]] - column_potential[1:]
            free = ~used[1:]
            better = free & (reduced < least[1:])
            least[1:][better] = reduced[better]
            way[1:][better] = at
            step_to = 1 + int(np.argmin(np.where(free, least[1:], np.inf)))
            step = least[step_to]
            row_potential[owner[used]] += step
            column_potential[used] -= step
            least[~used] -= step
            at = step_to
            if owner[at] == 0:
                break
        while at:
            before = int(way[at])
            owner[at] = owner[before]
            at = before
    return sorted((int(owner[column]) - 1, column - 1) for column in range(1, columns + 1) if owner[column])


def _names(
    source: str, target: str, aliases: Mapping[str, str], spelled: float, meant: float
) -> list[tuple[str, float]]:
    """What speaks for two names being of the same column, the strongest first."""
    found = []
    one, other = concept(source), concept(target)
    doubt = _DIFFERENT if one and other and one != other else 1.0
    if aliases.get(plain(source)) == target:
        found.append((LEARNED, 1.0))
    if plain(source) == plain(target):
        found.append((SAME_NAME, 1.0))
    elif one and one == other:
        found.append((SYNONYM, _SYNONYM_SCORE))
    elif spelled >= _LEAST_SIMILAR:
        found.append((SIMILAR_NAME, spelled * _MOST_SIMILAR * doubt))
    meaning = min(1.0, max(0.0, (meant - _UNRELATED) / (_RELATED - _UNRELATED))) * _MOST_MEANING * doubt
    if meaning > 0.0:
        found.append((MEANING, meaning))
    return sorted(found, key=lambda each: -each[1])


def _meaning(names: Sequence[str], wanted: Sequence[str], vectors: Mapping[str, Any]) -> Array:
    cosines = np.zeros((len(names), len(wanted)))
    rows = [index for index, name in enumerate(names) if name in vectors]
    columns = [index for index, name in enumerate(wanted) if name in vectors]
    if rows and columns:
        left = np.stack([vectors[names[index]] for index in rows])
        right = np.stack([vectors[wanted[index]] for index in columns])
        cosines[np.ix_(rows, columns)] = left @ right.T
    return cosines


def _key(name: str) -> str:
    return concept(name) or plain(name)
