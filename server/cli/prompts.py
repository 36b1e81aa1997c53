"""`mrm prompts`: prompts, what is served of them, and how it came to that."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

import typer
from google.protobuf.json_format import MessageToDict
from rich.markup import escape
from rich.table import Table

from mrm.ai.v1 import prompt_experiment_pb2, prompt_pb2
from mrm.ai.v1 import prompt_experiment_service_pb2 as experiment_pb
from mrm.ai.v1 import prompt_service_pb2 as pb
from mrm.ai.v1.prompt_experiment_service_pb2_grpc import PromptExperimentServiceStub
from mrm.ai.v1.prompt_service_pb2_grpc import PromptServiceStub
from server.cli import remote
from server.cli.console import CommandFailed, say, show_table

if TYPE_CHECKING:
    from mrm.ai.v1.prompt_service_pb2_grpc import PromptServiceAsyncStub

commands = typer.Typer(help="Show prompts and what is served of them; move labels; fill texts.", no_args_is_help=True)

Named = Annotated[str, typer.Argument(help="Name of the prompt, or its id.")]
Client = Annotated[UUID | None, typer.Option(help="The client's own prompt of this name, not the agency's.")]
Label = Annotated[str, typer.Argument(help="Name of the label, such as production.")]
Reason = Annotated[str, typer.Option(help="Why; it stays on record.")]
Which = Annotated[str, typer.Argument(help="Number of a version, or name of a label.")]

_CALL_SECONDS = 10


@commands.command("list")
@remote.reaching
async def list_(
    server: remote.Server,
    client: Annotated[UUID | None, typer.Option(help="Only this client's own.")] = None,
    category: Annotated[str, typer.Option(help="Only of this category: migration, media_plan, report or brief.")] = "",
) -> None:
    """List prompts with their labels."""
    wanted = pb.PromptFilter(client_id=str(client or ""))
    if category:
        name = f"PROMPT_CATEGORY_{category.upper()}"
        if name not in prompt_pb2.PromptCategory.keys():  # noqa: SIM118 - an enum is no mapping
            raise CommandFailed(f"there is no category {category}")
        wanted.categories.append(prompt_pb2.PromptCategory.Value(name))
    found: list[prompt_pb2.Prompt] = []
    async with server.open() as channel:
        stub = PromptServiceStub(channel)
        request = pb.ListPromptsRequest(filter=wanted, page_size=500)
        async for page in remote.pages(stub.ListPrompts, request, _CALL_SECONDS):
            found += page.prompts
    if not found:
        say("there are no prompts; `mrm seed prompts` adds those that come with the service")
        return
    show_table(table(found))


@commands.command()
@remote.reaching
async def show(
    server: remote.Server,
    prompt: Named,
    which: Annotated[str, typer.Argument(help="Number of a version, or name of a label; the newest if left out.")] = "",
    client: Client = None,
) -> None:
    """Show a version of a prompt: its labels, variables, parameters and text."""
    async with server.open() as channel:
        stub = PromptServiceStub(channel)
        found = await _prompt(stub, prompt, client)
        version = await _version(stub, found, which or str(found.latest_version))
    for text in description(found, version):
        say(text, markup=False)
    say("")
    say(version.template, markup=False)


@commands.command()
@remote.reaching
async def diff(server: remote.Server, prompt: Named, base: Which, other: Which, client: Client = None) -> None:
    """Show what changed from one version of a prompt to another, line by line."""
    async with server.open() as channel:
        stub = PromptServiceStub(channel)
        found = await _prompt(stub, prompt, client)
        before, after = [await _version(stub, found, each) for each in (base, other)]
    changed = list(differences(before, after))
    for line in changed or ["nothing changed"]:
        say(line, markup=False)


@commands.command()
@remote.reaching
async def history(
    server: remote.Server,
    prompt: Named,
    label: Annotated[str, typer.Option(help="Only moves of this label.")] = "",
    client: Client = None,
    count: Annotated[int, typer.Option(min=1, max=500, help="At most so many, newest first.")] = 50,
) -> None:
    """List who moved the labels of a prompt, when and why, newest first."""
    async with server.open() as channel:
        stub = PromptServiceStub(channel)
        found = await _prompt(stub, prompt, client)
        request = pb.ListPromptLabelMovesRequest(
            prompt_id=found.prompt_id, filter=pb.PromptLabelMoveFilter(label=label), page_size=count
        )
        reply = await stub.ListPromptLabelMoves(request, timeout=_CALL_SECONDS)
    names = {each.prompt_label_id: each.label for each in found.labels}
    show_table(moves(reply.moves, names))


@commands.command()
@remote.reaching
async def move(
    server: remote.Server, prompt: Named, label: Label, which: Which, reason: Reason, client: Client = None
) -> None:
    """Point a label to a version, unless somebody else moves it at the same moment."""
    async with server.open() as channel:
        stub = PromptServiceStub(channel)
        found = await _prompt(stub, prompt, client)
        version = await _version(stub, found, which)
        request = pb.MovePromptLabelRequest(
            prompt_version_id=version.prompt_version_id,
            label=label,
            expected_prompt_version_id=_pointed(found, label),
            reason=reason,
            request_id=str(uuid4()),
        )
        reply = await stub.MovePromptLabel(request, timeout=_CALL_SECONDS)
    say(told(label, reply.move), markup=False)


@commands.command()
@remote.reaching
async def rollback(server: remote.Server, prompt: Named, label: Label, reason: Reason, client: Client = None) -> None:
    """Take the last move of a label back."""
    async with server.open() as channel:
        stub = PromptServiceStub(channel)
        found = await _prompt(stub, prompt, client)
        request = pb.RollbackPromptLabelRequest(
            prompt_id=found.prompt_id,
            label=label,
            expected_prompt_version_id=_pointed(found, label),
            reason=reason,
            request_id=str(uuid4()),
        )
        reply = await stub.RollbackPromptLabel(request, timeout=_CALL_SECONDS)
    say(told(label, reply.move), markup=False)


@commands.command()
@remote.reaching
async def render(
    server: remote.Server,
    name: Annotated[str, typer.Argument(help="Name of the prompt.")],
    text: Annotated[list[str] | None, typer.Option("--set", help="NAME=TEXT, for a text or a day.")] = None,
    value: Annotated[list[str] | None, typer.Option("--json", help="NAME=JSON, for anything else.")] = None,
    values: Annotated[Path | None, typer.Option(help="File with a JSON object of values.", dir_okay=False)] = None,
    label: Annotated[str, typer.Option(help="What is served under this label.")] = "production",
    client: Annotated[UUID | None, typer.Option(help="For this client, whose own prompt prevails.")] = None,
    subject: Annotated[str, typer.Option(help="What an experiment goes by, such as a person's id.")] = "",
) -> None:
    """Fill the text that is served under a label; print nothing else, to be piped on."""
    reference = pb.PromptReference(name=name, label=label, client_id=str(client or ""), subject_key=subject)
    request = pb.RenderPromptRequest(reference=reference)
    request.variables.update(given(text or [], value or [], values))
    async with server.open() as channel:
        reply = await PromptServiceStub(channel).RenderPrompt(request, timeout=_CALL_SECONDS)
    typer.echo(reply.text)


@commands.command()
@remote.reaching
async def result(
    server: remote.Server, experiment: Annotated[UUID, typer.Argument(help="Id of the experiment.")]
) -> None:
    """Show what people made of the versions of an experiment, and what keeps one from being promoted."""
    async with server.open() as channel:
        request = experiment_pb.GetPromptExperimentResultRequest(prompt_experiment_id=str(experiment))
        reply = await PromptExperimentServiceStub(channel).GetPromptExperimentResult(request, timeout=_CALL_SECONDS)
    found = reply.prompt_experiment
    status = prompt_experiment_pb2.PromptExperimentStatus.Name(found.status)
    state = status.removeprefix("PROMPT_EXPERIMENT_STATUS_").lower()
    say(f"under {found.label}, {state}: {found.hypothesis or 'no hypothesis'}", markup=False)
    show_table(results(reply.results))


async def _prompt(stub: PromptServiceAsyncStub, named: str, client: UUID | None) -> prompt_pb2.Prompt:
    """A prompt by its id or name."""
    try:
        request = pb.GetPromptRequest(prompt_id=str(UUID(named)))
    except ValueError:
        wanted = pb.PromptFilter(name=named, client_id=str(client or ""), agency_wide=client is None)
        reply = await stub.ListPrompts(pb.ListPromptsRequest(filter=wanted), timeout=_CALL_SECONDS)
        if not reply.prompts:
            whose = "the agency's prompts" if client is None else "the client's own prompts"
            raise CommandFailed(f"none of {whose} is named {named}") from None
        return reply.prompts[0]
    return (await stub.GetPrompt(request, timeout=_CALL_SECONDS)).prompt


async def _version(stub: PromptServiceAsyncStub, prompt: prompt_pb2.Prompt, which: str) -> prompt_pb2.PromptVersion:
    """A version of a prompt by its number or a label."""
    version_id = _pointed(prompt, which)
    if not version_id:
        request = pb.ListPromptVersionsRequest(prompt_id=prompt.prompt_id, page_size=500)
        async for page in remote.pages(stub.ListPromptVersions, request, _CALL_SECONDS):
            for each in page.prompt_versions:
                version_id = each.prompt_version_id if str(each.version) == which else version_id
    if not version_id:
        raise CommandFailed(f"{prompt.name} has no version and no label {which}")
    wanted = pb.GetPromptVersionRequest(prompt_version_id=version_id)
    return (await stub.GetPromptVersion(wanted, timeout=_CALL_SECONDS)).prompt_version


def _pointed(prompt: prompt_pb2.Prompt, label: str) -> str:
    """Id of the version that a label points to; empty if there is none of this name."""
    return next((each.prompt_version_id for each in prompt.labels if each.label == label), "")


def given(texts: Sequence[str], values: Sequence[str], file: Path | None) -> dict[str, Any]:
    """Values of variables from the options of `render`.

    Raises:
        CommandFailed: One cannot be read.
    """
    found: dict[str, Any] = {}
    try:
        if file is not None:
            found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise CommandFailed(f"{file} holds no JSON object")
        found |= {name: json.loads(text) for name, text in map(_named, values)}
    except ValueError as error:
        raise CommandFailed(f"no JSON: {error}") from None
    return found | dict(map(_named, texts))


def _named(option: str) -> tuple[str, str]:
    name, equals, text = option.partition("=")
    if not equals:
        raise CommandFailed(f"{option}: write NAME=VALUE")
    return name, text


def table(prompts: Iterable[prompt_pb2.Prompt]) -> Table:
    """Prompts, one a row."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("prompt", "category", "of", "versions", "served", "id"):
        shown.add_column(heading, justify="right" if heading == "versions" else "left", overflow="fold")
    for each in prompts:
        shown.add_row(
            escape(each.name),
            _category(each.category),
            f"client {each.client_id}" if each.client_id else "the agency",
            str(each.latest_version),
            ", ".join(f"{label.label} {label.version}" for label in each.labels),
            each.prompt_id,
        )
    return shown


