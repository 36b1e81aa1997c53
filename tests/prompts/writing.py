"""Prompts, written through the service."""

from __future__ import annotations

from uuid import uuid4

from mrm.ai.v1 import prompt_experiment_pb2, prompt_pb2
from mrm.ai.v1 import prompt_experiment_service_pb2 as experiment_pb
from mrm.ai.v1 import prompt_service_pb2 as pb
from tests.conftest import Caller

Version = prompt_pb2.PromptVersion


def draft(template: str = "Say it.", note: str = "first", **fields: object) -> pb.PromptDraft:
    """What a version says; variables as pairs of name and type."""
    variables = [
        prompt_pb2.PromptVariable(name=name, type=prompt_pb2.PromptVariableType.Value(f"PROMPT_VARIABLE_TYPE_{kind}"))
        for name, kind in fields.pop("variables", {}).items()  # type: ignore[attr-defined]
    ]
    return pb.PromptDraft(template=template, change_note=note, variables=variables, **fields)  # type: ignore[arg-type]


async def create(
    caller: Caller, *, client_id: str = "", name: str = "", category: str = "brief", **fields: object
) -> Version:
    """A prompt; its first version."""
    request = pb.CreatePromptRequest(
        client_id=client_id,
        name=name or f"prompt {uuid4().hex}",
        category=prompt_pb2.PromptCategory.Value(f"PROMPT_CATEGORY_{category.upper()}"),
        draft=draft(**fields),  # type: ignore[arg-type]
    )
    return (await caller.prompts.CreatePrompt(request, metadata=caller.auth)).prompt_version


async def version(caller: Caller, prompt_id: str, **fields: object) -> Version:
    """Another version."""
    request = pb.CreatePromptVersionRequest(prompt_id=prompt_id, draft=draft(**fields))  # type: ignore[arg-type]
    return (await caller.prompts.CreatePromptVersion(request, metadata=caller.auth)).prompt_version


async def move(caller: Caller, to: Version, label: str, expected: Version | None = None) -> pb.MovePromptLabelResponse:
    """A move of a label."""
    request = pb.MovePromptLabelRequest(
        prompt_version_id=to.prompt_version_id,
        label=label,
        expected_prompt_version_id="" if expected is None else expected.prompt_version_id,
        reason="because",
    )
    return await caller.prompts.MovePromptLabel(request, metadata=caller.auth)


async def rollback(caller: Caller, prompt_id: str, label: str, expected: str = "") -> pb.RollbackPromptLabelResponse:
    """A move taken back."""
    request = pb.RollbackPromptLabelRequest(
        prompt_id=prompt_id, label=label, expected_prompt_version_id=expected, reason="it was worse"
    )
    return await caller.prompts.RollbackPromptLabel(request, metadata=caller.auth)


async def history(caller: Caller, prompt_id: str, label: str = "") -> list[prompt_pb2.PromptLabelMove]:
    """Every move of a label, oldest first."""
    request = pb.ListPromptLabelMovesRequest(
        prompt_id=prompt_id, page_size=500, filter=pb.PromptLabelMoveFilter(label=label)
    )
    moves: list[prompt_pb2.PromptLabelMove] = []
    while True:
        reply = await caller.prompts.ListPromptLabelMoves(request, metadata=caller.auth)
        moves += reply.moves
        if not reply.next_page_token:
            return moves[::-1]
        request.page_token = reply.next_page_token


async def start(
    caller: Caller, label: str, *arms: Version, weights: tuple[int, ...] = (), **fields: object
) -> prompt_experiment_pb2.PromptExperiment:
    """An experiment."""
    shares = [
        experiment_pb.PromptExperimentShare(prompt_version_id=arm.prompt_version_id, weight=weight)
        for arm, weight in zip(arms, weights or [1] * len(arms), strict=True)
    ]
    request = experiment_pb.StartPromptExperimentRequest(
        prompt_id=arms[0].prompt_id,
        label=label,
        shares=shares,
        **fields,  # type: ignore[arg-type]
    )
    return (await caller.experiments.StartPromptExperiment(request, metadata=caller.auth)).prompt_experiment


async def stop(
    caller: Caller, experiment: prompt_experiment_pb2.PromptExperiment
) -> prompt_experiment_pb2.PromptExperiment:
    """An experiment that has ended."""
    request = experiment_pb.StopPromptExperimentRequest(
        prompt_experiment_id=experiment.prompt_experiment_id, reason="enough"
    )
    return (await caller.experiments.StopPromptExperiment(request, metadata=caller.auth)).prompt_experiment


async def promote(
    caller: Caller, experiment: prompt_experiment_pb2.PromptExperiment, to: Version
) -> experiment_pb.PromotePromptExperimentResponse:
    """A promotion."""
    request = experiment_pb.PromotePromptExperimentRequest(
        prompt_experiment_id=experiment.prompt_experiment_id,
        prompt_version_id=to.prompt_version_id,
        reason="no worse",
    )
    return await caller.experiments.PromotePromptExperiment(request, metadata=caller.auth)


async def render(
    caller: Caller, name: str, values: dict[str, object] | None = None, **reference: str
) -> pb.RenderPromptResponse:
    """A text under a label."""
    request = pb.RenderPromptRequest(reference=pb.PromptReference(name=name, **reference))  # type: ignore[arg-type]
    request.variables.update(values or {})
    return await caller.prompts.RenderPrompt(request, metadata=caller.auth)
