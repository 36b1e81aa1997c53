"""SearchService: projects, templates and examples found by meaning and by words."""

from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Final
from uuid import UUID

from mrm.ai.v1 import prompt_pb2
from mrm.ai.v1 import search_service_pb2 as pb
from mrm.common.v1 import channel_pb2, money_pb2, platform_pb2
from server.planning import convert as planning
from server.rpc import rights
from server.rpc.call import Call
from server.rpc.errors import InvalidRequest, NotFound
from server.rpc.paging import Pager
from server.rpc.values import EnumWords, amount, optional_id, timestamp
from server.search import convert
from server.search import projects as project_kind
from server.search.registry import KINDS
from server.search.searching import Found, Question, Searcher
from storage.milvus import conditions
from storage.milvus.conditions import Condition
from storage.postgres import feedback, project_texts, projects, templates
from storage.postgres.database import Database
from storage.postgres.feedback import Example
from storage.postgres.search_words import ExampleChoice, ProjectChoice, TemplateChoice
from storage.scope import Scope

_CATEGORIES = EnumWords(prompt_pb2.PromptCategory, "PROMPT_CATEGORY_")
_CHANNELS = EnumWords(channel_pb2.ChannelType, "CHANNEL_TYPE_")
_PLATFORMS = EnumWords(platform_pb2.Platform, "PLATFORM_")
_MOST_TEXT: Final = 2**20
_OF_PROJECTS: Final = {
    "A": pb.SEARCH_FIELD_NAME,
    "B": pb.SEARCH_FIELD_DESCRIPTION,
    "C": pb.SEARCH_FIELD_BRIEF,
    "D": pb.SEARCH_FIELD_MEDIA_PLAN,
}
_OF_TEMPLATES: Final = {"A": pb.SEARCH_FIELD_NAME, "B": pb.SEARCH_FIELD_COLUMNS, "C": pb.SEARCH_FIELD_SAMPLE}
_OF_EXAMPLES: Final = {"C": pb.SEARCH_FIELD_TEXT}


class SearchService:
    """Implements mrm.ai.v1.SearchService.

    Args:
        database: What is shown.
        pager: Makes page tokens.
        searcher: Finds.
    """

    def __init__(self, database: Database, pager: Pager, searcher: Searcher) -> None:
        self._database = database
        self._pager = pager
        self._searcher = searcher

    async def SearchProjects(self, request: pb.SearchProjectsRequest, call: Call) -> pb.SearchProjectsResponse:
        """Finds projects."""
        page = self._pager.start(request, call)
        scope = _readable(call, "PROJECTS_READ", "MEDIA_PLANS_READ")
        choice, where = _project_choice(request.filter)
        question = Question(request.query, choice, where, request.min_score)
        if request.HasField("project_id"):
            question = await self._like(UUID(request.project_id), scope, question)
        read = partial(projects.get_many, self._database, scope)
        found, token = await self._searcher.page(KINDS["project"], scope, question, page, read)
        return pb.SearchProjectsResponse(
            results=(
                pb.FoundProject(project=planning.project(each.row), match=_match(each, _OF_PROJECTS)) for each in found
            ),
            next_page_token=token,
        )

    async def SearchTemplates(self, request: pb.SearchTemplatesRequest, call: Call) -> pb.SearchTemplatesResponse:
        """Finds templates."""
        page = self._pager.start(request, call)
        scope = _readable(call, "TEMPLATES_READ")
        types = convert.ARTIFACT_TYPES.optional_words(request.artifact_types)
        question = Question(
            "\n".join(filter(None, [request.query, ", ".join(request.columns)])),
            TemplateChoice(optional_id(request.client_id), types),
            [conditions.one_of("artifact_type", types)] if types else [],
            request.min_score,
        )
        read = partial(templates.get_many, self._database, scope)
        found, token = await self._searcher.page(KINDS["template"], scope, question, page, read)
        return pb.SearchTemplatesResponse(
            results=(
                pb.FoundTemplate(template=convert.template(each.row), match=_match(each, _OF_TEMPLATES))
                for each in found
            ),
            next_page_token=token,
        )

    async def FindExamples(self, request: pb.FindExamplesRequest, call: Call) -> pb.FindExamplesResponse:
        """Finds answers that people took."""
        page = self._pager.start(request, call)
        scope = _readable(call, "FEEDBACK_READ")
        categories = _CATEGORIES.optional_words(request.categories)
        lineage = optional_id(request.prompt_id)
        where = [conditions.one_of("category", categories)] if categories else []
        where += [conditions.equal("prompt", lineage)] if lineage else []
        choice = ExampleChoice(optional_id(request.client_id), categories, lineage)
        question = Question(request.query, choice, where, request.min_score)
        read = partial(feedback.examples, self._database, scope)
        found, token = await self._searcher.page(KINDS["example"], scope, question, page, read)
        size = 0
        for count, each in enumerate(found):
            size += len(each.row.text.encode())
            if count and size > _MOST_TEXT:
                token = page.token(found[count - 1].ranked.id, found[count - 1].place)
                found = found[:count]
                break
        return pb.FindExamplesResponse(results=map(_example, found), next_page_token=token)

    async def _like(self, project_id: UUID, scope: Scope, question: Question) -> Question:
        """The question for others like a project."""
        if await projects.get(self._database, scope, project_id) is None:
            raise NotFound.resource("project", str(project_id))
        texts = await project_texts.load_internal(self._database, [project_id])
        if not texts:
            raise NotFound.resource("project", str(project_id))
        return Question(
            project_kind.text(texts[0]), question.choice, question.where, question.min_score, without=project_id
        )