def moves(found: Iterable[prompt_pb2.PromptLabelMove], names: dict[str, str]) -> Table:
    """Moves of labels, one a row."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("when", "label", "what", "why", "who"):
        shown.add_column(heading, overflow="fold")
    for each in found:
        shown.add_row(
            f"{each.create_time.ToDatetime():%Y-%m-%d %H:%M:%S}",
            names.get(each.prompt_label_id, ""),
            _step(each),
            escape(each.reason),
            each.mover_id,
        )
    return shown


def results(found: Iterable[prompt_experiment_pb2.PromptArmResult]) -> Table:
    """Versions of an experiment, one a row."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("version", "weight", "judged", "accepted", "95 %", "against control", "95 %", "promotion"):
        shown.add_column(heading, justify="right" if heading != "promotion" else "left", no_wrap=True)
    for each in found:
        has = each.HasField
        shown.add_row(
            str(each.arm.version),
            str(each.arm.weight),
            str(each.feedback_count),
            _percent(each.acceptance) if has("acceptance") else "",
            _interval(each.acceptance_interval) if has("acceptance_interval") else "",
            _percent(each.difference, "+") if has("difference") else "",
            _interval(each.difference_interval, "+") if has("difference_interval") else "",
            "control" if each.arm.control else _gate(each.checks),
        )
    return shown


