"""search.projects: SearchProjects over 20 000 projects, over bare searches for the same vectors with pymilvus.

Both have Milvus find the fifty nearest of the client: the service ranks these with what has the words, and shows ten.

Neither side embeds: each question was asked once before, and the service keeps the vectors of recent questions.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import grpc
import numpy as np
from pymilvus import AsyncMilvusClient

from benchmarks.harness import Bench, Result, console, engines, interleaved, server
from mrm.ai.v1 import search_service_pb2 as pb
from mrm.ai.v1 import search_service_pb2_grpc as rpc
from server.rpc.auth import KEY_PREFIX, digest, new_secret
from server.search import projects as kind
from server.search.embedding import EmbeddingWork
from server.stores import opened
from storage.milvus import searching
from storage.postgres import api_keys, clients, embeddings, projects
from storage.scope import Scope

PROJECTS = 20_000
SEARCHES = 200
PAGE = 10
DEEP = 50
KEYS = 20
BAR = 0.6
RECALL_BAR = 0.97

# What briefs are made of: what is advertised, to whom, what for, and how.
_THINGS = (
    *("кофе", "электромобиль", "ипотека", "курсы английского", "пуховики", "корм для кошек", "имплантация зубов"),
    *("стройматериалы", "доставка продуктов", "театральная премьера", "шины", "страхование жизни", "детский сад"),
    *(
        "running shoes",
        "solar panels",
        "cloud accounting",
        "city hotel",
        "mattress",
        "craft beer",
        "data science course",
    ),
    *("winter tyres", "vegan food", "e-bikes", "private clinic", "music festival", "warehouse software"),
)
_PEOPLE = (
    *("молодые семьи", "студенты", "пенсионеры", "владельцы квартир", "главные бухгалтеры", "мамы малышей"),
    *("commuters", "small companies", "tourists", "gamers", "doctors", "homeowners"),
)
_AIMS = (
    *(
        "заявки на замер",
        "запуск новой марки",
        "распродажа остатков",
        "установки приложения",
        "узнаваемость в регионах",
    ),
    *("first orders", "trial subscriptions", "store visits", "lead generation", "win back lapsed customers"),
)
_WAYS = (
    *("поисковая реклама и карты", "видео у блогеров", "наружная реклама", "ретаргетинг", "радио и подкасты"),
    *("paid social", "search and shopping", "native articles", "connected tv", "email to members"),
)
# Names that some ten projects share, as they do in an agency.
_SYLLABLES = ("ma", "ro", "ti", "ve", "lu", "sa", "ne", "ko", "di", "pra", "мо", "ра", "ти", "ве", "лу")
_BRANDS = [a + b + c for a in _SYLLABLES for b in _SYLLABLES for c in _SYLLABLES][::2]


@dataclass(frozen=True)
class Library:
    """What is searched, by whom and with what.

    Attributes:
        secrets: Keys, of which each makes fewer calls than its limit allows.
        vectors: Of the questions, in their order.
        filter: What keeps the bare search within the client.
    """

    secrets: list[str]
    collection: str
    questions: list[str]
    vectors: list[Any]
    filter: str


@asynccontextmanager
async def prepared(scale: float) -> AsyncIterator[Bench]:
    """Engines with Milvus, and a server on them."""
    async with engines(scale) as bench:
        await bench.engines.begin("milvus")
        async with server(bench) as target:
            yield replace(bench, target=target)


async def run(bench: Bench) -> list[Result]:
    """Measures first pages of ten, one search after another."""
    library = await _prepare(bench)
    milvus = AsyncMilvusClient(uri=bench.connections.milvus_dsn)
    count = max(8, int(SEARCHES * bench.scale))
    try:
        async with grpc.aio.insecure_channel(bench.target) as channel:
            stub = rpc.SearchServiceStub(channel)
            for number in range(len(library.questions)):
                await _asked(stub, library, number)
            value, floor, ratio = await interleaved(
                bench.rounds,
                lambda: _rate(count, lambda number: _asked(stub, library, number)),
                lambda: _rate(count, lambda number: _bare(milvus, library, number)),
                settle=min(1.0, bench.settle),
            )
    finally:
        await milvus.close()
    recall = await _recall(bench, library)
    return [
        Result("search.projects", value, "searches/s", floor, ratio, BAR, ratio >= BAR),
        Result("search.recall_at_10", recall, "share", None, None, RECALL_BAR, recall >= RECALL_BAR),
    ]


async def _prepare(bench: Bench) -> Library:
    """Projects with briefs, embedded by the service's own work, and a key of their client."""
    chance = random.Random(5)
    count = max(200, int(PROJECTS * bench.scale))
    async with opened(bench.settings, "mrm-bench-search") as stores:
        client = await clients.create(stores.database, name="bench", type="direct_advertiser", industry="retail")
        for begin in range(0, count, 1000):
            async with stores.database.transaction("fill") as tx:
                for _ in range(min(1000, count - begin)):
                    thing, people, aim, way = map(chance.choice, (_THINGS, _PEOPLE, _AIMS, _WAYS))
                    brief = {"objective": f"{aim.capitalize()}: {thing}", "audience": people, "message": way}
                    name = f"{chance.choice(_BRANDS)}: {thing}"
                    await projects.create(tx, client_id=client.id, name=name, brief=brief)
        begun = time.perf_counter()

        async def tell(done: int, total: int, message: str) -> None:
            console.print(f"  {done:,} of {total:,} embedded")

        await EmbeddingWork(stores, kind.KIND, stores.database.transaction, tell).run()
        console.print(f"  {count:,} projects in {time.perf_counter() - begun:.1f} s")
        serving = await embeddings.serving(stores.database, kind.KIND.name)
        assert serving is not None
        questions = [
            f"{chance.choice(_AIMS)} {chance.choice(_THINGS)} {chance.choice((*_PEOPLE, *_BRANDS[:20]))}"
            for _ in range(50)
        ]
        vectors = await stores.embedders.present.embed(questions)
        await stores.database.execute("ANALYZE")
        secrets = [new_secret(KEY_PREFIX) for _ in range(KEYS)]
        for secret in secrets:
            await api_keys.create(
                stores.database,
                name="bench",
                key_hash=bytes.fromhex(digest(secret)),
                prefix=secret[:11],
                permissions=["SEARCH", "PROJECTS_READ", "MEDIA_PLANS_READ"],
                client_ids=[client.id],
            )
        return Library(secrets, serving.name, questions, list(vectors), f'client_id in ["{client.id}"]')


