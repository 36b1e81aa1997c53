"""One search: by meaning and by words at once, ranked together, and what is shown read anew."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from server.rpc.errors import InvalidRequest, Unavailable
from server.rpc.paging import Page
from server.search import ranking
from server.search.embedder import Embedders, EmbedderUnavailable, TextRefused
from server.search.kinds import Kind
from server.search.ranking import Ranked
from storage.milvus import searching
from storage.milvus.conditions import Condition
from storage.milvus.connect import STORE, Milvus
from storage.postgres import embeddings, search_words
from storage.postgres.database import Database
from storage.postgres.search_words import Choice, ExampleChoice, Words
from storage.scope import Scope

MOST_RESULTS: Final = 200
# Of those that have the question's words, enough that what is near is among them if it has words of weight.
_BY_WORDS: Final = 1000
_REREAD: Final = 20


@dataclass(frozen=True, slots=True)
class Question:
    """What is looked for.

    Attributes:
        text: What its meaning is taken from.
        choice: Which things are searched.
        where: The same as conditions on what Milvus holds of them.
        min_score: Least score, 0 to 1.
        without: A thing that is not to be found.
    """

    text: str
    choice: Choice
    where: Sequence[Condition] = ()
    min_score: float = 0.0
    without: UUID | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A thing that was found and may be shown now.

    Attributes:
        terms: Words of the question that stand in it, and the labels of where they do.
    """

    ranked: Ranked
    terms: list[tuple[str, list[str]]]


class Searcher:
    """Finds things.

    Args:
        database: Has words, and is what is shown.
        milvus: Has vectors; None if none is configured.
        embedders: Make the question's vector.
    """

    def __init__(self, database: Database, milvus: Milvus | None, embedders: Embedders) -> None:
        self._database = database
        self._milvus = milvus
        self._embedders = embedders

    async def page(self, kind: Kind, scope: Scope, question: Question, page: Page) -> tuple[list[Found], str]:
        """A page of what is found, and the token of the next one.

        Raises:
            Unavailable: Milvus or the model cannot be reached.
        """
        words = ranking.words(question.text)
        near, by_words = await self._sought(kind, scope, question, words)
        floor = min(near.values()) if len(near) >= MOST_RESULTS else 0.0
        best = ranking.ranked(near, floor, by_words.found, by_words.frequencies)[: MOST_RESULTS + 1]
        best = [each for each in best if each.score >= question.min_score and each.id != question.without]
        if page.after is not None:
            last = (-float(page.after_key), page.after)
            best = [each for each in best if (-each.score, each.id) > last]
        found = await self._present(scope, question, words, best[:MOST_RESULTS], page.size + 1)
        if len(found) <= page.size:
            return found, ""
        kept = found[: page.size]
        return kept, page.token(kept[-1].ranked.id, repr(kept[-1].ranked.score))

    async def _sought(
        self, kind: Kind, scope: Scope, question: Question, words: Sequence[str]
    ) -> tuple[dict[UUID, float], Words]:
        """Cosines of what is near in meaning, and what has the words."""
        choice = question.choice
        if isinstance(choice, ExampleChoice):
            near = await self._near(kind, scope, question)
            return near, await search_words.among(self._database, scope, choice, words, list(near))
        by_words = asyncio.create_task(search_words.by_words(self._database, scope, choice, words, _BY_WORDS))
        try:
            return await self._near(kind, scope, question), await by_words
        finally:
            by_words.cancel()

    async def _near(self, kind: Kind, scope: Scope, question: Question) -> dict[UUID, float]:
        """Cosines of the things that are nearest in meaning."""
        if self._milvus is None:
            raise Unavailable.store(STORE, retry_after=60.0)
        collection = await embeddings.serving(self._database, kind.name)
        if collection is None:
            # Nothing has been embedded yet. That Milvus is there must not be said without having asked.
            await self._milvus.ping()
            return {}
        try:
            # The model of the vectors that serve, which may not be the present one while models change.
            embedder = self._embedders.of(collection.model, collection.dimension)
            vector = (await embedder.embed([question.text]))[0]
        except EmbedderUnavailable as error:
            raise Unavailable(
                "the model that makes vectors is unavailable, try again",
                metadata={"store": "embedding_model"},
                retry_after=error.retry_after,
            ) from None
        except TextRefused:
            raise InvalidRequest.field("query", "TEXT_REFUSED", "is a text that the model does not take") from None
        hits = await searching.search(
            self._milvus,
            self._database,
            scope,
            collection.name,
            vector,
            limit=MOST_RESULTS,
            client_id=question.choice.client_id,
            where=question.where,
            of_projects=kind.of_projects,
        )
        return {hit.id: hit.score for hit in hits}

    async def _present(
        self, scope: Scope, question: Question, words: Sequence[str], best: Sequence[Ranked], wanted: int
    ) -> list[Found]:
        """As many as are wanted of what may be shown now."""
        found: list[Found] = []
        start = 0
        while len(found) < wanted and start < len(best):
            batch = best[start : start + max(wanted - len(found), _REREAD)]
            start += len(batch)
            there = await search_words.present(
                self._database, scope, question.choice, words, [each.id for each in batch]
            )
            found += [Found(each, _terms(words, there[each.id].matches)) for each in batch if each.id in there]
        return found[:wanted]


def _terms(words: Sequence[str], matches: Sequence[tuple[int, str]]) -> list[tuple[str, list[str]]]:
    places: dict[int, list[str]] = {}
    for place, label in sorted(matches):
        places.setdefault(place, []).append(label)
    return [(words[place], labels) for place, labels in places.items()]