def _gate(checks: Iterable[prompt_experiment_pb2.PromptGateCheck]) -> str:
    names = prompt_experiment_pb2.PromptGateCondition
    failing = [
        names.Name(each.condition).removeprefix("PROMPT_GATE_CONDITION_").lower().replace("_", " ")
        for each in checks
        if not each.met
    ]
    return f"not yet: {', '.join(failing)}" if failing else "may be promoted"


def _percent(share: float, sign: str = "") -> str:
    return f"{share * 100:{sign}.1f} %"


def _interval(interval: prompt_experiment_pb2.PromptInterval, sign: str = "") -> str:
    return f"{interval.low * 100:{sign}.1f} to {interval.high * 100:{sign}.1f}"


def description(prompt: prompt_pb2.Prompt, version: prompt_pb2.PromptVersion) -> list[str]:
    """What there is to know of a version beside its text, a line each."""
    labels = [each.label for each in prompt.labels if each.prompt_version_id == version.prompt_version_id]
    deprecated = f", deprecated: {version.deprecation_reason}" if version.deprecation_reason else ""
    served = f", served under {', '.join(labels)}" if labels else ""
    lines = [
        f"{version.name}, {_category(version.category)}, version {version.version} of {prompt.latest_version}{served}"
        + deprecated,
        f"note: {version.change_note}",
        *(f"variable: {each}" for each in _variables(version)),
    ]
    given = MessageToDict(version.parameters, preserving_proto_field_name=True)
    return [*lines, *(f"parameter: {name} {json.dumps(given[name], ensure_ascii=False)}" for name in sorted(given))]