async def _rate(count: int, search: Any) -> float:
    """Searches a second."""

    begun = time.perf_counter()
    for number in range(count):
        await search(number)
    return count / (time.perf_counter() - begun)


async def _asked(stub: Any, library: Library, number: int) -> None:
    request = pb.SearchProjectsRequest(query=library.questions[number % len(library.questions)], page_size=PAGE)
    metadata = (("authorization", f"Bearer {library.secrets[number % len(library.secrets)]}"),)
    reply = await stub.SearchProjects(request, metadata=metadata)
    if len(reply.results) != PAGE:
        raise RuntimeError(f"{len(reply.results)} results")


async def _bare(milvus: AsyncMilvusClient, library: Library, number: int) -> None:
    vector = library.vectors[number % len(library.vectors)]
    found = await milvus.search(
        library.collection,
        data=[vector],
        anns_field="vector",
        filter=library.filter,
        limit=DEEP,
        output_fields=["client_id"],
        search_params={"metric_type": "COSINE"},
        timeout=10,
    )
    if len(found[0]) != DEEP:
        raise RuntimeError(f"{len(found[0])} results")


async def _recall(bench: Bench, library: Library) -> float:
    """How many of the ten nearest by brute force are found, over all questions."""
    async with opened(bench.settings, "mrm-bench-search") as stores:
        rows = await stores.database.fetch("SELECT id FROM projects ORDER BY id")
        items = await kind.load(stores.database, [row[0] for row in rows])
        ids = [item.id for item in items]
        vectors = await stores.embedders.present.embed([item.text for item in items])
        return float(
            np.mean([await _found(stores, library.collection, each, ids, vectors) for each in library.vectors])
        )


async def _found(stores: Any, collection: str, vector: Any, ids: list[UUID], vectors: Any) -> float:
    hits = await searching.search(stores.milvus, stores.database, Scope(everything=True), collection, vector, limit=10)
    cosines = vectors @ vector
    # Briefs of the same words are equally near: any of them is right.
    tenth = np.sort(cosines)[-10] - 1e-5
    near = {ids[place] for place in np.flatnonzero(cosines >= tenth)}
    return len(near & {hit.id for hit in hits}) / 10
