"""`mrm search`: what is like something, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape
from rich.table import Table

from mrm.ai.v1 import feedback_pb2, prompt_pb2
from mrm.ai.v1 import search_service_pb2 as pb
from mrm.ai.v1.search_service_pb2_grpc import SearchServiceStub
from server.cli import remote
from server.cli.console import CommandFailed, say, show_rows

commands = typer.Typer(
    help="Find projects, templates and examples by what they mean and the words in them.", no_args_is_help=True
)

Query = Annotated[str, typer.Argument(help="What is looked for, in Russian or English.")]
Client = Annotated[UUID | None, typer.Option(help="Only this client's own.")]
Limit = Annotated[int, typer.Option(min=1, max=200, help="Most results.")]
MinScore = Annotated[float, typer.Option("--min-score", min=0, max=1, help="Leave out what matches less.")]

_CALL_SECONDS = 15
_MOST_TEXT = 200

Line = tuple[str, str, str, pb.Match]
"""Id, name, something more, and why it was found."""


@commands.command()
@remote.reaching
async def projects(
    server: remote.Server,
    query: Annotated[str, typer.Argument(help="What is looked for, in Russian or English; not with --like.")] = "",
    like: Annotated[UUID | None, typer.Option(help="A project that others are to be like.")] = None,
    client: Client = None,
    industry: Annotated[list[str] | None, typer.Option(help="Only this line of business; may be repeated.")] = None,
    min_rating: Annotated[int, typer.Option("--min-rating", min=0, max=10, help="Only rated so well.")] = 0,
    limit: Limit = 10,
    min_score: MinScore = 0.0,
) -> None:
    """Find projects by their names, briefs and media plans."""
    if bool(query) == bool(like):
        raise CommandFailed("say what to look for, or --like which project, not both")
    request = pb.SearchProjectsRequest(
        filter=pb.ProjectSearchFilter(
            client_id=str(client or ""), industries=industry or [], min_performance_rating=min_rating
        ),
        page_size=limit,
        min_score=min_score,
    )
    if like:
        request.project_id = str(like)
    else:
        request.query = query
    async with server.open() as channel:
        reply = await SearchServiceStub(channel).SearchProjects(request, timeout=_CALL_SECONDS)
    _show(
        [
            (each.project.project_id, each.project.display_name, each.project.description, each.match)
            for each in reply.results
        ]
    )


@commands.command()
@remote.reaching
async def templates(
    server: remote.Server,
    query: Annotated[str, typer.Argument(help="What is looked for.")] = "",
    column: Annotated[list[str] | None, typer.Option(help="Name of a column that it has; may be repeated.")] = None,
    client: Client = None,
    of: Annotated[str, typer.Option(help="Only of this: media_plan, report or brief.")] = "",
    limit: Limit = 10,
    min_score: MinScore = 0.0,
) -> None:
    """Find templates by their names and columns."""
    if not query and not column:
        raise CommandFailed("say what to look for, or --column which columns it has")
    kinds = feedback_pb2.ArtifactType
    name = f"ARTIFACT_TYPE_{of.upper()}"
    if of and name not in kinds.keys():  # noqa: SIM118 - an enum is no mapping
        raise CommandFailed(f"there is nothing such as {of}")
    request = pb.SearchTemplatesRequest(
        query=query,
        columns=column or [],
        client_id=str(client or ""),
        artifact_types=[kinds.Value(name)] if of else [],
        page_size=limit,
        min_score=min_score,
    )
    async with server.open() as channel:
        reply = await SearchServiceStub(channel).SearchTemplates(request, timeout=_CALL_SECONDS)
    _show(
        [
            (
                each.template.template_id,
                each.template.display_name,
                ", ".join(column.name for column in each.template.columns),
                each.match,
            )
            for each in reply.results
        ]
    )


@commands.command()
@remote.reaching
async def examples(
    server: remote.Server,
    query: Query,
    client: Client = None,
    category: Annotated[str, typer.Option(help="Only of prompts for: migration, media_plan, report or brief.")] = "",
    prompt: Annotated[UUID | None, typer.Option(help="Only answers of this prompt.")] = None,
    limit: Limit = 5,
    min_score: MinScore = 0.0,
) -> None:
    """Find answers of prompts that people took."""
    kinds = prompt_pb2.PromptCategory
    name = f"PROMPT_CATEGORY_{category.upper()}"
    if category and name not in kinds.keys():  # noqa: SIM118 - an enum is no mapping
        raise CommandFailed(f"there is no category {category}")
    request = pb.FindExamplesRequest(
        query=query,
        client_id=str(client or ""),
        categories=[kinds.Value(name)] if category else [],
        prompt_id=str(prompt or ""),
        page_size=limit,
        min_score=min_score,
    )
    async with server.open() as channel:
        reply = await SearchServiceStub(channel).FindExamples(request, timeout=_CALL_SECONDS)
    _show(
        [
            (each.feedback_id, prompt_pb2.PromptCategory.Name(each.category)[16:].lower(), each.text, each.match)
            for each in reply.results
        ]
    )


def _show(found: Sequence[Line]) -> None:
    if not found:
        say("nothing was found")
        return
    show_rows(found, table, line)


def table(found: Sequence[Line]) -> Table:
    """Results for a terminal."""
    shown = Table("score", "found", "", "why", box=None, pad_edge=False)
    for id_, name, more, match in found:
        named = f"{escape(name)}\n[dim]{id_}[/]"
        shown.add_row(f"{match.score:.2f}", named, escape(more[:_MOST_TEXT]), escape(why(match)))
    return shown


def line(found: Line) -> str:
    """A result for a pipe."""
    id_, name, _, match = found
    return f"{match.score:.3f} {id_} {' '.join(name.split())}: {why(match)}"


def why(match: pb.Match) -> str:
    """What speaks for a result."""
    meaning = f"meaning {match.semantic_score:.2f}" if match.HasField("semantic_score") else ""
    words = ", ".join(term.term for term in match.terms)
    return "; ".join(part for part in (meaning, f"words: {words}" if words else "") if part)