def differences(before: prompt_pb2.PromptVersion, after: prompt_pb2.PromptVersion) -> Iterable[str]:
    """What changed between versions, as a unified diff."""
    sides = [
        [
            *_variables(each),
            *json.dumps(
                MessageToDict(each.parameters, preserving_proto_field_name=True),
                ensure_ascii=False,
                indent=2,
                sort_keys=True,
            ).splitlines(),
            "",
            *each.template.splitlines(),
        ]
        for each in (before, after)
    ]
    names = [f"{each.name} version {each.version}" for each in (before, after)]
    return difflib.unified_diff(sides[0], sides[1], names[0], names[1], lineterm="")


def _variables(version: prompt_pb2.PromptVersion) -> list[str]:
    kinds = prompt_pb2.PromptVariableType
    return [
        f"{each.name}, {kinds.Name(each.type).removeprefix('PROMPT_VARIABLE_TYPE_').lower()}"
        + (f": {each.description}" if each.description else "")
        for each in version.variables
    ]


def told(label: str, made: prompt_pb2.PromptLabelMove) -> str:
    """A move in a line."""
    return f"{label}: {_step(made)}"


def _step(made: prompt_pb2.PromptLabelMove) -> str:
    kind = prompt_pb2.PromptLabelMoveKind.Name(made.kind).removeprefix("PROMPT_LABEL_MOVE_KIND_").lower()
    begin = f"version {made.from_version} -> " if made.from_version else "-> "
    return f"{begin}{made.to_version}" + (f" ({kind})" if kind != "move" else "")


def _category(value: prompt_pb2.PromptCategory.ValueType) -> str:
    return prompt_pb2.PromptCategory.Name(value).removeprefix("PROMPT_CATEGORY_").lower()
