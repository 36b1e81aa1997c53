"""Prompts and experiments as messages."""

from collections.abc import Collection, Sequence
from typing import Any, Final
from uuid import UUID

from google.protobuf import struct_pb2
from google.protobuf.json_format import ParseDict

from mrm.ai.v1 import prompt_experiment_pb2, prompt_pb2
from mrm.ai.v1 import prompt_service_pb2 as pb
from server.prompts import deciding
from server.prompts.deciding import Share
from server.rpc.errors import InvalidRequest
from server.rpc.values import EnumWords, etag, json_of, timestamp
from storage.postgres.experiments import Counts, Experiment
from storage.postgres.prompts import Label, Move, Prompt, PromptVersion

CATEGORIES: Final = EnumWords(prompt_pb2.PromptCategory, "PROMPT_CATEGORY_")
STATUSES: Final = EnumWords(prompt_pb2.PromptVersionStatus, "PROMPT_VERSION_STATUS_")
VARIABLE_TYPES: Final = EnumWords(prompt_pb2.PromptVariableType, "PROMPT_VARIABLE_TYPE_")
MOVE_KINDS: Final = EnumWords(prompt_pb2.PromptLabelMoveKind, "PROMPT_LABEL_MOVE_KIND_")
EXPERIMENT_STATUSES: Final = EnumWords(prompt_experiment_pb2.PromptExperimentStatus, "PROMPT_EXPERIMENT_STATUS_")
CONDITIONS: Final = EnumWords(prompt_experiment_pb2.PromptGateCondition, "PROMPT_GATE_CONDITION_")

_TYPED: Final = frozenset(prompt_pb2.PromptParameters.DESCRIPTOR.fields_by_name) - {"extra"}


def prompt(row: Prompt, labels: Sequence[Label], protected: Collection[str]) -> prompt_pb2.Prompt:
    """A prompt with those of some labels that are its own."""
    return prompt_pb2.Prompt(
        prompt_id=str(row.id),
        client_id=str(row.client_id or ""),
        name=row.name,
        category=CATEGORIES.number(row.category),
        latest_version=row.latest_version,
        labels=[label(each, protected) for each in labels if each.lineage_id == row.id],
        creator_id=str(row.created_by or ""),
        create_time=timestamp(row.created_at),
    )


def version(row: PromptVersion) -> prompt_pb2.PromptVersion:
    """A version."""
    return prompt_pb2.PromptVersion(
        prompt_version_id=str(row.id),
        prompt_id=str(row.lineage_id),
        client_id=str(row.client_id or ""),
        name=row.name,
        category=CATEGORIES.number(row.category),
        version=row.version,
        status=STATUSES.number(row.status),
        template=row.template,
        variables=[
            prompt_pb2.PromptVariable(
                name=each["name"], type=VARIABLE_TYPES.number(each["type"]), description=each["description"]
            )
            for each in row.variables
        ],
        # Lists leave it out.
        parameters=parameters(row.metadata) if row.template else None,
        change_note=row.change_note,
        deprecation_reason=row.deprecation_reason,
        author_id=str(row.created_by or ""),
        create_time=timestamp(row.created_at),
        etag=etag(row.revision),
    )


def parameters(metadata: dict[str, Any]) -> prompt_pb2.PromptParameters:
    """What a model is to be called with."""
    found = prompt_pb2.PromptParameters()
    ParseDict({name: metadata[name] for name in metadata.keys() & _TYPED}, found)
    rest = {name: value for name, value in metadata.items() if name not in _TYPED}
    if rest:
        ParseDict(rest, found.extra)
    return found


def metadata(given: prompt_pb2.PromptParameters, path: str) -> dict[str, Any]:
    """What is stored of parameters: typed ones and others side by side, as the source's model has them.

    Raises:
        InvalidRequest: Another one has the name of a typed one, or holds what cannot be stored.
    """
    found = json_of(given, path)
    extra: dict[str, Any] = found.pop("extra", {})
    for name in extra.keys() & _TYPED:
        raise InvalidRequest.field(f"{path}.extra", "KEY_TAKEN", f"has {name}, which is a field of its own")
    return {**found, **extra}


