"""One search: by meaning and by words at once, ranked together, and what is shown read anew."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from server.rpc.errors import InvalidRequest, Unavailable
from server.rpc.paging import Keyed, Page
from server.search import ranking
from server.search.embedder import Embedders, EmbedderUnavailable, TextRefused
from server.search.kinds import Kind
from server.search.ranking import Ranked
from storage.milvus import searching
from storage.milvus.conditions import Condition
from storage.milvus.connect import STORE, Milvus
from storage.postgres import embeddings, search_words
from storage.postgres.database import Database
from storage.postgres.embeddings import Collection
from storage.postgres.search_words import Choice, ExampleChoice, Words
from storage.scope import Scope

_LEAST_DEPTH: Final = 50
_MOST_DEPTH: Final = 200
_PAGES: Final = 5
# Enough of those that have the question's words that what is near is among them if it has words of weight.
_BY_WORDS: Final = 2
_REREAD: Final = 5
# A collection that served a moment ago still has everything: those that served before are kept for minutes.
_SERVING_SECONDS: Final = 1.0
_KEPT: Final = 256


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


Row = TypeVar("Row", bound=Keyed)
Read = Callable[[Sequence[UUID]], Awaitable[Sequence[Row]]]
"""Reads things by their ids, as far as the caller may read them now."""


@dataclass(frozen=True)
class Found(Generic[Row]):
    """A thing that was found and may be shown now.

    Attributes:
        row: It, as it is now.
        terms: Words of the question that stand in it, and the labels of where they do.
        place: With its id, what the token of a page that follows it is made of.
    """

    row: Row
    ranked: Ranked
    terms: list[tuple[str, list[str]]]
    place: str


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
        self._collections: dict[str, tuple[float, Collection]] = {}
        self._asked: OrderedDict[tuple[str, int, str], Any] = OrderedDict()

    async def page(
        self, kind: Kind, scope: Scope, question: Question, page: Page, read: Read[Row]
    ) -> tuple[list[Found[Row]], str]:
        """A page of what is found, and the token of the next one.

        Args:
            kind: What kind of thing.
            scope: What the caller may be shown of it.
            question: What is looked for.
            page: Which page.
            read: Reads things of the kind within that scope.

        Raises:
            Unavailable: Milvus or the model cannot be reached.
        """
        words = ranking.words(question.text)
        depth, _, last = page.after_key.partition(":")
        # All pages of a search look equally deep, or things would change places between them.
        deep = int(depth) if depth else min(_MOST_DEPTH, max(_LEAST_DEPTH, _PAGES * page.size))
        near, by_words = await self._sought(kind, scope, question, words, deep)
        floor = min(near.values()) if len(near) >= deep else 0.0
        best = [
            each
            for each in ranking.ranked(near, floor, by_words.found, by_words.frequencies)[: deep + 1]
            if each.score >= question.min_score and each.id != question.without
        ][:deep]
        if page.after is not None:
            best = [each for each in best if (-each.score, each.id) > (-float(last), page.after)]
        found: list[Found[Row]] = []
        wanted, start = page.size + 1, 0
        while len(found) < wanted and start < len(best):
            batch = best[start : start + max(wanted - len(found), _REREAD)]
            start += len(batch)
            ids = [each.id for each in batch]
            there, rows = await asyncio.gather(
                search_words.present(self._database, scope, question.choice, words, ids), read(ids)
            )
            by_id = {row.id: row for row in rows}
            found += [
                Found(by_id[each.id], each, _terms(words, there[each.id].matches), f"{deep}:{each.score!r}")
                for each in batch
                if each.id in there and each.id in by_id
            ]
        found = found[:wanted]
        if len(found) <= page.size:
            return found, ""
        kept = found[: page.size]
        return kept, page.token(kept[-1].ranked.id, kept[-1].place)

    async def _sought(
        self, kind: Kind, scope: Scope, question: Question, words: Sequence[str], deep: int
    ) -> tuple[dict[UUID, float], Words]:
        """Cosines of what is near in meaning, and what has the words."""
        choice = question.choice
        if isinstance(choice, ExampleChoice):
            near = await self._near(kind, scope, question, deep)
            return near, await search_words.among(self._database, scope, choice, words, list(near))
        by_words = asyncio.create_task(search_words.by_words(self._database, scope, choice, words, _BY_WORDS * deep))
        try:
            return await self._near(kind, scope, question, deep), await by_words
        finally:
            by_words.cancel()

    async def _near(self, kind: Kind, scope: Scope, question: Question, deep: int) -> dict[UUID, float]:
        """Cosines of the things that are nearest in meaning."""
        if self._milvus is None:
            raise Unavailable.store(STORE, retry_after=60.0)
        collection = await self._serving(kind)
        if collection is None:
            # Nothing has been embedded yet. That Milvus is there must not be said without having asked.
            await self._milvus.ping()
            return {}
        # The model of the vectors that serve, which may not be the present one while models change.
        vector = await self._vector(question.text, collection.model, collection.dimension)
        hits = await searching.search(
            self._milvus,
            self._database,
            scope,
            collection.name,
            vector,
            limit=deep,
            client_id=question.choice.client_id,
            where=question.where,
            of_projects=kind.of_projects,
        )
        return {hit.id: hit.score for hit in hits}

    async def _serving(self, kind: Kind) -> Collection | None:
        """The collection to ask, as it was within the last second."""
        known = self._collections.get(kind.name)
        if known is None or time.monotonic() - known[0] > _SERVING_SECONDS:
            collection = await embeddings.serving(self._database, kind.name)
            if collection is None:
                return None
            known = self._collections[kind.name] = time.monotonic(), collection
        return known[1]

    async def _vector(self, text: str, model: str, dimension: int) -> Any:
        """The vector of a question; those asked last are kept, since pages ask again."""
        key = (model, dimension, text)
        vector = self._asked.get(key)
        if vector is None:
            try:
                vector = (await self._embedders.of(model, dimension).embed([text]))[0]
            except EmbedderUnavailable as error:
                raise Unavailable(
                    "the model that makes vectors is unavailable, try again",
                    metadata={"store": "embedding_model"},
                    retry_after=error.retry_after,
                ) from None
            except TextRefused:
                raise InvalidRequest.field("query", "TEXT_REFUSED", "is a text that the model does not take") from None
            self._asked[key] = vector
        self._asked.move_to_end(key)
        if len(self._asked) > _KEPT:
            self._asked.popitem(last=False)
        return vector


def _terms(words: Sequence[str], matches: Sequence[tuple[int, str]]) -> list[tuple[str, list[str]]]:
    places: dict[int, list[str]] = {}
    for place, label in sorted(matches):
        places.setdefault(place, []).append(label)
    return [(words[place], labels) for place, labels in places.items()]
