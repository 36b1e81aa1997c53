"""embed.throughput: projects from their notes to vectors in Milvus, as `mrm worker` does it, over the model alone."""

import time
from datetime import timedelta
from uuid import UUID

from benchmarks.harness import Bench, Result, engines, interleaved
from server.jobs.handling import JobContext, Stores
from server.rpc import logs
from server.search import embed_job
from server.search.embed_job import EmbedItems
from server.search.projects import KIND
from server.stores import opened
from storage.postgres import clients, embeddings, jobs, projects

prepared = engines

PROJECTS = 4000
BAR = 0.8
_LEASE = timedelta(minutes=5)
_THEMES = (
    "Запуск нового электромобиля в крупных городах: тест-драйвы, видео и контекстная реклама для семей с детьми",
    "Ипотека для молодых семей, заявки с сайта и звонки, охват в регионах, посадочные страницы под каждый банк",
    "Летняя распродажа спортивной обуви: динамический ретаргетинг, каталог товаров, промокоды для подписчиков",
    "Back to school courses for teenagers, leads by parents, social networks and search, weekly creative tests",
    "Coffee subscription for offices, brand awareness first, then trials, with a small budget in two capitals",
)


async def run(bench: Bench) -> list[Result]:
    """Measures texts a second: the whole of the job against the model on the same texts."""
    logs.configure("WARNING")
    await bench.engines.begin("milvus")
    count = max(100, int(PROJECTS * bench.scale))
    async with opened(bench.settings, "mrm-bench") as stores:
        ids = await _projects(stores, count)
        texts = [item.text for item in await KIND.load(stores.database, ids)]
        await stores.embedders.present.embed(texts[:1])
        # The first job also makes the collection.
        await _job(stores)

        async def pipeline() -> float:
            [collection] = await embeddings.collections_internal(stores.database, KIND.name)
            await embeddings.forget_internal(stores.database, collection.name)
            await embeddings.note_internal(stores.database, KIND.name, ids)
            begun = time.perf_counter()
            await _job(stores)
            return count / (time.perf_counter() - begun)

        async def model() -> float:
            embedder = stores.embedders.present
            begun = time.perf_counter()
            for start in range(0, count, embedder.batch):
                await embedder.embed(texts[start : start + embedder.batch])
            return count / (time.perf_counter() - begun)

        value, floor, ratio = await interleaved(bench.rounds, pipeline, model, settle=bench.settle / 4)
    return [Result("embed.throughput", value, "texts/s", floor, ratio, BAR, ratio >= BAR)]


async def _projects(stores: Stores, count: int) -> list[UUID]:
    async with stores.database.transaction("bench_projects") as tx:
        client = await clients.create(tx, name="Bench", type="direct_advertiser")
        made = [
            await projects.create(
                tx,
                client_id=client.id,
                name=f"Проект {number}",
                brief={"objective": _THEMES[number % len(_THEMES)], "audience": _THEMES[number * 7 % len(_THEMES)]},
            )
            for number in range(count)
        ]
    return [project.id for project in made]


async def _job(stores: Stores) -> None:
    async with stores.database.transaction("bench_embed") as tx:
        made = await jobs.enqueue_internal(
            tx, type=embed_job.TYPE, queue=embed_job.QUEUE, payload=EmbedItems().model_dump(), unique_key=embed_job.KEY
        )
    [job] = await jobs.claim_internal(stores.database, [made.id], "bench", _LEASE)
    result = await embed_job.handle(job, JobContext(stores, job, _LEASE))
    await jobs.complete_internal(stores.database, [(job.id, job.fence, result)])
