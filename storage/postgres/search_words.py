# ruff: noqa: S608 - the statements are put together from constants of this package
"""Things found by the words in them, and what was found read as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor
from storage.scope import Scope

COMMON: Final = 200
"""A word that stands in more things than these is none to find them by, and all of them are not read."""


@dataclass(frozen=True, slots=True)
class Words:
    """What was found by words.

    Attributes:
        frequencies: In how many things of the scope each word of the question stands, in their order; None for one that
            says nothing: such as "and", or one that stands in more than `COMMON` of them. Empty if nothing was found.
        found: For each thing the places of those words of the question that stand in it.
    """

    frequencies: list[int | None]
    found: dict[UUID, list[int]]


@dataclass(frozen=True, slots=True)
class Present:
    """A thing that may be shown now.

    Attributes:
        matches: Which words of the question stand where in it: place of the word, and a label of the table.
    """

    id: UUID
    matches: list[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class ProjectChoice:
    """Which projects are searched; what is None lets all pass.

    Attributes:
        client_id: Those of this client itself.
        industries: Lines of business, in lower case.
        statuses: States.
        currency: Of the budget.
        least_budget: In whole currency units.
        most_budget: In whole currency units.
        least_rating: 1 to 10.
        most_rating: 1 to 10.
        channels: Kinds of channel or platforms, one of which the latest version of a plan has.
    """

    client_id: UUID | None = None
    industries: Sequence[str] | None = None
    statuses: Sequence[str] | None = None
    currency: str | None = None
    least_budget: Decimal | None = None
    most_budget: Decimal | None = None
    least_rating: int | None = None
    most_rating: int | None = None
    channels: Sequence[str] | None = None

    @property
    def args(self) -> tuple[object, ...]:
        """Parameters 6 to 14 of the statements."""
        return (
            self.client_id, _list(self.industries), _list(self.statuses), self.currency, self.least_budget,
            self.most_budget, self.least_rating, self.most_rating, _list(self.channels),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TemplateChoice:
    """Which templates are searched; what is None lets all pass."""

    client_id: UUID | None = None
    artifact_types: Sequence[str] | None = None

    @property
    def args(self) -> tuple[object, ...]:
        """Parameters 6 and 7 of the statements."""
        return self.client_id, _list(self.artifact_types)


@dataclass(frozen=True, slots=True)
class ExampleChoice:
    """Which examples are searched; what is None lets all pass.

    Attributes:
        client_id: Those of this client itself.
        categories: What their prompts are for.
        lineage_id: Those of this prompt, whichever version.
    """

    client_id: UUID | None = None
    categories: Sequence[str] | None = None
    lineage_id: UUID | None = None

    @property
    def args(self) -> tuple[object, ...]:
        """Parameters 6 to 8 of the statements."""
        return self.client_id, _list(self.categories), self.lineage_id


Choice = ProjectChoice | TemplateChoice | ExampleChoice

_PROJECTS = f"""FROM projects i JOIN clients cl ON cl.id = i.client_id
WHERE {visibility.project("i.id")} AND i.status <> 'archived'
  AND ($6::uuid IS NULL OR i.client_id = $6)
  AND ($7::text[] IS NULL OR lower(cl.industry) = ANY ($7))
  AND ($8::text[] IS NULL OR i.status = ANY ($8))
  AND ($9::text IS NULL OR i.budget_total IS NOT NULL AND i.budget_currency = $9)
  AND ($10::numeric IS NULL OR i.budget_total >= $10) AND ($11::numeric IS NULL OR i.budget_total <= $11)
  AND ($12::int IS NULL OR i.performance_rating >= $12) AND ($13::int IS NULL OR i.performance_rating <= $13)
  AND ($14::text[] IS NULL OR EXISTS (
    SELECT FROM (
      SELECT DISTINCT ON (m.lineage_id) m.channels FROM media_plans m
      WHERE m.project_id = i.id AND NOT m.imported ORDER BY m.lineage_id, m.version DESC) latest,
      jsonb_array_elements(latest.channels) AS c
    WHERE c->>'type' = ANY ($14) OR c->>'platform' = ANY ($14)))"""

_TEMPLATES = f"""FROM templates i JOIN clients cl ON cl.id = i.client_id
WHERE {visibility.CLIENT}
  AND ($6::uuid IS NULL OR i.client_id = $6)
  AND ($7::text[] IS NULL OR i.artifact_type = ANY ($7))"""

_EXAMPLES = f"""FROM ai_feedback i JOIN clients cl ON cl.id = i.client_id JOIN ai_prompts v ON v.id = i.prompt_id
WHERE {visibility.project("i.project_id")}
  AND ($6::uuid IS NULL OR i.client_id = $6)
  AND ($7::text[] IS NULL OR v.category = ANY ($7))
  AND ($8::uuid IS NULL OR v.lineage_id = $8)"""
_EXAMPLE_WORDS = "setweight(to_tsvector('russian', spoken(COALESCE(i.edited_output, i.output_data))), 'C')"

# The words of the question that say something.
_ASKED = """asked AS MATERIALIZED (
  SELECT place, plainto_tsquery('russian', word) AS query FROM unnest($4::text[]) WITH ORDINALITY AS w (word, place)
  WHERE numnode(plainto_tsquery('russian', word)) > 0)"""

# Things with one of the words, those with the rarest first; of each the places of its words, and all frequencies. A
# word's weight is that of `server.search.ranking.weight`; what is rare is counted within the scope.
# What all rows share stands in the first.
_RANKED = f"""rarity AS (SELECT place, count(*) AS n FROM hits GROUP BY place),
best AS (
  SELECT h.id, array_agg(h.place::int) AS places, sum(1 / (1 + ln(r.n))) AS weight
  FROM hits h JOIN rarity r USING (place) WHERE r.n <= {COMMON}
  GROUP BY h.id ORDER BY 3 DESC, 1 LIMIT $5)
