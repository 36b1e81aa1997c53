"""The bar of tenants: no search, with any filter, shows another client's thing, also while vectors are made anew."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest

from mrm.ai.v1 import search_service_pb2 as pb
from mrm.common.v1 import channel_pb2, money_pb2, options_pb2, platform_pb2
from mrm.planning.v1 import project_member_pb2, project_pb2
from server.jobs.handling import Stores
from server.search.embedding import EmbeddingWork
from server.search.registry import KINDS
from storage.postgres import embeddings
from tests.conftest import Caller, World
from tests.feedback import asking
from tests.search.test_templates import TEXT, columns, made
from tests.search.working import embed

SWITCHES = 12 if os.environ.get("MRM_BARS") == "full" else 2
TEXTS = (
    ("Электромобили", "Тест-драйвы городского электромобиля"),
    ("Hotel bookings", "Guests shall book on the hotel's own site"),
    ("Доставка продуктов", "Первые заказы быстрой доставки"),
)
QUESTIONS = ("электромобиль", "book a hotel", "доставка еды", "campaign", "same words everywhere", "Тест-драйвы")


@dataclass
class Tenant:
    """A client whose things read like everybody else's."""

    client_id: str
    projects: list[str] = field(default_factory=list)
    others: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Searcher:
    """Somebody who searches, and all that may be shown to them."""

    caller: Caller
    may_see: frozenset[str]


async def tenant(world: World) -> Tenant:
    desk = await asking.desk(world, industry="travel")
    made_here = Tenant(desk.client_id, [desk.project_id])
    for name, objective in TEXTS:
        project = await world.project(
            desk.client_id,
            display_name=name,
            brief=project_pb2.ProjectBrief(objective=objective),
            total_budget=money_pb2.Money(currency_code="RUB", micros=10**9),
        )
        made_here.projects.append(project.project_id)
        template = await made(world.admin, desk.client_id, display_name=name, columns=columns(Clicks=TEXT))
        made_here.others.add(template.template_id)
    for result in await asking.batch(world.admin, *(desk.record(output_text=text) for _, text in TEXTS)):
        made_here.others.add(result.feedback_id)
    return made_here


def everything(one: Tenant) -> frozenset[str]:
    return frozenset(one.projects) | one.others


def project_search(numbers: random.Random, tenants: list[Tenant]) -> pb.SearchProjectsRequest:
    def maybe(value: Any, nothing: Any) -> Any:
        return value if numbers.random() < 0.25 else nothing

    wanted = pb.ProjectSearchFilter(
        client_id=numbers.choice(["", "", *(each.client_id for each in tenants)]),
        industries=maybe(["travel"], []),
        channel_types=maybe([numbers.choice(channel_pb2.ChannelType.values()[1:])], []),
        platforms=maybe([numbers.choice(platform_pb2.Platform.values()[1:])], []),
        min_performance_rating=maybe(1, 0),
        statuses=maybe([project_pb2.PROJECT_STATUS_DRAFT], []),
        min_budget=maybe(money_pb2.Money(currency_code="RUB", micros=1), None),
    )
    request = pb.SearchProjectsRequest(
        filter=wanted, min_score=maybe(0.1, 0.0), page_size=numbers.choice([1, 3, 0]), query=numbers.choice(QUESTIONS)
    )
    if numbers.random() < 0.15:
        request.project_id = numbers.choice(numbers.choice(tenants).projects)
    return request


async def shown(searcher: Searcher, numbers: random.Random, tenants: list[Tenant]) -> set[str]:
    """Ids of everything that one search shows, over up to three pages."""
    stub, client = searcher.caller.search, numbers.choice(["", *(each.client_id for each in tenants)])
    call: Any
    match numbers.randrange(4):
        case 0:
            call, request = stub.FindExamples, pb.FindExamplesRequest(query=numbers.choice(QUESTIONS), client_id=client)
        case 1:
            request = pb.SearchTemplatesRequest(query=numbers.choice(QUESTIONS), client_id=client)  # type: ignore[assignment]
            call = stub.SearchTemplates
        case _:
            call, request = stub.SearchProjects, project_search(numbers, tenants)  # type: ignore[assignment]
    found: set[str] = set()
    for _ in range(3):
        try:
            reply = await call(request, metadata=searcher.caller.auth)
        except grpc.aio.AioRpcError as error:
            # Like a project that the caller does not see.
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return found
            raise
        for each in reply.results:
            match each:
                case pb.FoundProject():
                    found.add(each.project.project_id)
                case pb.FoundTemplate():
                    found.add(each.template.template_id)
                case _:
                    found.add(each.feedback_id)
        if not reply.next_page_token:
            return found
        request.page_token = reply.next_page_token
    return found


async def remade(stores: Stores, revision: int) -> str:
    """Makes all vectors of projects anew, in another collection, and switches; returns its name."""

    async def tell(done: int, total: int, message: str) -> None:
        await asyncio.sleep(0)

    kind = replace(KINDS["project"], revision=revision)
    await EmbeddingWork(stores, kind, stores.database.transaction, tell).run()
    serving = await embeddings.serving(stores.database, kind.name)
    assert serving is not None
    return serving.name


@pytest.mark.bar_g
async def test_nobody_is_ever_shown_anothers_things(world: World, searching: Stores) -> None:
    tenants = [await tenant(world) for _ in range(3)]
    await embed(searching)
    guest = await world.user("analyst")
    assert guest.user_id
    await world.member(
        tenants[1].projects[0],
        guest.user_id,
        project_member_pb2.PROJECT_ROLE_ANALYST,
        project_member_pb2.RACI_CONSULTED,
    )
    reading = ("SEARCH", "PROJECTS_READ", "MEDIA_PLANS_READ", "TEMPLATES_READ", "FEEDBACK_READ")
    rights = [options_pb2.Permission.Value(f"PERMISSION_{name}") for name in reading]
    searchers = [
        Searcher(await world.user("pm", tenants[0].client_id), everything(tenants[0])),
        Searcher(guest, frozenset(tenants[1].projects[:1])),
        Searcher(await world.key([tenants[2].client_id], *rights), everything(tenants[2])),
        Searcher(await world.user("pm"), frozenset()),
    ]
    switching = True
    seen: set[str] = set()

    async def search(searcher: Searcher, seed: int) -> None:
        numbers = random.Random(seed)
        count = 0
        while switching or count < 20:
            found = await shown(searcher, numbers, tenants)
            assert found <= searcher.may_see, f"seed {seed}, search {count}"
            seen.update(found)
            count += 1

    searches = [asyncio.create_task(search(searcher, seed)) for seed, searcher in enumerate(searchers)]
    try:
        names = [await remade(searching, 1 + (number + 1) % 2) for number in range(SWITCHES)]
    finally:
        switching = False
    await asyncio.gather(*searches)
    assert len(set(names)) == 2
    # They did find what is theirs, of every kind.
    assert seen == everything(tenants[0]) | everything(tenants[2]) | {tenants[1].projects[0]}
