"""The bars of retrieval: questions about three hundred briefs, and neighbours against brute force."""

from __future__ import annotations

import os
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import pytest

from mrm.accounts.v1 import client_pb2
from mrm.ai.v1 import search_service_pb2 as pb
from server.jobs.handling import Stores
from server.search import ranking
from storage.milvus import collections, searching
from storage.milvus.collections import Row
from storage.postgres import projects, search_words
from storage.postgres.ids import new_id
from storage.postgres.search_words import ProjectChoice
from storage.scope import EVERYTHING, Scope
from tests.conftest import Caller, World
from tests.search.labelled import Question, briefs, questions
from tests.search.working import embed

TOP = 5
FULL = os.environ.get("MRM_BARS") == "full"


@dataclass(frozen=True)
class Library:
    """An agency with the labelled briefs as projects, and somebody who works there."""

    caller: Caller
    keys: dict[UUID, str]


@pytest.fixture(scope="module")
async def library(world: World, searching: Stores) -> Library:
    agency = await world.client(type=client_pb2.CLIENT_TYPE_AGENCY)
    advertisers: dict[str, UUID] = {}
    keys: dict[UUID, str] = {}
    for industry in sorted({brief.industry for brief in briefs()}):
        client = await world.client(parent_client_id=agency.client_id, industry=industry)
        advertisers[industry] = UUID(client.client_id)
    async with world.database.transaction("library") as tx:
        for brief in briefs():
            row = await projects.create(
                tx, client_id=advertisers[brief.industry], name=brief.name, brief={"objective": brief.text}
            )
            keys[row.id] = brief.key
    await embed(searching)
    return Library(await world.user("pm", agency.client_id), keys)


async def first(library: Library, question: Question) -> list[str]:
    """Keys of the first results."""
    request = pb.SearchProjectsRequest(query=question.text, page_size=TOP)
    reply = await library.caller.search.SearchProjects(request, metadata=library.caller.auth)
    return [library.keys[UUID(each.project.project_id)] for each in reply.results]


async def first_by_words(world: World, library: Library, question: Question) -> list[str]:
    """Keys of the first results of the words alone."""
    scope = Scope(user_id=library.caller.user_id)
    words = ranking.words(question.text)
    found = await search_words.by_words(world.database, scope, ProjectChoice(), words, TOP)
    return [library.keys[id_] for id_ in found.found]


@pytest.mark.bar_g
@pytest.mark.parametrize("held_out", [False, True], ids=["tuned_by", "held_out"])
async def test_briefs_are_found_by_questions_in_either_language(
    world: World, library: Library, held_out: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [each for each in questions() if each.held_out == held_out]
    missed: list[Question] = []
    by_words = 0
    for question in asked:
        if not question.answers & set(await first(library, question)):
            missed.append(question)
        by_words += bool(question.answers & set(await first_by_words(world, library, question)))
    hit, hit_by_words = 1 - len(missed) / len(asked), by_words / len(asked)
    with capsys.disabled():
        half = "held out" if held_out else "tuned by"
        print(f"\nhit@{TOP} of {len(asked)} questions ({half}): {hit:.2f}, by words alone {hit_by_words:.2f}")
        print(*(f"  missed {each.number} ({each.languages}): {each.text}" for each in missed), sep="\n")
    assert hit >= 0.9
    assert hit > hit_by_words


def test_the_labels_fit_the_briefs() -> None:
    keys = [brief.key for brief in briefs()]
    assert len(keys) == len(set(keys)) == 300
    assert len(questions()) >= 60
    assert all(question.answers and question.answers <= set(keys) for question in questions())
    assert {question.languages for question in questions()} == {"ru>ru", "en>en", "ru>en", "en>ru"}


def crowd(own: np.ndarray, count: int) -> np.ndarray:  # type: ignore[type-arg]
    """Vectors that lie about others as texts of one trade do."""
    numbers = np.random.default_rng(11)
    near = own[numbers.integers(0, len(own), count)] + numbers.normal(0, 0.02, (count, own.shape[1]))
    return np.asarray(near / np.linalg.norm(near, axis=1, keepdims=True), dtype=np.float32)


@pytest.mark.bar_g
async def test_neighbours_are_those_of_brute_force(searching: Stores) -> None:
    milvus, embedder = searching.milvus, searching.embedders.present
    assert milvus is not None
    own = await embedder.embed([f"{brief.name}. {brief.text}" for brief in briefs()])
    wanted = await embedder.embed([question.text for question in questions()[:: 1 if FULL else 4]])
    vectors = crowd(own, 20_000 if FULL else 800)
    ids = [new_id() for _ in vectors]
    name, client = f"recall_{new_id().hex}", new_id()
    await collections.create(milvus, name, (), embedder.dimension)
    try:
        for start in range(0, len(ids), 1000):
            rows = [Row(id_, client, vector, "0", "0", 0, {}) for id_, vector in zip(ids, vectors, strict=True)]
            await collections.upsert(milvus, name, (), embedder.model, rows[start : start + 1000])
        await collections.flush(milvus, name)
        recall = [await _recall(searching, name, vector, ids, vectors) for vector in wanted]
    finally:
        await collections.drop(milvus, name)
    assert np.mean(recall) >= 0.97


async def _recall(stores: Stores, name: str, vector: np.ndarray, ids: list[UUID], vectors: np.ndarray) -> float:  # type: ignore[type-arg]
    assert stores.milvus is not None
    hits = await searching.search(stores.milvus, stores.database, EVERYTHING, name, vector, limit=10)
    nearest = {ids[place] for place in np.argsort(-(vectors @ vector))[:10]}
    return len(nearest & {hit.id for hit in hits}) / 10
