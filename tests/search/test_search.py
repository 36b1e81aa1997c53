"""SearchService: what is found, why, by whom, and what happens while Milvus is away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from mrm.accounts.v1 import client_pb2, client_service_pb2
from mrm.ai.v1 import search_service_pb2 as pb
from mrm.ai.v1 import template_service_pb2
from mrm.common.v1 import channel_pb2, money_pb2, options_pb2, platform_pb2
from mrm.planning.v1 import project_member_pb2, project_pb2, project_service_pb2
from server.app import Application
from server.jobs.handling import Stores
from storage.postgres import projects
from storage.scope import EVERYTHING
from tests.conftest import Caller, Failing, World, settings_for
from tests.feedback import asking
from tests.planning import plans
from tests.search.test_templates import PLAN, REPORT, TEXT, columns, made
from tests.search.working import embed

NOWHERE = SecretStr("http://127.0.0.1:1")


async def found(caller: Caller, query: str = "", **fields: Any) -> list[pb.FoundProject]:
    """Everything that a search finds, on one page."""
    request = pb.SearchProjectsRequest(**({"query": query} if query else {}), **fields)
    return list((await caller.search.SearchProjects(request, metadata=caller.auth)).results)


def ids(results: list[pb.FoundProject]) -> list[str]:
    return [each.project.project_id for each in results]


def of(client_id: str, **fields: Any) -> pb.ProjectSearchFilter:
    return pb.ProjectSearchFilter(client_id=client_id, **fields)


def rub(units: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="RUB", micros=units * 10**6)


def brief(objective: str) -> project_pb2.ProjectBrief:
    return project_pb2.ProjectBrief(objective=objective)


async def test_a_match_says_why(world: World, searching: Stores) -> None:
    client = await world.client()
    kept = await world.project(
        client.client_id, display_name="Электромобиль", description="Весенний запуск",
        brief=brief("Записать водителей на тест-драйв городского электромобиля"),
    )  # fmt: skip
    await world.project(client.client_id, display_name="Йогурт", brief=brief("Пробники в фитнес-клубах"))
    await embed(searching)
    results = await found(world.admin, "запись на тест-драйвы электромобилей", filter=of(client.client_id))
    assert ids(results)[0] == kept.project_id
    match = results[0].match
    # "на" says nothing, "запись" is another word than "записать".
    assert {term.term: list(term.fields) for term in match.terms} == {
        "тест": [pb.SEARCH_FIELD_BRIEF],
        "драйвы": [pb.SEARCH_FIELD_BRIEF],
        "электромобилей": [pb.SEARCH_FIELD_NAME, pb.SEARCH_FIELD_BRIEF],
    }
    assert match.keyword_score == pytest.approx(3 / 4)
    assert match.HasField("semantic_score") and match.semantic_score > 0.4
    assert match.score == pytest.approx(0.8 * match.semantic_score + 0.2 * match.keyword_score)
    # The other one is far in meaning and has no word of it.
    assert results[1].match.score < 0.3 and not results[1].match.terms
    assert len(await found(world.admin, "тест-драйв электромобиля", filter=of(client.client_id), min_score=0.4)) == 1


async def test_what_is_not_embedded_yet_is_found_by_its_words(world: World, searching: Stores) -> None:
    client = await world.client()
    await embed(searching)
    new = await world.project(client.client_id, display_name="Zephyrblatt campaign")
    [result] = await found(world.admin, "zephyrblatt", filter=of(client.client_id))
    assert result.project.project_id == new.project_id
    assert not result.match.HasField("semantic_score") and result.match.keyword_score == 1.0


async def test_media_plans_are_searched_and_filtered_by(world: World, searching: Stores) -> None:
    client = await world.client()
    planned = await world.project(client.client_id, display_name="One", total_budget=rub(500))
    other = await world.project(client.client_id, display_name="Two", total_budget=rub(900))
    bare = await world.project(client.client_id, display_name="Three")
    video = plans.channel(
        100 * 10**6,
        channel_type=channel_pb2.CHANNEL_TYPE_VIDEO,
        platform=platform_pb2.PLATFORM_VK_ADS,
        format="zorbing_wall",
    )
    await plans.create(world.admin, planned.project_id, channels=[video])
    await embed(searching)

    async def only(**fields: Any) -> set[str]:
        return set(ids(await found(world.admin, "campaign", filter=of(client.client_id, **fields))))

    [by_plan] = await found(world.admin, "zorbing", filter=of(client.client_id), min_score=0.3)
    assert by_plan.project.project_id == planned.project_id
    assert list(by_plan.match.terms[0].fields) == [pb.SEARCH_FIELD_MEDIA_PLAN]
    assert await only() == {planned.project_id, other.project_id, bare.project_id}
    assert await only(channel_types=[channel_pb2.CHANNEL_TYPE_VIDEO]) == {planned.project_id}
    assert await only(platforms=[platform_pb2.PLATFORM_VK_ADS]) == {planned.project_id}
    assert await only(channel_types=[channel_pb2.CHANNEL_TYPE_AUDIO]) == set()
    assert await only(min_budget=rub(0)) == {planned.project_id, other.project_id}
    assert await only(min_budget=rub(501)) == {other.project_id}
    assert await only(max_budget=rub(500)) == {planned.project_id}
    assert await only(min_budget=rub(500), max_budget=rub(900)) == {planned.project_id, other.project_id}
    assert await only(max_budget=money_pb2.Money(currency_code="EUR", micros=10**12)) == set()
    assert await only(statuses=[project_pb2.PROJECT_STATUS_ACTIVE]) == set()


async def test_ratings_and_lines_of_business_are_filtered_by(world: World, searching: Stores) -> None:
    agency = await world.client(type=client_pb2.CLIENT_TYPE_AGENCY)
    rated = {}
    for industry, rating in (("Retail", 9), ("retail", 3), ("Travel", 9)):
        client = await world.client(parent_client_id=agency.client_id, industry=industry)
        project = await world.project(client.client_id, display_name="Sale")
        row = await projects.get(world.database, EVERYTHING, UUID(project.project_id))
        assert row is not None
        await projects.update(world.database, EVERYTHING, replace(row, status="completed", performance_rating=rating))
        rated[industry, rating] = project.project_id
    await embed(searching)
    pm = await world.user("pm", agency.client_id)

    async def only(**fields: Any) -> set[str]:
        return set(ids(await found(pm, "sale", filter=pb.ProjectSearchFilter(**fields))))

    assert await only() == set(rated.values())
    assert await only(industries=["RETAIL"]) == {rated["Retail", 9], rated["retail", 3]}
    assert await only(min_performance_rating=8) == {rated["Retail", 9], rated["Travel", 9]}
    assert await only(max_performance_rating=8) == {rated["retail", 3]}
    assert await only(industries=["travel"], min_performance_rating=8) == {rated["Travel", 9]}


async def test_projects_like_another_are_found(world: World, searching: Stores, failing: Failing) -> None:
    client, stranger = await world.client(), await world.user("pm", (await world.client()).client_id)
    car, suv, tea = [
        await world.project(client.client_id, display_name=name, brief=brief(text))
        for name, text in (
            ("Кроссовер", "Тест-драйвы нового кроссовера у дилеров"),
            ("SUV launch", "Book test drives of our new off-road car"),
            ("Чай", "Новая упаковка чая в пирамидках"),
        )
    ]
    await embed(searching)
    results = ids(await found(world.admin, project_id=car.project_id, filter=of(client.client_id)))
    assert results == [suv.project_id, tea.project_id]
    failure = await failing(found(stranger, project_id=car.project_id))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_pages_follow_each_other_and_belong_to_one_search(
    world: World, searching: Stores, failing: Failing
) -> None:
    client = await world.client()
    everything = {
        (await world.project(client.client_id, display_name=f"Lamp {number}")).project_id for number in range(7)
    }
    await embed(searching)
    pm = await world.user("pm", client.client_id)
    seen: list[str] = []
    request = pb.SearchProjectsRequest(query="lamp", page_size=3)
    for pages in range(1, 4):
        reply = await pm.search.SearchProjects(request, metadata=pm.auth)
        seen += ids(list(reply.results))
        request.page_token = reply.next_page_token or request.page_token
        assert bool(reply.next_page_token) == (pages < 3)
    assert len(seen) == 7 and set(seen) == everything
    whole = await found(pm, "lamp")
    assert ids(whole) == seen
    for other, caller in ((pb.SearchProjectsRequest(query="lamps"), pm), (request, world.admin)):
        other.page_token = request.page_token
        failure = await failing(caller.search.SearchProjects(other, metadata=caller.auth))
        assert failure.reason == "PAGE_TOKEN_INVALID"


async def test_rights_are_those_of_the_moment(world: World, searching: Stores) -> None:
    client = await world.client()
    first, second = [await world.project(client.client_id, display_name=f"Harbour {n}") for n in range(2)]
    await embed(searching)
    outsider = await world.user("analyst")
    assert await found(outsider, "harbour") == []
    assert outsider.user_id
    role, raci = project_member_pb2.PROJECT_ROLE_ANALYST, project_member_pb2.RACI_INFORMED
    await world.member(first.project_id, outsider.user_id, role, raci)
    assert ids(await found(outsider, "harbour")) == [first.project_id]
    member = await world.user("specialist", client.client_id)
    assert set(ids(await found(member, "harbour"))) == {first.project_id, second.project_id}
    for permissions, seen in (
        ([options_pb2.PERMISSION_SEARCH], 0),
        ([options_pb2.PERMISSION_SEARCH, options_pb2.PERMISSION_PROJECTS_READ], 0),
        ([options_pb2.PERMISSION_SEARCH, options_pb2.PERMISSION_PROJECTS_READ,
          options_pb2.PERMISSION_MEDIA_PLANS_READ], 2),
    ):  # fmt: skip
        assert len(await found(await world.key([client.client_id], *permissions), "harbour")) == seen


async def test_vectors_that_are_stale_show_nothing(world: World, searching: Stores) -> None:
    client = await world.client()
    kept, put_away = [await world.project(client.client_id, display_name=f"Lighthouse {n}") for n in range(2)]
    await embed(searching)
    archive = project_service_pb2.ArchiveProjectRequest(project_id=put_away.project_id)
    await world.admin.projects.ArchiveProject(archive, metadata=world.admin.auth)
    rename = project_service_pb2.UpdateProjectRequest(project={"project_id": kept.project_id, "display_name": "Tea"})  # type: ignore[arg-type]
    rename.update_mask.paths.append("display_name")
    await world.admin.projects.UpdateProject(rename, metadata=world.admin.auth)
    # Nothing was embedded since: the vectors are of before.
    [result] = await found(world.admin, "lighthouse", filter=of(client.client_id))
    assert (result.project.project_id, result.project.display_name) == (kept.project_id, "Tea")
    assert result.match.keyword_score == 0.0
    request = client_service_pb2.ArchiveClientRequest(client_id=client.client_id)
    await world.admin.clients.ArchiveClient(request, metadata=world.admin.auth)
    assert await found(world.admin, "lighthouse", filter=of(client.client_id)) == []


async def test_templates_are_found_by_words_columns_and_kind(world: World, searching: Stores) -> None:
    client = (await world.client()).client_id
    pm = await world.user("pm", client)
    weekly = await made(pm, client, display_name="Недельный отчёт", columns=columns(Клики=TEXT, Расход=TEXT))
    plan = await made(pm, client, display_name="Media plan", artifact_type=PLAN, columns=columns(Channel=TEXT))
    await embed(searching)

    async def templates(**fields: Any) -> list[pb.FoundTemplate]:
        request = pb.SearchTemplatesRequest(client_id=client, **fields)
        return list((await pm.search.SearchTemplates(request, metadata=pm.auth)).results)

    [first, second] = await templates(query="weekly report")
    assert (first.template.template_id, second.template.template_id) == (weekly.template_id, plan.template_id)
    by_columns = await templates(columns=["Клик", "расходы"])
    assert by_columns[0].template == weekly
    assert {field for term in by_columns[0].match.terms for field in term.fields} == {pb.SEARCH_FIELD_COLUMNS}
    assert [each.template for each in await templates(query="anything", artifact_types=[PLAN])] == [plan]
    assert [each.template for each in await templates(query="anything", artifact_types=[REPORT])] == [weekly]
    use = template_service_pb2.UseTemplateRequest(template_id=weekly.template_id)
    await pm.templates.UseTemplate(use, metadata=pm.auth)
    # Its use is counted in PostgreSQL and embeds nothing.
    assert (await embed(searching))["things"]["template"] == 0
    assert (await templates(query="weekly report"))[0].template.use_count == 1
    gone = template_service_pb2.DeleteTemplateRequest(template_id=plan.template_id)
    await pm.templates.DeleteTemplate(gone, metadata=pm.auth)
    assert [each.template.template_id for each in await templates(query="media plan")] == [weekly.template_id]


async def test_answers_that_people_took_are_examples(world: World, searching: Stores) -> None:
    desk, other = await asking.desk(world, category="report"), await asking.desk(world)
    said = {
        "cars": desk.record(output_text="Продажи электромобилей выросли на пятую часть"),
        "edited": desk.record(output_text="x", edited_text="Sales of electric cars grew", action=asking.EDITED),
        "rejected": desk.record(output_text="Electric cars are bad", action=asking.REJECTED),
        "bread": desk.record(output_text="Хлеб покупают утром"),
        "foreign": other.record(output_text="Electric cars elsewhere"),
    }
    results = await asking.batch(world.admin, *said.values())
    keys = dict(zip((result.feedback_id for result in results), said, strict=True))
    await embed(searching)
    pm = await world.user("pm", desk.client_id)

    async def examples(caller: Caller, **fields: Any) -> list[str]:
        request = pb.FindExamplesRequest(query="how did electric cars sell?", **fields)
        reply = await caller.search.FindExamples(request, metadata=caller.auth)
        return [keys[each.feedback_id] for each in reply.results]

    assert await examples(pm) == ["edited", "cars", "bread"]
    assert await examples(pm, prompt_id=desk.prompt_id, min_score=0.3) == ["edited", "cars"]
    assert await examples(pm, prompt_id=other.prompt_id) == []
    assert await examples(world.admin, client_id=other.client_id) == ["foreign"]
    request = pb.FindExamplesRequest(query="electric cars", client_id=desk.client_id, page_size=1)
    [example] = (await pm.search.FindExamples(request, metadata=pm.auth)).results
    assert (example.text, example.prompt_version_id) == ("Sales of electric cars grew", desk.versions[0])
    assert [term.term for term in example.match.terms] == ["electric", "cars"]
    assert await examples(await world.key([desk.client_id], options_pb2.PERMISSION_SEARCH)) == []


async def test_without_milvus_nothing_is_found_and_all_else_works(world: World, failing: Failing) -> None:
    settings = settings_for(world.connections)
    settings.milvus.dsn = NOWHERE
    application = Application(settings)
    await application.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
            admin = Caller(channel, world.admin.token)
            project = (await world.project((await world.client()).client_id)).project_id
            failure = await failing(found(admin, "anything"))
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert failure.metadata["store"] == "milvus" and failure.retry_seconds
            read = project_service_pb2.GetProjectRequest(project_id=project)
            assert (await admin.projects.GetProject(read, metadata=admin.auth)).project.project_id == project
            wanted = template_service_pb2.SuggestTemplateRequest(columns=columns(Clicks=TEXT))
            await admin.templates.SuggestTemplate(wanted, metadata=admin.auth)
            health = health_pb2_grpc.HealthStub(channel)

            async def serves(service: str) -> int:
                return (await health.Check(health_pb2.HealthCheckRequest(service=service))).status

            assert await serves("mrm.ai.v1.SearchService") == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await serves("mrm.ai.v1.TemplateService") == health_pb2.HealthCheckResponse.SERVING
            assert await serves("") == health_pb2.HealthCheckResponse.SERVING
    finally:
        await application.stop()


async def test_searches_at_once_do_not_mix(world: World, searching: Stores) -> None:
    clients = [(await world.client()).client_id for _ in range(3)]
    for client in clients:
        await world.project(client, display_name="Same name", brief=brief("the same brief"))
    await embed(searching)
    wanted = [client for _ in range(8) for client in clients]
    results = await asyncio.gather(*(found(world.admin, "same brief", filter=of(client)) for client in wanted))
    assert [[each.project.client_id for each in result] for result in results] == [[client] for client in wanted]