def _readable(call: Call, permission: str, *others: str) -> Scope:
    """What the caller may read of what it may search: nothing without all of the rights."""
    if not all(rights.granting(call.principal, each) for each in (permission, *others)):
        return Scope()
    return rights.within(call.principal, permission)


def _project_choice(wanted: pb.ProjectSearchFilter) -> tuple[ProjectChoice, list[Condition]]:
    """A filter, for PostgreSQL and for Milvus."""
    least = wanted.min_budget if wanted.HasField("min_budget") else None
    most = wanted.max_budget if wanted.HasField("max_budget") else None
    if least is not None and most is not None and least.currency_code != most.currency_code:
        raise InvalidRequest.field("filter.max_budget.currency_code", "CURRENCY_MISMATCH", "is not that of min_budget")
    currency = next((each.currency_code for each in (least, most) if each is not None), None)
    channels = [
        *(_CHANNELS.optional_words(wanted.channel_types) or ()), *(_PLATFORMS.optional_words(wanted.platforms) or ())
    ]  # fmt: skip
    choice = ProjectChoice(
        client_id=optional_id(wanted.client_id),
        industries=[each.casefold() for each in wanted.industries] or None,
        statuses=planning.PROJECT_STATUSES.optional_words(wanted.statuses),
        currency=currency,
        least_budget=_amount(least),
        most_budget=_amount(most),
        least_rating=wanted.min_performance_rating or None,
        most_rating=wanted.max_performance_rating or None,
        channels=channels or None,
    )
    where: list[Condition | None] = [
        conditions.one_of("industry", choice.industries) if choice.industries else None,
        conditions.one_of("status", choice.statuses) if choice.statuses else None,
        conditions.equal("currency", currency) if currency else None,
        # Whoever has given no budget or rating stands below zero.
        conditions.within("budget_micros", 0 if least is None else least.micros, most.micros if most else None)
        if currency
        else None,
        conditions.within("performance_rating", max(1, choice.least_rating or 1), choice.most_rating)
        if choice.least_rating or choice.most_rating
        else None,
        conditions.holds_any("channels", channels) if channels else None,
    ]
    return choice, [each for each in where if each is not None]


def _amount(money: money_pb2.Money | None) -> Decimal | None:
    return None if money is None else amount(money)


def _example(found: Found[Example]) -> pb.FoundExample:
    row = found.row
    return pb.FoundExample(
        feedback_id=str(row.id),
        client_id=str(row.client_id),
        project_id=str(row.project_id or ""),
        category=_CATEGORIES.number(row.category),
        prompt_version_id=str(row.prompt_version_id),
        text=row.text,
        create_time=timestamp(row.created_at),
        match=_match(found, _OF_EXAMPLES),
    )


def _match(found: Found[Any], fields: Mapping[str, Any]) -> pb.Match:
    return pb.Match(
        score=found.ranked.score,
        semantic_score=found.ranked.semantic,
        keyword_score=found.ranked.keyword,
        terms=(
            pb.MatchedTerm(term=term, fields=[fields[label] for label in labels if label in fields])
            for term, labels in found.terms
        ),
    )
