"""What is noted becomes vectors: of the present text, once, in all live collections, and gone when the thing is."""

from __future__ import annotations

from uuid import UUID

from mrm.accounts.v1 import client_service_pb2
from mrm.planning.v1 import project_pb2, project_service_pb2
from server.jobs.handling import Stores
from server.search.projects import KIND
from storage.milvus import collections, conditions
from storage.postgres import embeddings
from tests.conftest import World
from tests.search.working import embed, find


def brief(**parts: str) -> project_pb2.ProjectBrief:
    return project_pb2.ProjectBrief(**parts)


async def test_a_project_is_found_by_what_its_brief_means(world: World, searching: Stores) -> None:
    client = await world.client(industry="Авто")
    car = await world.project(
        client.client_id,
        display_name="Запуск электромобиля",
        brief=brief(objective="Привлечь покупателей нового электрического автомобиля", audience="водители"),
    )
    shoes = await world.project(
        client.client_id, display_name="Кроссовки", brief=brief(objective="Распродажа спортивной обуви")
    )
    await embed(searching)
    owner = UUID(client.client_id)
    hits = await find(searching, KIND, "advertising of electric cars", client_id=owner, fields=["industry", "status"])
    assert [str(hit.id) for hit in hits] == [car.project_id, shoes.project_id]
    assert hits[0].score > hits[1].score
    assert hits[0].client_id == owner
    assert hits[0].fields == {"industry": "авто", "status": "draft"}


async def test_only_what_changed_is_embedded_again(world: World, searching: Stores) -> None:
    client = await world.client()
    project = await world.project(client.client_id, display_name="Дача", brief=brief(objective="Продажа теплиц"))
    await embed(searching)
    assert (await embed(searching))["embedded"] == 0

    async def change(path: str, **fields: object) -> dict[str, object]:
        request = project_service_pb2.UpdateProjectRequest(
            project=project_pb2.Project(project_id=project.project_id, **fields),  # type: ignore[arg-type]
        )
        request.update_mask.paths.append(path)
        await world.admin.projects.UpdateProject(request, metadata=world.admin.auth)
        return dict(await embed(searching))

    budget = project_pb2.Project().total_budget
    budget.currency_code, budget.micros = "RUB", 5 * 10**12
    # The fields follow without the model being asked.
    assert (await change("total_budget", total_budget=budget))["embedded"] == 0
    rich = conditions.within("budget_micros", 4 * 10**12, 6 * 10**12)
    assert rich is not None
    owner = UUID(client.client_id)
    assert [str(hit.id) for hit in await find(searching, KIND, "теплицы", client_id=owner, where=[rich])] == [
        project.project_id
    ]
    assert (await change("brief.objective", brief=brief(objective="Банковские вклады для пенсионеров")))[
        "embedded"
    ] == 1
    [hit] = await find(searching, KIND, "bank deposits", client_id=owner)
    assert hit.score > 0.3


async def test_what_is_archived_or_purged_is_found_no_more(world: World, searching: Stores) -> None:
    client = await world.client()
    kept = await world.project(client.client_id, display_name="Реклама кофе")
    await embed(searching)
    owner, item = UUID(client.client_id), UUID(kept.project_id)
    serving = await embeddings.serving(searching.database, KIND.name)
    assert serving is not None
    assert searching.milvus is not None
    assert await find(searching, KIND, "кофе", client_id=owner)
    await world.admin.clients.ArchiveClient(
        client_service_pb2.ArchiveClientRequest(client_id=client.client_id), metadata=world.admin.auth
    )
    await embed(searching)
    assert not await find(searching, KIND, "кофе", client_id=owner)
    assert not await collections.digests_internal(searching.milvus, serving.name, [item])
    assert not await embeddings.stored_internal(searching.database, serving.name, [item])
