"""Vectors through all that happens to them: other models, a Milvus that dies, rows that are lost or left over."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from pydantic import SecretStr

from mrm.accounts.v1 import client_pb2
from mrm.ai.v1 import embedding_pb2
from mrm.ai.v1 import embedding_service_pb2 as pb
from server.jobs.handling import JobContext, JobPostponed, Stores
from server.search import reconcile_job
from server.search.projects import KIND, UNKNOWN
from server.search.reconcile_job import ReconcileVectors
from server.stores import opened
from storage.errors import StoreUnavailable
from storage.milvus import collections, conditions
from storage.milvus.collections import Row
from storage.milvus.conditions import Condition
from storage.milvus.connect import Milvus
from storage.postgres import embeddings, jobs, outbox, projects
from storage.postgres.embeddings import Collection
from storage.scope import EVERYTHING, Scope
from tests.conftest import World
from tests.search.endpoint import KEY, Endpoint
from tests.search.working import LEASE, embed, find

FULL = os.environ.get("MRM_BARS") == "full"
WORDS = (
    "банк", "кредит", "вклад", "авто", "машина", "шины", "дом", "квартира", "ипотека", "обувь", "кроссовки", "одежда",
    "кофе", "чай", "ресторан", "школа", "курсы", "loan", "deposit", "car", "tyre", "flat", "mortgage", "shoes",
    "clothes", "coffee", "restaurant", "school", "courses",
)  # fmt: skip


def milvus_of(stores: Stores) -> Milvus:
    assert stores.milvus is not None
    return stores.milvus


async def serving(stores: Stores) -> Collection:
    found = await embeddings.serving(stores.database, KIND.name)
    assert found is not None
    return found


async def reconcile(stores: Stores, **payload: Any) -> dict[str, Any]:
    async with stores.database.transaction("test_reconcile") as tx:
        made = await jobs.enqueue_internal(
            tx, type=reconcile_job.TYPE, queue=reconcile_job.QUEUE, payload=ReconcileVectors(**payload).model_dump()
        )
    [job] = await jobs.claim_internal(stores.database, [made.id], "test", LEASE)
    result = dict(await reconcile_job.handle(job, JobContext(stores, job, LEASE)))
    await jobs.complete_internal(stores.database, [(job.id, job.fence, result)])
    return result["collections"]  # type: ignore[no-any-return]


async def made(stores: Stores, client_id: UUID, count: int, chance: random.Random) -> list[projects.Project]:
    return [
        await projects.create(
            stores.database,
            client_id=client_id,
            name=f"{' '.join(chance.choices(WORDS, k=5))} {chance.randrange(10**9)}",
            description=" ".join(chance.choices(WORDS, k=12)),
            budget_total=None if chance.random() < 0.3 else chance.randrange(10**6),  # type: ignore[arg-type]
        )
        for _ in range(count)
    ]


async def back(stores: Stores) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                return await milvus_of(stores).ping()
            except StoreUnavailable:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def other_model(world: World, endpoint: Endpoint) -> AsyncIterator[Stores]:
    settings = world.settings.model_copy(deep=True)
    settings.embedding.endpoint, settings.embedding.api_key = endpoint.url, SecretStr(KEY)
    settings.embedding.model, settings.embedding.dimension = f"fake-{uuid4().hex[:8]}", endpoint.dimension
    settings.embedding.requests_per_minute = 600_000
    async with opened(settings, "mrm-search-tests") as stores:
        yield stores


@pytest.mark.bar_g
async def test_no_search_returns_what_is_not_seen_while_the_model_changes(world: World, searching: Stores) -> None:
    """Whatever is asked, by whomever: only what the caller sees is found, by an account kept here, and it is found."""
    chance = random.Random(7)
    agency = client_pb2.CLIENT_TYPE_AGENCY
    owners = {name: UUID((await world.client(type=agency, industry=f"Отрасль {name}")).client_id) for name in "ABC"}
    below = UUID((await world.client(parent_client_id=str(owners["A"]))).client_id)
    things = {
        name: await made(searching, owner, 100 if FULL else 25, chance)
        for name, owner in {**owners, "D": below}.items()
    }
    of_client = {project.id: project.client_id for some in things.values() for project in some}
    person, guest = await world.user("analyst", str(owners["A"])), await world.user("specialist")
    shared = things["C"][0]
    await world.member(str(shared.id), guest.user_id, 5, 4)  # type: ignore[arg-type]
    mine = {project.id for name in "AD" for project in things[name]}
    callers: list[tuple[Scope, set[UUID]]] = [
        (EVERYTHING, set(of_client)),
        (Scope(user_id=person.user_id), mine),
        (Scope(user_id=guest.user_id), {shared.id}),
        (Scope(client_ids=(owners["B"],)), {project.id for project in things["B"]}),
        (Scope(), set()),
    ]
    await embed(searching)

    def some_conditions() -> list[Condition]:
        hostile = ['x" or client_id != "', "\\", 'отрасль a" || true || industry == "', "отрасль b", "\n\r\t\0"]
        low = chance.randrange(10**6)
        found = chance.sample(
            [
                conditions.equal("industry", chance.choice(hostile)),
                conditions.equal("currency", "RUB"),
                conditions.within("budget_micros", low * 10**6, 10**13),
                conditions.within("performance_rating", UNKNOWN, 10),
                conditions.holds_any("channels", hostile),
                conditions.one_of("client_id", list(owners.values())),
                conditions.either([conditions.equal("status", "draft"), conditions.equal("status", "active")]),
            ],
            k=chance.randrange(3),
        )
        return [each for each in found if each is not None]

    stop, asked = asyncio.Event(), 0

    async def ask(stores: Stores) -> None:
        nonlocal asked
        while not stop.is_set():
            scope, seen = chance.choice(callers)
            client_id = chance.choice([None, None, *owners.values(), below, uuid4()])
            text = " ".join(chance.choices(WORDS, k=4))
            hits = await find(
                stores, KIND, text, scope=scope, where=some_conditions(), client_id=client_id,
                limit=chance.choice([1, 5, 50]), min_score=chance.choice([-1.0, 0.2]),
            )  # fmt: skip
            found = {hit.id for hit in hits if scope is not EVERYTHING or hit.id in of_client}
            assert found <= seen
            assert all(of_client[id_] in (client_id or of_client[id_],) for id_ in found)
            if seen:
                wanted = chance.choice(sorted(seen))
                [item] = await KIND.load(stores.database, [wanted])
                hits = await find(stores, KIND, item.text, scope=scope, client_id=of_client[wanted], limit=3)
                assert hits[0].id == wanted, "what one sees is found, whichever model serves"
            asked += 1

    async with Endpoint().running() as endpoint, other_model(world, endpoint) as changed:
        asking = [asyncio.create_task(ask(changed)) for _ in range(3)]
        try:
            before = (await serving(searching)).name
            await embed(changed)
            after = await serving(searching)
            assert (after.model, after.dimension) == (changed.settings.embedding.model, endpoint.dimension)
            while asked < (400 if FULL else 30) and not any(task.done() for task in asking):
                await asyncio.sleep(0.05)
            # And back again, through the collection that was retired.
            await embed(searching)
            assert (await serving(searching)).name == before
        finally:
            stop.set()
            await asyncio.gather(*asking)
    states = {each.name: each.state for each in await embeddings.collections_internal(searching.database, KIND.name)}
    assert (states[before], states[after.name]) == ("serving", "retired")
    # What serves nobody is dropped once searches that may still ask it have ended.
    kept, searching.settings.embedding.retired_for = searching.settings.embedding.retired_for, timedelta(0)
    await embed(searching)
    searching.settings.embedding.retired_for = kept
    assert not await collections.exists(milvus_of(searching), after.name)


@pytest.mark.bar_g
@pytest.mark.timeout(300)
async def test_nothing_is_missing_after_milvus_was_killed_under_writers(world: World, searching: Stores) -> None:
    chance = random.Random(3)
    owner = UUID((await world.client()).client_id)
    [first] = await made(searching, owner, 1, chance)
    await embed(searching)
    stop = asyncio.Event()
    written: list[UUID] = [first.id]

    async def write() -> None:
        while not stop.is_set():
            written.extend(project.id for project in await made(searching, owner, 5, chance))
            await asyncio.sleep(0.1)

    async def work() -> None:
        while not stop.is_set():
            try:
                await embed(searching)
            except JobPostponed:
                await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(each) for each in (write(), write(), work())]
    down = 0
    # The supervisor waits twice as long after each death.
    for _ in range(6 if FULL else 2):
        await asyncio.sleep(chance.uniform(0.2, 0.6))
        pid = world.engines.pid("milvus")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable):
            # Everything else works, and whoever searches learns of it at once.
            await find(searching, KIND, "банк", client_id=owner)
        down += time.monotonic() - begun < 2.0
        assert (await world.project(str(owner))).project_id
        await back(searching)
    stop.set()
    await asyncio.gather(*tasks)
    assert down
    await embed(searching)
    found = await reconcile(searching)
    await embed(searching)
    collection = (await serving(searching)).name
    held = await collections.digests_internal(milvus_of(searching), collection, written)
    assert set(written) == set(held)
    assert (await reconcile(searching))[collection]["missing"] == 0, found
    hits = await find(searching, KIND, first.name, client_id=owner, limit=3)
    assert hits[0].id == first.id


async def test_what_differs_is_put_right(world: World, searching: Stores) -> None:
    client = await world.client()
    owner = UUID(client.client_id)
    lost, stale, kept = await made(searching, owner, 3, random.Random(11))
    await embed(searching)
    await reconcile(searching)
    await embed(searching)
    milvus, name = milvus_of(searching), (await serving(searching)).name
    left_over, vector = uuid4(), np.ones(512, dtype=np.float32) / np.float32(512**0.5)
    fields = (await KIND.load(searching.database, [kept.id]))[0].fields
    await collections.delete(milvus, name, [lost.id])
    rows = [Row(id_, owner, vector, "0" * 64, "0" * 64, 0, fields) for id_ in (stale.id, left_over)]
    await collections.upsert(milvus, name, KIND.fields, "x", rows)
    found = (await reconcile(searching, kind="project"))[name]
    assert (found["missing"], found["stale"], found["orphaned"]) == (1, 1, 1)
    assert (await embed(searching))["embedded"] == 2
    held = await collections.digests_internal(milvus, name, [lost.id, stale.id, left_over])
    items = {item.id: item for item in await KIND.load(searching.database, [lost.id, stale.id])}
    assert {id_: each.content_hash for id_, each in held.items()} == {
        id_: item.content_hash for id_, item in items.items()
    }
    found = (await reconcile(searching))[name]
    assert (found["missing"], found["stale"], found["orphaned"]) == (0, 0, 0)
    # A purge takes what PostgreSQL does not know of, too.
    await collections.upsert(milvus, name, KIND.fields, "x", rows[1:])
    async with searching.database.transaction("test_purge") as tx:
        await outbox.append(tx, embeddings.ERASURE_TOPIC, str(owner))
    await embed(searching)
    assert not await find(searching, KIND, "банк", client_id=owner)
    await reconcile(searching)
    await embed(searching)
    assert len(await find(searching, KIND, "банк", client_id=owner)) == 3


async def test_a_lost_collection_is_filled_again_and_a_refused_text_stops_nobody(
    world: World, searching: Stores
) -> None:
    owner = UUID((await world.client()).client_id)
    one, two = await made(searching, owner, 2, random.Random(5))
    await embed(searching)
    await collections.drop(milvus_of(searching), (await serving(searching)).name)
    with pytest.raises(StoreUnavailable):
        await find(searching, KIND, one.name, client_id=owner)
    await embeddings.note_internal(searching.database, KIND.name, [one.id])
    await embed(searching)
    assert {hit.id for hit in await find(searching, KIND, one.name, client_id=owner)} == {one.id, two.id}

    async with Endpoint(refused=two.name).running() as endpoint, other_model(world, endpoint) as changed:
        await embed(changed)
        assert [hit.id for hit in await find(changed, KIND, one.name, client_id=owner)] == [one.id]
        status = await world.admin.embeddings.GetEmbeddingStatus(
            pb.GetEmbeddingStatusRequest(), metadata=world.admin.auth
        )
        [kind] = [each for each in status.kinds if each.name == "project"]
        states = {each.state: each for each in kind.collections}
        assert states[embedding_pb2.EMBEDDING_COLLECTION_STATE_SERVING].refused_count == 1
        assert status.available
    await embed(searching)


async def test_operators_have_a_kind_embedded_anew(world: World, searching: Stores) -> None:
    owner = UUID((await world.client()).client_id)
    await made(searching, owner, 2, random.Random(6))
    await embed(searching)
    reply = await world.admin.embeddings.ReembedKind(pb.ReembedKindRequest(kind="project"), metadata=world.admin.auth)
    [job] = await jobs.claim_internal(searching.database, [UUID(reply.job_id)], "test", LEASE)
    await reconcile_job.handle(job, JobContext(searching, job, LEASE))
    await jobs.complete_internal(searching.database, [(job.id, job.fence, {})])
    status = await world.admin.embeddings.GetEmbeddingStatus(pb.GetEmbeddingStatusRequest(), metadata=world.admin.auth)
    waiting = {each.name: each.waiting_count for each in status.kinds}["project"]
    assert waiting >= 2
    run = await world.admin.embeddings.RunEmbedding(pb.RunEmbeddingRequest(), metadata=world.admin.auth)
    again = await world.admin.embeddings.RunEmbedding(pb.RunEmbeddingRequest(), metadata=world.admin.auth)
    assert run.job_id == again.job_id
    assert (await embed(searching))["embedded"] == waiting


async def test_the_embedded_milvus_asks_for_a_password(searching: Stores) -> None:
    assert searching.settings.milvus.dsn is not None
    dsn = searching.settings.milvus.dsn.get_secret_value()
    for other in (dsn.replace("mrm:", "mrm:x"), f"http://{dsn.rpartition('@')[2]}"):
        stranger = Milvus(other)
        with pytest.raises(StoreUnavailable) as caught:
            await stranger.ping()
        assert caught.value.reason == "UNAUTHENTICATED"
        await stranger.close()