SELECT id, places, CASE WHEN row_number() OVER (ORDER BY weight DESC, id) = 1 THEN (
  SELECT jsonb_object_agg(a.place, COALESCE(n, 0)) FROM asked a LEFT JOIN rarity USING (place)
  WHERE n IS NULL OR n <= {COMMON}) END
FROM best ORDER BY weight DESC, id"""


def _by_words(kind: str, things: str) -> str:
    return f"""
WITH {_ASKED},
hits AS MATERIALIZED (
  SELECT a.place, i.id FROM asked a, LATERAL (
    SELECT i.id {things} AND i.id IN (
      SELECT s.item_id FROM search_words s WHERE s.kind = '{kind}' AND s.words @@ a.query)
    LIMIT {COMMON + 1}) i),
{_RANKED}"""


def _present(things: str, words: str) -> str:
    """Those of the things that may be shown now, with the places of the words in them."""
    return f"""
WITH {_ASKED},
things AS MATERIALIZED (
  SELECT i.id, {words} AS words {things} AND i.id = ANY ($5::uuid[]) AND NOT is_client_archived(i.client_id))
SELECT id, (
  SELECT array_agg(ARRAY[place::text, label]) FROM asked, unnest(ARRAY['A', 'B', 'C', 'D']) AS label
  WHERE ts_filter(words, ARRAY[label]::"char"[]) @@ query)
FROM things"""


def _kept_words(kind: str) -> str:
    return f"(SELECT s.words FROM search_words s WHERE s.kind = '{kind}' AND s.item_id = i.id)"


_BY_WORDS = {
    ProjectChoice: _by_words("project", _PROJECTS),
    TemplateChoice: _by_words("template", _TEMPLATES),
    # Feedback comes by the thousand: its words are taken when they are asked for, of what is near in meaning.
    ExampleChoice: f"""
WITH {_ASKED},
texts AS MATERIALIZED (SELECT i.id, {_EXAMPLE_WORDS} AS words {_EXAMPLES} AND i.id = ANY ($9::uuid[])),
hits AS MATERIALIZED (SELECT a.place, t.id FROM asked a JOIN texts t ON t.words @@ a.query),
{_RANKED}""",
}
_PRESENT = {
    ProjectChoice: _present(_PROJECTS, _kept_words("project")),
    TemplateChoice: _present(_TEMPLATES, _kept_words("template")),
    ExampleChoice: _present(_EXAMPLES, _EXAMPLE_WORDS),
}


async def by_words(
    db: Executor, scope: Scope, choice: ProjectChoice | TemplateChoice, words: Sequence[str], limit: int
) -> Words:
    """The things in scope that have most of the words, the rarest counting most.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        choice: Which things, and of which kind.
        words: Of the question; those that say nothing, such as "and", are left out here.
        limit: Most things.
    """
    return await _found(db, scope, choice, words, limit)


async def among(
    db: Executor, scope: Scope, choice: ExampleChoice, words: Sequence[str], feedback_ids: Sequence[UUID]
) -> Words:
    """As `by_words`, of these examples alone."""
    return await _found(db, scope, choice, words, len(feedback_ids), list(feedback_ids))


async def _found(db: Executor, scope: Scope, choice: Choice, words: Sequence[str], limit: int, *more: object) -> Words:
    rows = await db.fetch(_BY_WORDS[type(choice)], *scope.args, list(words), limit, *choice.args, *more)
    counts = rows[0][2] if rows else {}
    return Words(
        [counts.get(str(place)) for place in range(1, len(words) + 1)] if rows else [],
        {row[0]: [place - 1 for place in row[1]] for row in rows},
    )


async def present(
    db: Executor, scope: Scope, choice: Choice, words: Sequence[str], item_ids: Sequence[UUID]
) -> dict[UUID, Present]:
    """Those of the things that are in scope, chosen and not put away: now, whatever was found."""
    rows = await db.fetch(_PRESENT[type(choice)], *scope.args, list(words), list(item_ids), *choice.args)
    return {row[0]: Present(row[0], [(int(place) - 1, label) for place, label in row[1] or ()]) for row in rows}


def _list(values: Sequence[str] | None) -> list[str] | None:
    return None if values is None else list(values)