def variables(draft: pb.PromptDraft) -> list[dict[str, Any]]:
    """What is stored of declared variables."""
    return [
        {"name": each.name, "type": VARIABLE_TYPES.word(each.type), "description": each.description}
        for each in draft.variables
    ]


def values(given: struct_pb2.Struct) -> dict[str, Any]:
    """Values of variables as plain JSON.

    Raises:
        InvalidRequest: There is a number that JSON does not have.
    """
    return json_of(given, "variables")


def label(row: Label, protected: Collection[str]) -> prompt_pb2.PromptLabel:
    """A label."""
    return prompt_pb2.PromptLabel(
        prompt_label_id=str(row.id),
        prompt_id=str(row.lineage_id),
        label=row.name,
        prompt_version_id=str(row.version_id),
        version=row.version,
        protected=row.name in protected,
        move_count=row.move_count,
        move_time=timestamp(row.updated_at),
    )


def move(row: Move) -> prompt_pb2.PromptLabelMove:
    """A move of a label."""
    return prompt_pb2.PromptLabelMove(
        prompt_label_move_id=str(row.id),
        prompt_label_id=str(row.label_id),
        number=row.number,
        kind=MOVE_KINDS.number(row.kind),
        from_prompt_version_id=str(row.from_version_id or ""),
        from_version=row.from_version,
        to_prompt_version_id=str(row.to_version_id),
        to_version=row.to_version,
        undone_number=row.undoes or 0,
        prompt_experiment_id=str(row.experiment_id or ""),
        reason=row.reason,
        mover_id=str(row.moved_by or ""),
        create_time=timestamp(row.created_at),
    )


def experiment(row: Experiment) -> prompt_experiment_pb2.PromptExperiment:
    """An experiment."""
    return prompt_experiment_pb2.PromptExperiment(
        prompt_experiment_id=str(row.id),
        prompt_id=str(row.lineage_id),
        client_id=str(row.client_id or ""),
        label=row.label,
        arms=[arm(row, version_id) for version_id in row.arm_ids],
        hypothesis=row.hypothesis,
        min_sample_count=row.min_sample_count,
        max_acceptance_loss=row.max_acceptance_loss,
        status=EXPERIMENT_STATUSES.number(row.status),
        starter_id=str(row.started_by or ""),
        start_time=timestamp(row.started_at),
        stop_time=timestamp(row.stopped_at),
        stop_reason=row.stop_reason,
        promoted_prompt_version_id=str(row.promoted_version_id or ""),
        promoter_id=str(row.promoted_by or ""),
        etag=etag(row.revision),
    )


def arm(row: Experiment, version_id: UUID) -> prompt_experiment_pb2.PromptExperimentArm:
    """One version of an experiment."""
    place = row.arm_ids.index(version_id)
    return prompt_experiment_pb2.PromptExperimentArm(
        prompt_version_id=str(version_id),
        version=row.versions[place],
        weight=row.weights[place],
        control=version_id == row.control_version_id,
    )


def result(row: Experiment, version_id: UUID, counts: Counts, control: Counts) -> prompt_experiment_pb2.PromptArmResult:
    """What people made of the answers of one version of an experiment."""
    found = prompt_experiment_pb2.PromptArmResult(
        arm=arm(row, version_id),
        feedback_count=counts.total,
        accepted_count=counts.accepted,
        edited_count=counts.edited,
        rejected_count=counts.rejected,
    )
    accepted = deciding.acceptance(counts)
    if accepted is not None:
        found.acceptance = accepted.value
        found.acceptance_interval.CopyFrom(_interval(accepted))
    if version_id == row.control_version_id:
        return found
    distance = deciding.difference(counts, control)
    if distance is not None:
        found.difference = distance.value
        found.difference_interval.CopyFrom(_interval(distance))
    for check in deciding.gate(
        counts, control, min_sample_count=row.min_sample_count, max_acceptance_loss=row.max_acceptance_loss
    ):
        found.checks.add(
            condition=CONDITIONS.number(check.condition), met=check.met, actual=check.actual, required=check.required
        )
    return found


def _interval(share: Share) -> prompt_experiment_pb2.PromptInterval:
    return prompt_experiment_pb2.PromptInterval(low=share.low, high=share.high)
